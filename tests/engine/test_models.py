"""Models of every family, from folders and from single files; and files that are not what they claim to be."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import original
import pytest
import torch
import transformers
from harness import THIRD_PARTY, Darkroom, assert_parity, difference, job, paint_all, plain
from safetensors.torch import load_file, save_file

from daguerre import catalog
from daguerre.catalog import Catalog
from daguerre.engine import checkpoints
from daguerre.engine.pipelines import load
from daguerre.errors import CatalogError
from daguerre.weightfile import Header

pytestmark = THIRD_PARTY

DEMO = Path(__file__).parents[2] / "weights" / "demo-xl"
PART = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """The same two models twice: as folders, and as checkpoints in the original layout."""
    weights = tmp_path_factory.mktemp("both")
    for name, is_xl in (("sd", False), ("xl", True)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            pipe = original.build(is_xl)
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval().requires_grad_(False)
        pipe.save_pretrained(weights / f"{name}-folder")
        original.write_checkpoint(pipe, weights / f"{name}-file.safetensors")
    return catalog.read(weights, "sd-folder")


def _copy(models: Catalog, name: str, to: Path) -> Catalog:
    shutil.copytree(models.model(name).path, to / "copy")
    return catalog.read(to, "copy")


@pytest.mark.parametrize("name", ["sd", "xl"])
def test_a_checkpoint_paints_what_its_folder_paints(both: Catalog, name: str) -> None:
    """Every tensor found its place, and the configurations read off the shapes are the folder's."""
    fields: dict[str, Any] = {"width": 64, "height": 64, "prompt_syntax": "compel", "negative_prompt": "fog"}
    jobs = [job(both.model(f"{name}-{kind}"), "a (red)1.3 house by the sea", **fields) for kind in ("folder", "file")]
    outcomes, _ = paint_all(jobs)
    folder, file = (outcomes[submission.id].picture for submission in jobs)
    assert difference(folder, file) <= 1
    assert difference(folder, plain(jobs[0])) <= 1
    assert np.unique(folder).size > 20


def _on_meta(kind: Any, **config: Any) -> Any:
    with torch.device("meta"):
        return kind(transformers.CLIPTextConfig(**config)) if "CLIP" in kind.__name__ else kind(**config)


SD15_UNET = {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64}
SDXL_UNET = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
SMALL = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
LARGE = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}


@pytest.mark.parametrize("is_xl", [False, True])
def test_the_real_models_are_told_from_their_shapes(is_xl: bool) -> None:
    """At their real sizes, without a byte of weights: each part made of what was read has just the tensors it was."""
    pipe = SimpleNamespace(
        unet=_on_meta(diffusers.UNet2DConditionModel, **(SDXL_UNET if is_xl else SD15_UNET)),
        vae=_on_meta(diffusers.AutoencoderKL, **VAE),
        text_encoder=_on_meta(transformers.CLIPTextModel, **SMALL),
    )
    if is_xl:
        pipe.text_encoder_2 = _on_meta(
            transformers.CLIPTextModelWithProjection, **LARGE, projection_dim=1280, hidden_act="gelu"
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in original.tensors_of(pipe).items()}
    header = Header(shapes, {}, 0)
    parts = checkpoints._xl(header) if is_xl else checkpoints._sd(header)
    assert parts.keys() == vars(pipe).keys()
    for name, config in parts.items():
        expected = getattr(pipe, name)
        made = _on_meta(type(expected), **config)
        assert {k: v.shape for k, v in made.state_dict().items()} == {
            k: v.shape for k, v in expected.state_dict().items()
        }
    expected = SDXL_UNET if is_xl else SD15_UNET
    told = {key: tuple(value) if isinstance(value, list) else value for key, value in parts["unet"].items()}
    assert {key: told[key] for key in expected} == expected
    for name in ("text_encoder", "text_encoder_2")[: 1 + is_xl]:
        assert parts[name]["num_attention_heads"] == getattr(pipe, name).config.num_attention_heads


def test_the_tokenizer_comes_from_the_weights_folder(both: Catalog, tmp_path: Path) -> None:
    """From its own place, or from a model's folder beside the checkpoint; one of another size is not taken."""
    weights = both.model("sd-file").path.parent
    shutil.copy(weights / "sd-file.safetensors", tmp_path)
    shutil.copytree(DEMO / "tokenizer", tmp_path / "demo" / "tokenizer")  # of 1,059 tokens
    with pytest.raises(CatalogError, match="tokenizers/clip"):
        load(catalog.read(tmp_path, "sd-file").model(), torch.float32)
    shutil.copytree(weights / "tokenizers" / "clip", tmp_path / "other" / "tokenizer")
    assert load(catalog.read(tmp_path, "sd-file").model(), torch.float32)._pipe.tokenizer.eos_token_id == 513


def test_a_v_prediction_checkpoint_is_told_by_its_mark(both: Catalog, tmp_path: Path) -> None:
    """Its picture is another one than that of the same weights taken to predict noise."""
    tensors = load_file(both.model("xl-file").path)
    shutil.copytree(both.model("xl-file").path.parent / "tokenizers", tmp_path / "tokenizers")
    save_file(tensors | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, tmp_path / "v.safetensors")
    pipe = load(catalog.read(tmp_path, "v").model(), torch.float32)._pipe
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    assert pipe.scheduler.config.rescale_betas_zero_snr


def test_a_vae_of_the_catalogue_takes_the_place_of_the_models_own(models: Catalog, tmp_path: Path) -> None:
    """Both in a folder and in a single file."""
    found = _copy(models, "sd15", tmp_path)
    vae = tmp_path / "vaes" / "loud"
    shutil.copytree(found.model().path / "vae", vae)
    weights = load_file(vae / "diffusion_pytorch_model.safetensors")
    save_file({name: 2 * tensor for name, tensor in weights.items()}, vae / "diffusion_pytorch_model.safetensors")
    (tmp_path / "catalog.toml").write_text('[models.copy]\nvae = "loud"\n')
    own = load(models.model("sd15"), torch.float32)._pipe.vae.state_dict()
    loud = load(found.model(), torch.float32)._pipe.vae.state_dict()
    assert all(torch.equal(2 * own[name], loud[name]) for name in own)


def test_a_folder_of_half_precision_alone_is_loaded(models: Catalog, tmp_path: Path) -> None:
    """As the Hub's ``fp16`` variants are named."""
    found = _copy(models, "sd15", tmp_path)
    for path in found.model().path.rglob("*.safetensors"):
        tensors = {
            name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in load_file(path).items()
        }
        save_file(tensors, path.with_name(path.name.replace(".safetensors", ".fp16.safetensors")), {"format": "pt"})
        path.unlink()
    unet = load(found.model(), torch.float32)._pipe.unet
    assert next(unet.parameters()).dtype == torch.float32


def test_a_part_of_half_precision_beside_plain_ones_is_loaded(models: Catalog, tmp_path: Path) -> None:
    """As in repositories where only the large parts have a variant."""
    found = _copy(models, "sd15", tmp_path)
    part = found.model().path / PART
    part.rename(part.with_name("diffusion_pytorch_model.fp16.safetensors"))
    ours, plain_ones = (load(model, torch.float32)._pipe for model in (found.model(), models.model("sd15")))
    for name in ("unet", "vae", "text_encoder"):
        expected = getattr(plain_ones, name).state_dict()
        assert all(torch.equal(tensor, expected[key]) for key, tensor in getattr(ours, name).state_dict().items())


def test_the_safety_checker_is_neither_needed_nor_loaded(models: Catalog, tmp_path: Path) -> None:
    """An index as Stable Diffusion 1.5's, with a class that libraries have renamed since."""
    folder = _copy(models, "sd15", tmp_path).model().path
    index = json.loads((folder / "model_index.json").read_text())
    index |= {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPFeatureExtractor"],
        "requires_safety_checker": True,
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "feature_extractor").mkdir()
    pipe = load(catalog.read(tmp_path, "copy").model(), torch.float32)._pipe
    assert pipe.safety_checker is None


def _drop_tensors(path: Path) -> None:
    tensors = load_file(path)
    save_file(dict(list(tensors.items())[1:]), path, {"format": "pt"})


def _misshape(path: Path) -> None:
    tensors = load_file(path)
    save_file({name: tensor[..., None].repeat_interleave(2, -1) for name, tensor in tensors.items()}, path)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _disguise(path: Path) -> None:
    torch.save({"w": torch.zeros(3)}, path)


def _other_class(path: Path) -> None:
    index = path.parent.parent / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"unet": ["diffusers", "NoSuchModel"]}))


def _other_pipeline(path: Path) -> None:
    index = path.parent.parent / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": "NoSuchPipeline"}))


def _function(path: Path) -> None:
    index = path.parent.parent / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": "is_torch_available"}))


def _no_config(path: Path) -> None:
    (path.parent / "config.json").write_text('{"block_out_channels": "wide"}')


HARM = [_drop_tensors, _misshape, _cut, _disguise, _other_class, _other_pipeline, _function, _no_config]


@pytest.mark.parametrize("harm", HARM)
def test_files_that_change_after_they_were_vetted_are_vetted_again(models: Catalog, tmp_path: Path, harm: Any) -> None:
    """Between the request and the load: the job fails with a clear problem, nothing is loaded, others are painted."""
    bad = job(_copy(models, "sd15", tmp_path).model(), "a bridge")
    good = job(models.model("sd15"), "a bridge")
    harm(tmp_path / "copy" / PART)
    outcomes, _ = paint_all([bad, good])
    error = outcomes[bad.id].error
    assert isinstance(error, CatalogError)
    assert "copy" in error.message
    assert str(tmp_path) not in error.message
    assert_parity([good], {good.id: outcomes[good.id]})


def test_a_mended_model_is_loaded_when_it_is_next_asked_for(models: Catalog, tmp_path: Path) -> None:
    """A load that failed is not remembered."""
    model = _copy(models, "sd15", tmp_path).model()
    part = tmp_path / "copy" / PART
    whole = part.read_bytes()
    with Darkroom() as darkroom:
        _cut(part)
        assert isinstance(darkroom.paint(job(model, "a bridge")).error, CatalogError)
        part.write_bytes(whole)
        assert isinstance(darkroom.paint(job(model, "a bridge")).picture, np.ndarray)
