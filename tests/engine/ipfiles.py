"""IP-Adapter files with random weights for the tiny models, image encoders beside them, and textual inversions."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]

#: Of the tiny image encoder, in pixels and channels.
SIDE, PROJECTED, HIDDEN = 32, 24, 16


def write_encoder(folder: Path, projected: int = PROJECTED) -> Path:
    """An image encoder in diffusers' layout."""
    config = transformers.CLIPVisionConfig(
        hidden_size=HIDDEN,
        intermediate_size=HIDDEN,
        projection_dim=projected,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=8,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        encoder = transformers.CLIPVisionModelWithProjection(config)
        for weight in encoder.parameters():
            if weight.ndim >= 2:
                torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    encoder.save_pretrained(folder)
    return folder


def attention(denoiser: Any, seed: int) -> Tensors:
    """Keys and values for each of a denoiser's attentions that look at the text, by the layout of its family."""
    torch.manual_seed(seed)
    is_flux = hasattr(denoiser, "transformer_blocks")
    names = [name for name in denoiser.attn_processors if not name.startswith("single_")]
    if not is_flux:
        names = [name for name in names if "attn2" in name]
    tensors: Tensors = {}
    for place, name in enumerate(names):
        layer = denoiser.get_submodule(name.removesuffix(".processor"))
        width = layer.to_k.weight.shape[0]
        context = denoiser.config.joint_attention_dim if is_flux else layer.to_k.weight.shape[1]
        for part in "kv":
            if is_flux:
                key = f"double_blocks.{place}.processor.ip_adapter_double_stream_{part}_proj"
                tensors[f"{key}.bias"] = torch.randn(width)
            else:
                key = f"ip_adapter.{2 * place + 1}.to_{part}_ip"
            # Within the tiny FLUX numbers are so large that only a loud adapter is heard.
            gain = 1000 if is_flux and part == "v" else 2
            tensors[f"{key}.weight"] = gain * torch.randn(width, context) * context**-0.5
    return tensors


def plain(denoiser: Any, seed: int = 0, encoder: int = PROJECTED) -> Tensors:
    """A plain IP-Adapter, which makes four tokens of one embedding."""
    tensors = attention(denoiser, seed)
    is_flux = hasattr(denoiser, "transformer_blocks")
    context = next(value.shape[1] for value in tensors.values() if value.ndim == 2)
    prefix = "ip_adapter_proj_model" if is_flux else "image_proj"
    return tensors | {
        f"{prefix}.proj.weight": torch.randn(4 * context, encoder),
        f"{prefix}.proj.bias": torch.randn(4 * context),
        f"{prefix}.norm.weight": torch.ones(context),
        f"{prefix}.norm.bias": torch.zeros(context),
    }


def plus(denoiser: Any, seed: int = 0, layers: int = 4, width: int = 64, tokens: int = 5) -> Tensors:
    """A plus IP-Adapter: a perceiver of four layers and one head looks at the encoder's hidden states."""
    tensors = attention(denoiser, seed)
    context = next(iter(tensors.values())).shape[1]
    random = torch.randn
    made: Tensors = {
        "latents": random(1, tokens, width),
        "proj_in.weight": random(width, HIDDEN) * 0.3,
        "proj_in.bias": random(width),
        "proj_out.weight": random(context, width) * 0.2,
        "proj_out.bias": random(context),
        "norm_out.weight": torch.ones(context),
        "norm_out.bias": torch.zeros(context),
    }
    for i in range(layers):
        for norm in ("norm1", "norm2"):
            made |= {f"layers.{i}.0.{norm}.weight": torch.ones(width), f"layers.{i}.0.{norm}.bias": random(width) * 0.1}
        made |= {
            f"layers.{i}.0.to_q.weight": random(64, width) * 0.2,
            f"layers.{i}.0.to_kv.weight": random(128, width) * 0.2,
            f"layers.{i}.0.to_out.weight": random(width, 64) * 0.2,
            f"layers.{i}.1.0.weight": torch.ones(width),
            f"layers.{i}.1.0.bias": torch.zeros(width),
            f"layers.{i}.1.1.weight": random(4 * width, width) * 0.1,
            f"layers.{i}.1.3.weight": random(width, 4 * width) * 0.1,
        }
    return tensors | {f"image_proj.{name}": tensor for name, tensor in made.items()}


def write(path: Path, tensors: Mapping[str, torch.Tensor]) -> Path:
    """Writes a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path
