"""Owns checkpoints in a single file of Stable Diffusion 3 and FLUX.1, by their makers' names.

Papers: Esser et al. 2024, "Scaling Rectified Flow Transformers"; FLUX.1's code is https://github.com/black-forest-labs/flux.
"""

import math
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors import safe_open

from daguerre import layernames
from daguerre.checkpointfile import AUTOENCODERS, CLIP_G, CLIP_L, DENOISER, T5
from daguerre.engine.shapes import HEAD_WIDTH, Config, Shapes, autoencoder, clip, count, t5, under
from daguerre.errors import CatalogError
from daguerre.weightfile import Header

_NORMS = {
    "img_attn.norm.query_norm": "attn.norm_q",
    "img_attn.norm.key_norm": "attn.norm_k",
    "txt_attn.norm.query_norm": "attn.norm_added_q",
    "txt_attn.norm.key_norm": "attn.norm_added_k",
    "norm.query_norm": "attn.norm_q",
    "norm.key_norm": "attn.norm_k",
}
_BLOCKS = {"double_blocks": "transformer_blocks", "single_blocks": "single_transformer_blocks"}


def sd3(header: Header) -> dict[str, Config]:
    """The configurations of Stable Diffusion 3's parts; a file without T5 gives a pipeline without."""
    shapes = header.shapes
    parts = {
        "transformer": _sd3_transformer(under(shapes, DENOISER)),
        "vae": _autoencoder(shapes) | {"scaling_factor": 1.5305, "shift_factor": 0.0609},
        "text_encoder": clip(under(shapes, CLIP_L)),
        "text_encoder_2": clip(under(shapes, CLIP_G), "gelu"),
    }
    return parts | ({"text_encoder_3": t5(under(shapes, T5))} if T5 + "shared.weight" in shapes else {})


def _sd3_transformer(shapes: Shapes) -> Config:
    width, channels, patch, _ = shapes["x_embedder.proj.weight"]
    layers = count(shapes, r"joint_blocks\.(\d+)\.")
    dual = [i for i in range(layers) if f"joint_blocks.{i}.x_block.attn2.qkv.weight" in shapes]
    return {
        "sample_size": 128,
        "patch_size": patch,
        "in_channels": channels,
        "out_channels": shapes["final_layer.linear.weight"][0] // patch**2,
        "num_layers": layers,
        "attention_head_dim": HEAD_WIDTH,
        "num_attention_heads": width // HEAD_WIDTH,
        "caption_projection_dim": width,
        "joint_attention_dim": shapes["context_embedder.weight"][1],
        "pooled_projection_dim": shapes["y_embedder.mlp.0.weight"][1],
        "pos_embed_max_size": math.isqrt(shapes["pos_embed"][1]),
        "dual_attention_layers": dual,
        "qk_norm": "rms_norm" if "joint_blocks.0.x_block.attn.ln_q.weight" in shapes else None,
    }


def flux(header: Header) -> dict[str, Config]:
    """The configurations of FLUX.1's parts."""
    shapes = header.shapes
    return {
        "transformer": _flux_transformer(under(shapes, DENOISER)),
        "vae": _autoencoder(shapes) | {"scaling_factor": 0.3611, "shift_factor": 0.1159},
        "text_encoder": clip(under(shapes, CLIP_L)),
        "text_encoder_2": t5(under(shapes, T5)),
    }


def _flux_transformer(shapes: Shapes) -> Config:
    width, channels = shapes["img_in.weight"]
    if channels != shapes["final_layer.linear.weight"][0]:
        raise CatalogError("it is a FLUX that starts from pictures; those are served from folders")
    (head,) = shapes["double_blocks.0.img_attn.norm.query_norm.scale"]
    return {
        "patch_size": 1,
        "in_channels": channels,
        "num_layers": count(shapes, r"double_blocks\.(\d+)\."),
        "num_single_layers": count(shapes, r"single_blocks\.(\d+)\."),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes["txt_in.weight"][1],
        "pooled_projection_dim": shapes["vector_in.in_layer.weight"][1],
        "guidance_embeds": "guidance_in.in_layer.weight" in shapes,
        "axes_dims_rope": [head // 8, head * 7 // 16, head * 7 // 16],
    }


def _autoencoder(shapes: Shapes) -> Config:
    prefix = next(prefix for prefix in AUTOENCODERS if f"{prefix}decoder.conv_in.weight" in shapes)
    return autoencoder(under(shapes, prefix))


def flow_scheduler(header: Header, pipeline: str) -> Any:
    """Stable Diffusion 3's and FLUX [dev]'s; [schnell], which has no guidance, does not shift by size."""
    if pipeline == "StableDiffusion3Pipeline":
        return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    is_dev = f"{DENOISER}guidance_in.in_layer.weight" in header.shapes
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0 if is_dev else 1.0, use_dynamic_shifting=is_dev)


def flux_transformer(path: Path, folder: str, config: Config, dtype: torch.dtype) -> Any:
    """FLUX's transformer; diffusers 0.42 reads it from one file only if it is 3,072 channels wide.

    Raises:
        KeyError: there is a tensor that FLUX has not.
    """
    with torch.device("meta"):
        expected = diffusers.FluxTransformer2DModel(**config).state_dict()
    with safe_open(path, "pt") as file:
        names = [name for name in file.keys() if name.startswith(DENOISER)]  # noqa: SIM118
        tensors = {name.removeprefix(DENOISER): file.get_tensor(name) for name in names}
    renamed = flux_tensors(tensors, {name: tuple(tensor.shape) for name, tensor in expected.items()})
    options = {"config": folder, "subfolder": "transformer", "local_files_only": True, "dtype": dtype}
    return diffusers.FluxTransformer2DModel.from_single_file(renamed, **options)


def flux_tensors(tensors: dict[str, torch.Tensor], expected: Shapes) -> dict[str, torch.Tensor]:
    """FLUX's tensors by diffusers' names; what was one matrix there is parted."""
    suffix = ".weight"
    linear = {f"transformer.{n.removesuffix(suffix)}": s for n, s in expected.items() if n.endswith(suffix)}
    known = layernames.names({name: shape for name, shape in linear.items() if len(shape) == 2})
    renamed: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(".")
        if kind == "scale":
            block, number, norm = layer.split(".", 2)
            renamed[f"{_BLOCKS[block]}.{number}.{_NORMS[norm]}.weight"] = tensor
        elif layer == "final_layer.adaLN_modulation.1":
            # The original's halves are shift and scale, those of diffusers scale and shift.
            renamed[f"norm_out.linear.{kind}"] = torch.cat(tensor.chunk(2)[::-1])
        else:
            targets = [target.removeprefix("transformer.") for target in layernames.find(layer, known) or ()]
            if not targets:
                raise KeyError(name)
            parts = tensor.split([expected[f"{target}.{kind}"][0] for target in targets])
            renamed |= {f"{target}.{kind}": part for target, part in zip(targets, parts, strict=True)}
    return renamed
