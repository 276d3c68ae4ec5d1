"""Owns a network's weights in training as one vector, with gradients, Adam's moments and a moving average beside it.

One vector makes the average over processes, the clipping, Adam's step and the moving average one call each.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn


class FlatWeights:
    """The weights of a network [P]; the network's own parameters and gradients become views of this vector."""

    def __init__(self, network: nn.Module, decay: float, world: int = 1) -> None:
        self.network, self.world, self.steps = network, world, 0
        weights = list(network.parameters())
        self.vector = nn.Parameter(torch.cat([weight.detach().reshape(-1) for weight in weights]))
        self.vector.grad = torch.zeros_like(self.vector)
        start = 0
        for weight in weights:
            end = start + weight.numel()
            weight.data = self.vector.data[start:end].view(weight.shape)
            weight.grad = self.vector.grad[start:end].view(weight.shape)
            start = end
        self.average = self.vector.detach().clone()
        self.optimizer = torch.optim.AdamW([self.vector], lr=0.0, betas=(0.9, 0.99), weight_decay=decay, fused=True)

    def descend(self, loss: torch.Tensor, rate: float, keep: float) -> float:
        """Take one step down the loss averaged over the processes, and return that loss.

        `keep` is what stays of the moving average; it is less at first, when there is little to keep.
        """
        gradient = self.vector.grad
        assert gradient is not None
        gradient.zero_()
        loss.backward()
        mean = loss.detach().clone()
        for shared in (gradient, mean) if self.world > 1 else ():
            dist.all_reduce(shared)
            shared /= self.world
        nn.utils.clip_grad_norm_([self.vector], 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        with torch.no_grad():
            self.average.lerp_(self.vector, 1 - min(keep, (1 + self.steps) / (15 + self.steps)))
        self.steps += 1
        return float(mean)

    def save(self, path: Path, notes: dict[str, str]) -> None:
        """Write weights, moving average, moments and notes, whole or not at all."""
        state = self.optimizer.state[self.vector]
        tensors = {"weights": self.vector.detach(), "average": self.average}
        if state:
            tensors |= {"first_moment": state["exp_avg"], "second_moment": state["exp_avg_sq"]}
        partial = path.with_suffix(".partial")
        save_file(tensors, partial, metadata={"steps": str(self.steps), **notes})
        partial.replace(path)

    def load(self, path: Path) -> dict[str, str]:
        """Take up what `save` wrote and return its notes."""
        with safe_open(path, framework="pt") as file:
            notes: dict[str, str] = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        self.steps = int(notes["steps"])
        with torch.no_grad():
            self.vector.copy_(tensors["weights"])
        self.average.copy_(tensors["average"])
        if "first_moment" in tensors:
            self.optimizer.state[self.vector] = {
                "step": torch.tensor(float(self.steps)),
                "exp_avg": tensors["first_moment"],
                "exp_avg_sq": tensors["second_moment"],
            }
        return notes

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the network have the moving average for weights for a while."""
        weights = self.vector.detach().clone()
        with torch.no_grad():
            self.vector.copy_(self.average)
            try:
                yield
            finally:
                self.vector.copy_(weights)
