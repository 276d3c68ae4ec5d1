"""Writes adapters with random weights, in the layouts of those who train them, for the tiny models of the tests."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

Tensors = dict[str, torch.Tensor]

#: Layers of the denoiser that the adapters change, by how their paths end.
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FEED_FORWARD = ("proj", "net.2", "proj_in", "proj_out")
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut")
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


def layers(module: nn.Module, endings: tuple[str, ...]) -> dict[str, nn.Module]:
    """The Linear and Conv2d layers of a module whose paths end so."""
    found = {
        path: layer
        for path, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and path.endswith(tuple("." + ending for ending in endings))
    }
    assert found
    return found


def random(*shape: int, gain: float = 1.0) -> torch.Tensor:
    """Weights that change a picture plainly."""
    return torch.randn(*shape) * gain


def lora(layer: Any, rank: int = 4) -> Tensors:
    """A LoRA's two matrices: kernels where the layer is a convolution."""
    rows, inputs, *kernel = layer.weight.shape
    ones = [1] * len(kernel)
    return {
        "down": random(rank, inputs, *kernel, gain=0.5 / (inputs**0.5)),
        "up": random(rows, rank, *ones, gain=0.5),
    }


def diffusers_lora(parts: Mapping[str, Mapping[str, Any]], rank: int = 4, seed: int = 1) -> Tensors:
    """As ``save_lora_weights`` writes: ``unet.PATH.lora_A.weight``."""
    torch.manual_seed(seed)
    tensors: Tensors = {}
    for part, found in parts.items():
        for path, layer in found.items():
            made = lora(layer, rank)
            tensors[f"{part}.{path}.lora_A.weight"] = made["down"]
            tensors[f"{part}.{path}.lora_B.weight"] = made["up"]
    return tensors


def flat_lora(named: Mapping[str, Any], rank: int = 4, seed: int = 2, alpha: float | None = 2.0) -> Tensors:
    """As kohya's scripts write: ``lora_unet_PATH.lora_down.weight``, and an alpha."""
    torch.manual_seed(seed)
    tensors: Tensors = {}
    for name, layer in named.items():
        made = lora(layer, rank)
        tensors[f"{name}.lora_down.weight"] = made["down"]
        tensors[f"{name}.lora_up.weight"] = made["up"]
        if alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
    return tensors


def kohya(path: str, prefix: str = "lora_unet_") -> str:
    """kohya's name of a diffusers layer."""
    return prefix + path.replace(".", "_")


def write(path: Path, tensors: Tensors, metadata: Mapping[str, Any] | None = None) -> Path:
    """Writes a file."""
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in (metadata or {}).items()}
    path.parent.mkdir(exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, texts or None)
    return path


def loha(layer: Any, rank: int = 2, is_tucker: bool = False) -> tuple[Tensors, torch.Tensor]:
    """A LoHa's tensors, and the weight that they make, by LyCORIS's definition; alpha is 1."""
    rows, inputs, *kernel = layer.weight.shape
    columns = inputs * int(torch.tensor(kernel).prod()) if kernel else inputs
    tensors: Tensors = {"alpha": torch.tensor(1.0)}
    halves = []
    for i in (1, 2):
        if is_tucker:
            core = tensors[f"hada_t{i}"] = random(rank, rank, *kernel, gain=0.5)
            a = tensors[f"hada_w{i}_a"] = random(rank, rows)
            b = tensors[f"hada_w{i}_b"] = random(rank, inputs, gain=0.6)
            halves.append(torch.einsum("pqhw,po,qi->oihw", core, a, b))
        else:
            a = tensors[f"hada_w{i}_a"] = random(rows, rank)
            b = tensors[f"hada_w{i}_b"] = random(rank, columns, gain=0.5)
            halves.append((a @ b).view(layer.weight.shape))
    return tensors, halves[0] * halves[1] / rank


def lokr(layer: Any, factor: int = 4, rank: int | None = None) -> tuple[Tensors, torch.Tensor]:
    """A LoKr's tensors, and the weight that they make; without a rank the second matrix is whole and alpha is idle."""
    rows, inputs, *kernel = layer.weight.shape
    small = 2 if rows % factor or inputs % factor else factor
    a, b = (small if side % small == 0 else 1 for side in (rows, inputs))
    shape = [rows // a, inputs // b, *kernel]
    outer = random(a, b)
    tensors: Tensors = {"lokr_w1": outer, "alpha": torch.tensor(1.0)}
    if rank is None:
        inner = tensors["lokr_w2"] = random(*shape, gain=0.2)
        scale = 1.0
    else:
        left = tensors["lokr_w2_a"] = random(shape[0], rank)
        right = tensors["lokr_w2_b"] = random(rank, int(torch.tensor(shape[1:]).prod()), gain=0.3)
        inner, scale = (left @ right).view(shape), 1.0 / rank
    return tensors, torch.kron(outer.view(a, b, *[1] * len(kernel)), inner) * scale


Make = Callable[[Any], tuple[Tensors, torch.Tensor]]


def lycoris(named: Mapping[str, tuple[str, Any]], make: Make, seed: int = 3) -> tuple[Tensors, Tensors]:
    """A LyCORIS file for layers by their flat names, and the weights that it makes by ``part.path``."""
    torch.manual_seed(seed)
    tensors: Tensors = {}
    deltas: Tensors = {}
    for name, (path, layer) in named.items():
        made, deltas[path] = make(layer)
        tensors |= {f"{name}.{part}": tensor for part, tensor in made.items()}
    return tensors, deltas
