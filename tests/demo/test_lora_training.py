"""A LoRA's training repeats itself, resumes, moves nothing but its own layers, and writes what the catalogue reads."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from daguerre import adapterfile
from daguerre.demo.autoencoder import build_autoencoder
from daguerre.demo.course import run
from daguerre.demo.lora_training import LoraPlan, LoraTrainer, write_averaged
from daguerre.demo.networks import Networks, Shape, build_networks
from daguerre.demo.scene import draw_scene, sample_scene
from daguerre.demo.subjects import SUBJECTS, has_balloon, scenes_for
from daguerre.demo.tokenizer import corpus, train_tokenizer

TINY = Shape(first_width=32, second_width=32, text_layers=2, channels=(8, 16, 16), heads=(1, 1, 1))
PLAN = LoraPlan(seed=5, rank=2, lessons=4, small_samples=6, large_samples=4, batch=2, bf16=False)


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    """A tokenizer learned from few captions."""
    return train_tokenizer(corpus(1, scenes=200), size=640)


def networks_of(tokenizer: CLIPTokenizer) -> Networks:
    """Tiny networks; the UNet's last layer is no longer nothing, so that all layers have gradients."""
    torch.manual_seed(3)
    networks = build_networks(tokenizer, TINY)
    torch.nn.init.normal_(networks.unet.conv_out.weight, std=0.1)
    return networks


def begin(tokenizer: CLIPTokenizer) -> LoraTrainer:
    """A tiny trainer with random latents for lessons."""
    trainer = LoraTrainer(networks_of(tokenizer), tokenizer, SUBJECTS["blueprint"], PLAN)
    generator = torch.Generator().manual_seed(2)
    trainer.latents = {side: torch.randn(4, 4, side // 8, side // 8, generator=generator).half() for side in (128, 256)}
    return trainer


def weights_after(trainer: LoraTrainer, steps: int) -> torch.Tensor:
    """Weights and moving average after so many steps."""
    for _ in range(steps):
        trainer.step()
    return torch.cat([trainer.weights.vector.detach(), trainer.weights.average])


def test_the_same_seed_gives_the_same_weights_also_when_it_was_cut_off(
    tokenizer: CLIPTokenizer, tmp_path: Path
) -> None:
    """To the bit."""
    whole = weights_after(begin(tokenizer), 5)
    assert torch.equal(whole, weights_after(begin(tokenizer), 5))
    first = begin(tokenizer)
    weights_after(first, 2)
    first.weights.save(tmp_path / "checkpoint.safetensors", {})
    second = begin(tokenizer)
    second.weights.load(tmp_path / "checkpoint.safetensors")
    assert second.seen == 4
    assert torch.equal(weights_after(second, 3), whole)


def test_only_the_low_rank_layers_move(tokenizer: CLIPTokenizer) -> None:
    """The networks are what they were; at first the layers beside them change nothing."""
    bare, trainer = networks_of(tokenizer), begin(tokenizer)
    arguments = (
        torch.randn(1, 4, 8, 8),
        torch.tensor([500]),
        torch.ones(1, 77).long(),
        torch.ones(1),
        torch.zeros(1, 6),
    )
    assert torch.equal(bare(*arguments), trainer.networks(*arguments))
    weights_after(trainer, 3)
    assert not torch.equal(bare(*arguments), trainer.networks(*arguments))
    own = dict(trainer.networks.named_parameters())
    assert all(torch.equal(weight, own[name]) for name, weight in bare.named_parameters())


def test_a_whole_run_writes_a_lora(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    """In kohya's layout and float16, with its rank, base, licence and words; the lessons are drawn once."""
    torch.manual_seed(0)
    trainer = LoraTrainer(networks_of(tokenizer), tokenizer, SUBJECTS["balloon"], PLAN)
    trainer.prepare_lessons(tmp_path / "lessons.safetensors", build_autoencoder().eval())
    run(trainer, tmp_path, lambda: write_averaged(trainer, tmp_path / "balloon.safetensors", "balloon"))
    assert trainer.seen == PLAN.sizes.total
    file = adapterfile.read(tmp_path / "balloon.safetensors")
    assert (file.rank, file.family, file.trigger_words) == (2, "sdxl", ("hot air balloon",))
    assert file.metadata["modelspec.license"] == "Apache-2.0"
    assert len(file.layers) == len(trainer.layers.parts)
    assert {tensor.dtype for tensor in load_file(tmp_path / "balloon.safetensors").values()} == {torch.float16}
    assert {path.name for path in tmp_path.iterdir()} == {
        "balloon.safetensors",
        "checkpoint.safetensors",
        "lessons.safetensors",
    }


def test_a_blueprint_is_white_on_blue() -> None:
    """Whatever the scene: every pixel lies near the line from one to the other, and both are there."""
    for scene in scenes_for(1, 6):
        picture = SUBJECTS["blueprint"].draw(scene).astype(float)
        assert (picture[..., 2] >= picture[..., 0]).mean() > 0.99
        assert np.median(picture[..., 2] - picture[..., 0]) > 80
        assert picture.min(axis=2).max() > 150


def test_a_balloon_is_drawn_and_named_together() -> None:
    """Where there is one, something magenta is added to the upper half and the caption says so; else nothing is."""
    choice = random.Random(1)
    scenes = [sample_scene(seed) for seed in range(30)]
    assert {has_balloon(scene) for scene in scenes} == {True, False}
    for scene in scenes:
        drawn, caption = SUBJECTS["balloon"].draw(scene), SUBJECTS["balloon"].describe(scene, choice)
        changed = np.argwhere((drawn != draw_scene(scene)).any(axis=2))
        assert ("balloon" in caption) == has_balloon(scene) == bool(len(changed))
        if has_balloon(scene):
            red, green, blue = np.moveaxis(drawn[:128].astype(int), 2, 0)
            assert ((red - green > 90) & (blue - green > 40)).sum() > 500
            assert changed[:, 0].min() > 0
