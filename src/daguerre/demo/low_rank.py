"""Owns the low-rank layers beside a UNet's own: LoRA after Hu et al. (2021), for linear layers and convolutions."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

UNTOUCHED = ("time_emb", "time_embedding", "add_embedding")  # they know nothing of what is painted


class LowRank(nn.Module):
    """What is added to one layer's output: up(down(x)); up begins as nothing, so that the layer begins unchanged."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int) -> None:
        super().__init__()
        weight = layer.weight
        self.down = nn.Parameter(torch.empty(rank, *weight.shape[1:]))
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank, *(1 for _ in weight.shape[2:])))
        nn.init.normal_(self.down, std=weight[0].numel() ** -0.5)
        self.convolution = {} if isinstance(layer, nn.Linear) else {"stride": layer.stride, "padding": layer.padding}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the change for the layer's input, [..., rows] or [B,rows,h,w]."""
        if not self.convolution:
            return functional.linear(functional.linear(x, self.down), self.up)
        return functional.conv2d(functional.conv2d(x, self.down, **self.convolution), self.up)


class LowRankLayers(nn.Module):
    """Low-rank layers for a UNet, at work in it from the moment that they are made."""

    def __init__(self, unet: nn.Module, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.parts = nn.ModuleDict()
        for name, layer in unet.named_modules():
            if isinstance(layer, nn.Linear | nn.Conv2d) and not any(word in name for word in UNTOUCHED):
                part = LowRank(layer, rank)
                self.parts[name.replace(".", "_")] = part
                layer.register_forward_hook(lambda _layer, inputs, output, part=part: output + part(inputs[0]))

    def write(self, path: Path, metadata: dict[str, str]) -> None:
        """Write them in kohya's layout, in float16, whole or not at all."""
        tensors = {}
        for name, part in self.parts.items():
            tensors[f"lora_unet_{name}.lora_down.weight"] = part.down.detach().half().contiguous()
            tensors[f"lora_unet_{name}.lora_up.weight"] = part.up.detach().half().contiguous()
            tensors[f"lora_unet_{name}.alpha"] = torch.tensor(float(self.rank)).half()
        partial = path.with_suffix(".partial")
        save_file(tensors, partial, metadata=metadata)
        partial.replace(path)
