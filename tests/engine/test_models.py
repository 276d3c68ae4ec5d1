"""Models of every family, from folders and from single files; and files that are not what they claim to be."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import original
import original_flow
import pytest
import torch
import transformers
from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers
from harness import THIRD_PARTY, Darkroom, assert_parity, assert_same, job, paint_all, plain
from safetensors.torch import load_file, save_file

from daguerre import catalog
from daguerre.catalog import Catalog
from daguerre.checkpointfile import pipeline_of
from daguerre.engine import checkpoints
from daguerre.engine.flow_checkpoints import flux_tensors
from daguerre.engine.pipelines import load
from daguerre.errors import CatalogError
from daguerre.weightfile import Header

pytestmark = THIRD_PARTY

DEMO = Path(__file__).parents[2] / "weights" / "demo-xl"
PART = "unet/diffusion_pytorch_model.safetensors"


BUILDERS: dict[str, tuple[Callable[[], Any], Any]] = {
    "sd": (lambda: original.build(False), original),
    "sd2": (original.build_sd2, original),
    "xl": (lambda: original.build(True), original),
    "sd3": (original_flow.build_sd3, original_flow),
    "sd3-without-t5": (lambda: original_flow.build_sd3(has_t5=False), original_flow),
    "flux": (original_flow.build_flux, original_flow),
}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """The same models twice: as folders, and as checkpoints in the original layout."""
    weights = tmp_path_factory.mktemp("both")
    for name, (build, layout) in BUILDERS.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            pipe = build()
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval().requires_grad_(False)
        pipe.save_pretrained(weights / f"{name}-folder")
        layout.write_checkpoint(pipe, weights / f"{name}-file.safetensors")
    return catalog.read(weights, "sd-folder")


def _copy(models: Catalog, name: str, to: Path) -> Catalog:
    shutil.copytree(models.model(name).path, to / "copy")
    return catalog.read(to, "copy")


@pytest.mark.parametrize("name", BUILDERS)
def test_a_checkpoint_paints_what_its_folder_paints(both: Catalog, name: str) -> None:
    """Every tensor found its place, and the configurations read off the shapes are the folder's."""
    fields: dict[str, Any] = {"width": 64, "height": 64, "prompt_syntax": "compel", "negative_prompt": "fog"}
    jobs = [job(both.model(f"{name}-{kind}"), "a (red)1.3 house by the sea", **fields) for kind in ("folder", "file")]
    outcomes, _ = paint_all(jobs)
    folder, file = (outcomes[submission.id] for submission in jobs)
    assert_same(folder.exact, file.exact)
    assert_same(folder.exact, plain(jobs[0]))
    assert np.unique(folder.picture).size > 20


def _on_meta(kind: Any, **config: Any) -> Any:
    with torch.device("meta"):
        configured = getattr(kind, "config_class", None) if issubclass(kind, transformers.PreTrainedModel) else None
        return kind(**config) if configured is None else kind(configured(**config))


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


SD2_UNET = SD15_UNET | {
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
    "sample_size": 96,
}
HUGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
HUGE |= {"hidden_act": "gelu"}
FLOW_VAE = VAE | {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
T5_XXL = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "vocab_size": 32128}
T5_XXL |= {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
FLUX = {"num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128, "num_attention_heads": 24}
FLUX |= {"in_channels": 64, "joint_attention_dim": 4096, "pooled_projection_dim": 768}
FLUX |= {"axes_dims_rope": (16, 56, 56)}
SD3 = {"sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "attention_head_dim": 64}
SD3 |= {"joint_attention_dim": 4096, "pooled_projection_dim": 2048}
SD3_MEDIUM = SD3 | {
    "num_layers": 24,
    "num_attention_heads": 24,
    "caption_projection_dim": 1536,
    "pos_embed_max_size": 192,
}
SD35_MEDIUM = SD3_MEDIUM | {"pos_embed_max_size": 384, "dual_attention_layers": tuple(range(13)), "qk_norm": "rms_norm"}

CLIP, PROJECTED = transformers.CLIPTextModel, transformers.CLIPTextModelWithProjection
WIDE = LARGE | {"projection_dim": 1280, "hidden_act": "gelu"}
SD3_TEXT = {
    "text_encoder": (PROJECTED, SMALL | {"projection_dim": 768}),
    "text_encoder_2": (PROJECTED, WIDE),
    "text_encoder_3": (transformers.T5EncoderModel, T5_XXL),
    "vae": (diffusers.AutoencoderKL, FLOW_VAE),
}
FLUX_TEXT = {
    "text_encoder": (CLIP, SMALL),
    "text_encoder_2": (transformers.T5EncoderModel, T5_XXL),
    "vae": (diffusers.AutoencoderKL, FLOW_VAE),
}
UNET, KL = diffusers.UNet2DConditionModel, diffusers.AutoencoderKL
MMDIT, FLUX_KIND = diffusers.SD3Transformer2DModel, diffusers.FluxTransformer2DModel
SD, SDXL = "StableDiffusionPipeline", "StableDiffusionXLPipeline"
#: Real models: the pipeline, and the class and configuration of each part; the first is the denoiser.
REAL: dict[str, tuple[str, dict[str, tuple[Any, dict[str, Any]]]]] = {
    "sd-1.5": (SD, {"unet": (UNET, SD15_UNET), "text_encoder": (CLIP, SMALL), "vae": (KL, VAE)}),
    "sd-2.1": (SD, {"unet": (UNET, SD2_UNET), "text_encoder": (CLIP, HUGE), "vae": (KL, VAE)}),
    "sdxl": (
        SDXL,
        {
            "unet": (UNET, SDXL_UNET),
            "text_encoder": (CLIP, SMALL),
            "text_encoder_2": (PROJECTED, WIDE),
            "vae": (KL, VAE),
        },
    ),
    "sd-3-medium": ("StableDiffusion3Pipeline", {"transformer": (MMDIT, SD3_MEDIUM), **SD3_TEXT}),
    "sd-3.5-medium": ("StableDiffusion3Pipeline", {"transformer": (MMDIT, SD35_MEDIUM), **SD3_TEXT}),
    "flux-dev": ("FluxPipeline", {"transformer": (FLUX_KIND, FLUX | {"guidance_embeds": True}), **FLUX_TEXT}),
    "flux-schnell": ("FluxPipeline", {"transformer": (FLUX_KIND, FLUX | {"guidance_embeds": False}), **FLUX_TEXT}),
}


def _real(name: str) -> tuple[Any, Header]:
    """A model at its real size without a byte of weights, and the header that its checkpoint would have."""
    kind, parts = REAL[name]
    pipe: Any = type(kind, (SimpleNamespace,), {})(
        **{part: _on_meta(cls, **config) for part, (cls, config) in parts.items()}
    )
    layout: Any = original if kind in (SD, SDXL) else original_flow
    return pipe, Header({name: tuple(tensor.shape) for name, tensor in layout.tensors_of(pipe).items()}, {}, 0)


@pytest.mark.parametrize("name", REAL)
def test_the_real_models_are_told_from_their_shapes(name: str) -> None:
    """Each part made of what was read has just the tensors it was, and the configuration that no tensor shows."""
    pipe, header = _real(name)
    kind, expected = REAL[name]
    assert pipeline_of(header) == kind
    parts = checkpoints._FAMILIES[kind](header)
    assert parts.keys() == vars(pipe).keys()
    for part, config in parts.items():
        made, wanted = _on_meta(expected[part][0], **config), getattr(pipe, part)
        assert {k: v.shape for k, v in made.state_dict().items()} == {
            k: v.shape for k, v in wanted.state_dict().items()
        }
        told = {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
        assert {key: told[key] for key in expected[part][1] if key in told} == {
            key: value for key, value in expected[part][1].items() if key in told
        }
        heads = {"num_attention_heads", "attention_head_dim", "num_heads"} & expected[part][1].keys()
        assert heads <= told.keys()


def test_flux_is_parted_as_diffusers_parts_it() -> None:
    """At its real size, where diffusers' own conversion works: the same tensors of the same shapes."""
    pipe, header = _real("flux-dev")
    prefix = "model.diffusion_model."
    tensors = {
        name.removeprefix(prefix): torch.empty(shape, device="meta")
        for name, shape in header.shapes.items()
        if name.startswith(prefix)
    }
    theirs = convert_flux_transformer_checkpoint_to_diffusers(dict(tensors))
    expected = {name: tuple(tensor.shape) for name, tensor in pipe.transformer.state_dict().items()}
    ours = flux_tensors(tensors, expected)
    assert {name: tuple(tensor.shape) for name, tensor in theirs.items()} == expected
    assert {name: tuple(tensor.shape) for name, tensor in ours.items()} == expected


def _reheaded(both: Catalog, name: str, to: Path, metadata: dict[str, str], drop: str = "-") -> Catalog:
    """A folder with that checkpoint alone, with other metadata, or without the tensors that begin so."""
    source = both.model(name).path
    shutil.copytree(source.parent / "tokenizers", to / "tokenizers")
    tensors = {key: tensor for key, tensor in load_file(source).items() if not key.startswith(drop)}
    save_file(tensors, to / "a.safetensors", metadata)
    return catalog.read(to, "a")


@pytest.mark.parametrize(
    ("metadata", "entry", "prediction", "side"),
    [
        ({}, "", "v_prediction", 768),
        ({"modelspec.prediction_type": "epsilon"}, "", "epsilon", 512),
        ({"modelspec.resolution": "512x512"}, "", "epsilon", 512),
        ({"modelspec.prediction_type": "v"}, "", "v_prediction", 768),
        ({}, 'prediction = "epsilon"', "epsilon", 768),
    ],
)
def test_what_stable_diffusion_2_predicts(
    both: Catalog, tmp_path: Path, metadata: dict[str, str], entry: str, prediction: str, side: int
) -> None:
    """By the file's metadata or the catalogue; without a word it is the 768-pixel model."""
    (tmp_path / "catalog.toml").write_text(f"[models.a]\n{entry}\n")
    model = _reheaded(both, "sd2-file", tmp_path, metadata).model()
    assert load(model, torch.float32)._pipe.scheduler.config.prediction_type == prediction
    assert model.native_size == (side, side)


PARTLY = {
    "text_encoders.": "CLIP-L, T5 not in it",
    "text_encoders.t5xxl": "T5 not in it",
    "vae.": "the VAE not in it",
    "model.": "no whole checkpoint of Stable Diffusion",
}


@pytest.mark.parametrize("drop", PARTLY)
def test_a_file_with_parts_missing_says_which(both: Catalog, tmp_path: Path, drop: str) -> None:
    """Before anything is loaded."""
    with pytest.raises(CatalogError, match=PARTLY[drop]):
        _reheaded(both, "flux-file", tmp_path, {}, drop).model()


def test_a_denoiser_alone_is_told_as_such(both: Catalog, tmp_path: Path) -> None:
    """As FLUX and Stable Diffusion 3 are also shared."""
    prefix = "model.diffusion_model."
    for name in ("flux-file", "sd3-file"):
        tensors = load_file(both.model(name).path)
        bare = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        save_file(bare, tmp_path / f"{name}.safetensors")
        with pytest.raises(CatalogError, match="holds a denoiser alone"):
            catalog.read(tmp_path, "a").model(name)


def test_a_flux_that_starts_from_pictures_is_refused(both: Catalog, tmp_path: Path) -> None:
    """FLUX Fill and its kin take more channels than they give."""
    found = _reheaded(both, "flux-file", tmp_path, {})
    tensors = load_file(found.model().path)
    name = "model.diffusion_model.img_in.weight"
    save_file(tensors | {name: tensors[name].repeat(1, 6)}, tmp_path / "a.safetensors")
    with pytest.raises(CatalogError, match="starts from pictures"):
        load(catalog.read(tmp_path, "a").model(), torch.float32)


def test_t5s_tokenizer_is_asked_for(both: Catalog, tmp_path: Path) -> None:
    """By its name; CLIP's does not do instead."""
    found = _reheaded(both, "flux-file", tmp_path, {})
    shutil.rmtree(tmp_path / "tokenizers" / "t5")
    with pytest.raises(CatalogError, match="put T5's into tokenizers/t5"):
        load(found.model(), torch.float32)


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
