"""Owns the two forms that every adapter's change of a layer is computed in: a low-rank product, and a Kronecker one.

A LoHa is a low-rank product too: the element-wise product of two of them has the products of their ranks' pairs as its
factors (the Khatri-Rao product; Hyeon-Woo et al. 2021, proposition 1). Where that rank would be higher than the layer's
own, the change is kept whole, as a product with the identity.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from daguerre.adapterfile import Layer

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class LowRank:
    """A change ``up.T @ down``: down [rank, columns], up [rank, rows], scaled already."""

    down: torch.Tensor
    up: torch.Tensor

    @property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What is to be held in memory."""
        return self.down, self.up


@dataclass(frozen=True, slots=True)
class Kronecker:
    """A change ``kron(outer, inner)``: outer [a, b], scaled already, inner [c, columns / b]."""

    outer: torch.Tensor
    inner: torch.Tensor

    @property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What is to be held in memory."""
        return self.outer, self.inner


Change = LowRank | Kronecker


def change(layer: Layer, tensors: Tensors, alpha: float | None, dtype: torch.dtype) -> Change:
    """A layer's change from its tensors by their part; without ``alpha`` it counts as it is.

    Computed in float32, so that a file in float16 and one in float32 give the same in ``dtype``.
    """
    is_copy = layer.kind == "lora" and alpha in (None, layer.rank) and "mid" not in tensors  # the most frequent case
    parts = tensors if is_copy else {part: tensor.float() for part, tensor in tensors.items()}
    makers: dict[str, Callable[[Tensors, float | None], Change]] = {"lora": _lora, "loha": _loha, "lokr": _lokr}
    found = makers[layer.kind](parts, alpha)
    first, second = (tensor.to(dtype).contiguous() for tensor in found.tensors)
    return type(found)(first, second)


def rows_of(found: LowRank, begin: int, end: int) -> LowRank:
    """The change of those rows only: of one of the layers that were one in the original."""
    return LowRank(found.down, found.up[:, begin:end].contiguous())


def _lora(parts: Tensors, alpha: float | None) -> LowRank:
    down, up = parts["down"], parts["up"].flatten(1)
    rank = down.shape[0]
    if "mid" in parts:
        down = torch.einsum("pqhw,qi->pihw", parts["mid"], down.flatten(1))
    scale = _scale(alpha, rank)
    return LowRank(down.flatten(1), up.T if scale == 1.0 else up.T * scale)


def _loha(parts: Tensors, alpha: float | None) -> LowRank:
    (up1, down1), (up2, down2) = (_pair(parts, f"w{i}_a", f"w{i}_b", f"t{i}") for i in (1, 2))
    rows, columns, scale = up1.shape[1], down1.shape[1], _scale(alpha, down1.shape[0])
    if up1.shape[0] * up2.shape[0] <= min(rows, columns):
        up = (up1[:, None] * up2[None]).flatten(0, 1)
        down = (down1[:, None] * down2[None]).flatten(0, 1)
        return LowRank(down, up * scale)
    whole = (up1.T @ down1) * (up2.T @ down2) * scale  # [rows, columns]
    return LowRank(whole, torch.eye(rows)) if rows <= columns else LowRank(torch.eye(columns), whole.T)


def _lokr(parts: Tensors, alpha: float | None) -> Kronecker:
    outer = parts["w1"] if "w1" in parts else parts["w1_a"] @ parts["w1_b"]
    if "w2" in parts:
        inner = parts["w2"].flatten(1)
    else:
        up, down = _pair(parts, "w2_a", "w2_b", "t2")
        inner = up.T @ down
    # Where both are whole there is no rank that alpha could be held against.
    decomposed = next((parts[name] for name in ("w2_b", "w1_b") if name in parts), None)
    return Kronecker(outer if decomposed is None else outer * _scale(alpha, decomposed.shape[0]), inner)


def _pair(parts: Tensors, a: str, b: str, core: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A product's factors, up [rank, rows] and down [rank, columns]; a core makes it a convolution's."""
    if core not in parts:
        return parts[a].T, parts[b]
    return parts[a], torch.einsum("pqhw,qi->pihw", parts[core], parts[b]).flatten(1)


def _scale(alpha: float | None, rank: int) -> float:
    return 1.0 if alpha is None else alpha / rank
