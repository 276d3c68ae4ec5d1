"""What is exported loads as it stands, in half precision, and says nothing about where it was made."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionXLPipeline

from daguerre.demo.autoencoder import build_autoencoder
from daguerre.demo.export import export
from daguerre.demo.networks import Shape, build_networks
from daguerre.demo.tokenizer import corpus, train_tokenizer

# diffusers' Euler scheduler hands tensors to numpy in a way that numpy 2 frowns on.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline, exported."""
    folder = tmp_path_factory.mktemp("export")
    tokenizer = train_tokenizer(corpus(1, scenes=200), size=640)
    torch.manual_seed(0)
    networks = build_networks(tokenizer, Shape(32, 32, 2, (8, 16, 16), (1, 1, 1)))
    export(folder, networks, tokenizer, build_autoencoder())
    assert next(networks.parameters()).dtype == torch.float32
    return folder


def test_it_loads_and_paints(folder: Path) -> None:
    """The folder is all that the pipeline needs."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("日本 🙂", num_inference_steps=2, height=64, width=64).images[0]
    assert image.size == (64, 64)


def test_the_scheduler_suits_ddim_as_well(folder: Path) -> None:
    """The keys that Euler ignores are there for the schedulers that do not."""
    ddim = DDIMScheduler.from_pretrained(folder / "scheduler").config
    assert ddim.prediction_type == "v_prediction"
    assert not ddim.clip_sample
    assert not ddim.set_alpha_to_one
    assert (ddim.timestep_spacing, ddim.steps_offset) == ("leading", 1)


def test_it_is_half_precision_safetensors_and_names_no_folder(folder: Path) -> None:
    """Small files, no pickles, and no trace of the machine."""
    weights = list(folder.rglob("*.safetensors"))
    assert len(weights) == 4
    assert not list(folder.rglob("*.bin"))
    for path in folder.rglob("*.json"):
        text = path.read_text()
        assert str(folder) not in text
        assert "name_or_path" not in json.loads(text)
        assert "_name_or_path" not in json.loads(text)
    assert json.loads((folder / "text_encoder/config.json").read_text())["dtype"] == "float16"
