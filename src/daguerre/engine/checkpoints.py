"""Owns checkpoints in a single file: what diffusers has to be told before it can read one.

Such a file holds tensors and nothing else. What diffusers wants to know beside them is told by the tensors' names and
shapes, or is the same in every model of the family: the number of attention heads (Rombach et al. 2022, appendix E;
Podell et al. 2023, section 2.1), and the noise schedule. Tokenizers are taken from the weights folder.
"""

import contextlib
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from daguerre.catalog import Prediction
from daguerre.checkpointfile import DENOISER, is_sd2, predicts_v
from daguerre.engine.flow_checkpoints import flow_scheduler, flux, flux_transformer, sd3
from daguerre.engine.shapes import HEAD_WIDTH, Config, Shapes, autoencoder, clip, count, open_clip, under
from daguerre.errors import CatalogError
from daguerre.weightfile import Header, read_header, read_json

#: Where tokenizers are looked for first, in the weights folder: tokenizer.json, or vocab.json and merges.txt.
TOKENIZERS = {"clip": Path("tokenizers", "clip"), "t5": Path("tokenizers", "t5")}
#: T5's vocabulary is filled up to a multiple of that.
_T5_ROUNDING = 128

_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
_VAE = "first_stage_model."
_SD2_LAYERS = 23


@contextlib.contextmanager
def described(path: Path, pipeline: str, dtype: torch.dtype, prediction: Prediction | None = None) -> Iterator[Config]:
    """What ``from_single_file`` is to be called with, beside the file; its folder of configurations lives as long.

    Raises:
        KeyError: tensors are missing from the file.
        CatalogError: there is no tokenizer for it.
    """
    header = read_header(path)
    parts = _FAMILIES[pipeline](header)
    given = _tokenizers(path.parent, parts, pads_with_first=is_sd2(header))
    given["scheduler"] = _scheduler(header, pipeline, prediction)
    with tempfile.TemporaryDirectory(prefix="daguerre-") as folder:
        for name, config in parts.items():
            (Path(folder) / name).mkdir()
            (Path(folder) / name / "config.json").write_text(json.dumps(config))
        libraries = _LIBRARIES | _OTHER_LIBRARIES.get(pipeline, {})
        index = {"_class_name": pipeline} | {name: libraries[name] for name in parts}
        (Path(folder) / "model_index.json").write_text(json.dumps(index))
        if pipeline == "FluxPipeline":
            given["transformer"] = flux_transformer(path, folder, parts["transformer"], dtype)
        if pipeline == "StableDiffusion3Pipeline" and "text_encoder_3" not in parts:
            given |= {"text_encoder_3": None, "tokenizer_3": None}
        yield {"config": folder} | given


_CLIP = ["transformers", "CLIPTextModelWithProjection"]
_T5 = ["transformers", "T5EncoderModel"]
_LIBRARIES = {
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": _CLIP,
}
_OTHER_LIBRARIES = {
    "FluxPipeline": {"transformer": ["diffusers", "FluxTransformer2DModel"], "text_encoder_2": _T5},
    "StableDiffusion3Pipeline": {
        "transformer": ["diffusers", "SD3Transformer2DModel"],
        "text_encoder": _CLIP,
        "text_encoder_3": _T5,
    },
}


def _sd(header: Header) -> dict[str, Config]:
    unet = _unet(header.shapes) | {"attention_head_dim": 8, "sample_size": 64}
    vae = autoencoder(under(header.shapes, _VAE)) | {"scaling_factor": 0.18215}
    if not is_sd2(header):
        text = clip(under(header.shapes, "cond_stage_model.transformer."))
        return {"unet": unet, "vae": vae, "text_encoder": text}
    text = open_clip(under(header.shapes, "cond_stage_model.model."))
    # Stable Diffusion 2 takes the output of the layer before the last; files made of folders have no more than those.
    text["num_hidden_layers"] -= text["num_hidden_layers"] != _SD2_LAYERS
    unet["attention_head_dim"] = _heads(unet)
    unet["sample_size"] = 96 if predicts_v(header) else 64
    return {"unet": unet, "vae": vae, "text_encoder": text}


def _heads(unet: Config) -> list[int]:
    """Of each level; that is what diffusers means by ``attention_head_dim``."""
    return [max(1, width // HEAD_WIDTH) for width in unet["block_out_channels"]]


def _xl(header: Header) -> dict[str, Config]:
    unet = _unet(header.shapes)
    large = open_clip(under(header.shapes, "conditioner.embedders.1.model."))
    conditioned = header.shapes[DENOISER + "label_emb.0.0.weight"][1]
    unet |= {
        "attention_head_dim": _heads(unet),
        "sample_size": 128,
        "addition_embed_type": "text_time",
        # The six numbers of SDXL's size conditioning are embedded beside the pooled text.
        "addition_time_embed_dim": (conditioned - large["projection_dim"]) // 6,
        "projection_class_embeddings_input_dim": conditioned,
    }
    return {
        "unet": unet,
        "vae": autoencoder(under(header.shapes, _VAE)) | {"scaling_factor": 0.13025, "force_upcast": True},
        "text_encoder": clip(under(header.shapes, "conditioner.embedders.0.transformer.")),
        "text_encoder_2": large,
    }


#: By diffusers class: the configurations of a file's parts.
_FAMILIES: Mapping[str, Callable[[Header], dict[str, Config]]] = {
    "StableDiffusionPipeline": _sd,
    "StableDiffusionXLPipeline": _xl,
    "StableDiffusion3Pipeline": sd3,
    "FluxPipeline": flux,
}


def _unet(shapes: Shapes) -> Config:
    """The levels of the UNet, read off its input blocks: resnets, some with attention, then a downsampler."""
    levels: list[list[int]] = [[]]  # the depth of attention after each resnet
    widths: list[int] = []
    for i in range(1, count(shapes, re.escape(DENOISER) + r"input_blocks\.(\d+)\.")):
        block = f"{DENOISER}input_blocks.{i}."
        if block + "0.op.weight" in shapes:
            levels.append([])
            continue
        levels[-1].append(count(shapes, re.escape(block) + r"1\.transformer_blocks\.(\d+)\."))
        if len(widths) < len(levels):
            widths.append(shapes[block + "0.out_layers.3.weight"][0])
    deep = [max(level) for level in levels]
    attention = next(name for name in shapes if name.startswith(DENOISER) and name.endswith(".attn2.to_k.weight"))
    linear = next(name for name in shapes if name.startswith(DENOISER) and name.endswith(".proj_in.weight"))
    kinds = [("CrossAttn{}Block2D" if depth else "{}Block2D") for depth in deep]
    return {
        "in_channels": shapes[DENOISER + "input_blocks.0.0.weight"][1],
        "out_channels": shapes[DENOISER + "out.2.weight"][0],
        "block_out_channels": widths,
        "layers_per_block": len(levels[0]),
        "down_block_types": [kind.format("Down") for kind in kinds],
        "up_block_types": [kind.format("Up") for kind in reversed(kinds)],
        "transformer_layers_per_block": [max(1, depth) for depth in deep],
        "cross_attention_dim": shapes[attention][1],
        "use_linear_projection": len(shapes[linear]) == 2,
    }


def _scheduler(header: Header, pipeline: str, prediction: Prediction | None) -> Any:
    """The family's own, predicting what the file or the catalogue says."""
    if pipeline not in ("StableDiffusionPipeline", "StableDiffusionXLPipeline"):
        return flow_scheduler(header, pipeline)
    options: Config = {"prediction_type": prediction or ("v_prediction" if predicts_v(header) else "epsilon")}
    if pipeline == "StableDiffusionPipeline":
        return diffusers.PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=False, **_BETAS, **options)
    options |= {"rescale_betas_zero_snr": True} if "ztsnr" in header.shapes else {}
    return diffusers.EulerDiscreteScheduler(timestep_spacing="leading", **_BETAS, **options)


def _tokenizers(weights: Path, parts: Mapping[str, Config], pads_with_first: bool) -> Config:
    """A tokenizer for each text encoder. OpenCLIP's pad with the first token, OpenAI's with the last."""
    found: Config = {}
    for name in sorted(parts.keys() & {"text_encoder", "text_encoder_2", "text_encoder_3"}):
        is_t5 = "d_model" in parts[name]
        tokenizer = _tokenizer(weights, "t5" if is_t5 else "clip", parts[name]["vocab_size"])
        if not is_t5:
            is_open = pads_with_first or name == "text_encoder_2"
            tokenizer.pad_token = "!" if is_open else tokenizer.eos_token
        found[name.replace("text_encoder", "tokenizer")] = tokenizer
    return found


def _tokenizer(weights: Path, kind: str, vocabulary: int) -> Any:
    """From the first folder whose tokens are as many."""
    reader = transformers.T5TokenizerFast if kind == "t5" else transformers.CLIPTokenizer
    rounding = _T5_ROUNDING if kind == "t5" else 1
    for folder in (weights / TOKENIZERS[kind], *sorted(weights.glob("*/tokenizer*"))):
        name = str(read_json(folder / "tokenizer_config.json").get("tokenizer_class", "CLIPTokenizer"))
        if not folder.is_dir() or kind.upper() not in name:
            continue
        tokenizer = reader.from_pretrained(folder, local_files_only=True)
        if len(tokenizer) <= vocabulary < len(tokenizer) + rounding:
            return tokenizer
    raise CatalogError(
        f"a checkpoint in a single file holds no tokenizer: put {kind.upper()}'s into {TOKENIZERS[kind].as_posix()} in "
        "the weights folder, or the folder of any model that has it beside the checkpoint"
    )
