"""Owns checkpoints in a single file, of Stable Diffusion 1.x and XL in their original layout.

Such a file holds tensors and nothing else. What diffusers wants to know beside them is told by the tensors' names and
shapes, or is the same in every model of the family: the number of attention heads (Rombach et al. 2022, appendix E;
Podell et al. 2023, section 2.1), and the noise schedule. CLIP's tokenizer is taken from the weights folder.
"""

import contextlib
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
import transformers

from daguerre.errors import CatalogError
from daguerre.weightfile import Header, read_header

#: Where CLIP's tokenizer is looked for first, in the weights folder: tokenizer.json, or vocab.json and merges.txt.
TOKENIZER = Path("tokenizers", "clip")
HEAD_WIDTH = 64  # of SDXL's UNet and of every CLIP text encoder

Config = dict[str, Any]
Shapes = Mapping[str, tuple[int, ...]]

_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
_UNET, _VAE = "model.diffusion_model.", "first_stage_model."


@contextlib.contextmanager
def described(path: Path, pipeline: str) -> Iterator[Config]:
    """What ``from_single_file`` is to be called with, beside the file; its folder of configurations lives as long.

    Raises:
        KeyError: tensors are missing from the file.
        CatalogError: there is no tokenizer for it.
    """
    header = read_header(path)
    is_xl = pipeline == "StableDiffusionXLPipeline"
    parts = _xl(header) if is_xl else _sd(header)
    tokenizers = _tokenizers(path.parent, parts["text_encoder"]["vocab_size"], is_xl)
    with tempfile.TemporaryDirectory(prefix="daguerre-") as folder:
        for name, config in parts.items():
            (Path(folder) / name).mkdir()
            (Path(folder) / name / "config.json").write_text(json.dumps(config))
        index = {"_class_name": pipeline} | {name: _LIBRARIES[name] for name in parts}
        (Path(folder) / "model_index.json").write_text(json.dumps(index))
        yield {"config": folder, "scheduler": _scheduler(header, is_xl)} | tokenizers


_LIBRARIES = {
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
}


def _sd(header: Header) -> dict[str, Config]:
    unet = _unet(header.shapes) | {"attention_head_dim": 8, "sample_size": 64}
    clip = _clip(_under(header, "cond_stage_model.transformer.text_model."))
    return {"unet": unet, "vae": _vae(header) | {"scaling_factor": 0.18215}, "text_encoder": clip}


def _xl(header: Header) -> dict[str, Config]:
    unet = _unet(header.shapes)
    large = _open_clip(_under(header, "conditioner.embedders.1.model."))
    conditioned = header.shapes[_UNET + "label_emb.0.0.weight"][1]
    unet |= {
        "attention_head_dim": [max(1, width // HEAD_WIDTH) for width in unet["block_out_channels"]],
        "sample_size": 128,
        "addition_embed_type": "text_time",
        # The six numbers of SDXL's size conditioning are embedded beside the pooled text.
        "addition_time_embed_dim": (conditioned - large["projection_dim"]) // 6,
        "projection_class_embeddings_input_dim": conditioned,
    }
    return {
        "unet": unet,
        "vae": _vae(header) | {"scaling_factor": 0.13025, "force_upcast": True},
        "text_encoder": _clip(_under(header, "conditioner.embedders.0.transformer.text_model.")),
        "text_encoder_2": large,
    }


def _under(header: Header, prefix: str) -> Shapes:
    return {name.removeprefix(prefix): shape for name, shape in header.shapes.items() if name.startswith(prefix)}


def _count(shapes: Shapes, pattern: str) -> int:
    """How many numbers a pattern's group takes, from 0 on."""
    found = {int(match[1]) for name in shapes if (match := re.match(pattern, name))}
    return max(found, default=-1) + 1


def _unet(shapes: Shapes) -> Config:
    """The levels of the UNet, read off its input blocks: resnets, some with attention, then a downsampler."""
    levels: list[list[int]] = [[]]  # the depth of attention after each resnet
    widths: list[int] = []
    for i in range(1, _count(shapes, re.escape(_UNET) + r"input_blocks\.(\d+)\.")):
        block = f"{_UNET}input_blocks.{i}."
        if block + "0.op.weight" in shapes:
            levels.append([])
            continue
        levels[-1].append(_count(shapes, re.escape(block) + r"1\.transformer_blocks\.(\d+)\."))
        if len(widths) < len(levels):
            widths.append(shapes[block + "0.out_layers.3.weight"][0])
    deep = [max(level) for level in levels]
    attention = next(name for name in shapes if name.startswith(_UNET) and name.endswith(".attn2.to_k.weight"))
    linear = next(name for name in shapes if name.startswith(_UNET) and name.endswith(".proj_in.weight"))
    kinds = [("CrossAttn{}Block2D" if depth else "{}Block2D") for depth in deep]
    return {
        "in_channels": shapes[_UNET + "input_blocks.0.0.weight"][1],
        "out_channels": shapes[_UNET + "out.2.weight"][0],
        "block_out_channels": widths,
        "layers_per_block": len(levels[0]),
        "down_block_types": [kind.format("Down") for kind in kinds],
        "up_block_types": [kind.format("Up") for kind in reversed(kinds)],
        "transformer_layers_per_block": [max(1, depth) for depth in deep],
        "cross_attention_dim": shapes[attention][1],
        "use_linear_projection": len(shapes[linear]) == 2,
    }


def _vae(header: Header) -> Config:
    shapes = _under(header, _VAE)
    levels = _count(shapes, r"encoder\.down\.(\d+)\.")
    return {
        "block_out_channels": [shapes[f"encoder.down.{i}.block.0.conv1.weight"][0] for i in range(levels)],
        "layers_per_block": _count(shapes, r"encoder\.down\.0\.block\.(\d+)\."),
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def _clip(shapes: Shapes) -> Config:
    """OpenAI's text encoder."""
    vocabulary, width = shapes["embeddings.token_embedding.weight"]
    layers = _count(shapes, r"encoder\.layers\.(\d+)\.")
    inner = shapes["encoder.layers.0.mlp.fc1.weight"][0]
    return _text_config(vocabulary, width, layers, inner) | {"hidden_act": "quick_gelu", "projection_dim": width}


def _open_clip(shapes: Shapes) -> Config:
    """OpenCLIP's text encoder, with the projection of the pooled text."""
    vocabulary, width = shapes["token_embedding.weight"]
    layers = _count(shapes, r"transformer\.resblocks\.(\d+)\.")
    inner = shapes["transformer.resblocks.0.mlp.c_fc.weight"][0]
    config = _text_config(vocabulary, width, layers, inner)
    return config | {"hidden_act": "gelu", "projection_dim": shapes["text_projection"][1]}


def _text_config(vocabulary: int, width: int, layers: int, inner: int) -> Config:
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "intermediate_size": inner,
        "num_attention_heads": max(1, width // HEAD_WIDTH),
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
    }


def _scheduler(header: Header, is_xl: bool) -> Any:
    """The family's own; SDXL models that predict v instead of noise say so by an empty tensor of that name."""
    if not is_xl:
        return diffusers.PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=False, **_BETAS)
    options: Config = {"prediction_type": "v_prediction"} if "v_pred" in header.shapes else {}
    options |= {"rescale_betas_zero_snr": True} if "ztsnr" in header.shapes else {}
    return diffusers.EulerDiscreteScheduler(timestep_spacing="leading", **_BETAS, **options)


def _tokenizers(weights: Path, vocabulary: int, is_xl: bool) -> Config:
    """CLIP's tokenizer, and a second that pads as OpenCLIP does, from the first folder whose tokens are as many."""
    for folder in (weights / TOKENIZER, *sorted(weights.glob("*/tokenizer"))):
        if not folder.is_dir():
            continue
        first = transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        if len(first) == vocabulary:
            second = transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True, pad_token="!")  # noqa: S106
            return {"tokenizer": first} | ({"tokenizer_2": second} if is_xl else {})
    raise CatalogError(
        f"a checkpoint in a single file holds no tokenizer: put CLIP's into {TOKENIZER.as_posix()} in the weights "
        "folder, or the folder of any Stable Diffusion model beside it"
    )
