"""Owns adapters in place: slots on the layers of a pipeline, and copying the weights of adapters into them.

A layer that an adapter changes gets a slot once: its forward then adds what the slot holds. The tensors of a slot are
allocated for a rank of a few sizes and stay; all adapters that are used together lie in them side by side, each
with its weight. Switching is a copy into them: nothing is loaded, built or compiled anew. They grow before a picture
begins, so that who counts the device's bytes can make room for them first. For the engine thread only.
"""

import contextlib
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from daguerre import adapterfile
from daguerre.engine.adapter_cache import Hosted
from daguerre.engine.factors import Change, Kronecker, LowRank, rows_of
from daguerre.errors import CatalogError, FieldError, InvalidRecipe
from daguerre.layernames import DENOISERS, ENCODERS

#: The ranks that slots are allocated for double from here on.
LEAST_RANK = 8

#: Adapters and their weights.
Worn = Sequence[tuple[Hosted, float]]


@dataclass(slots=True)
class Slot:
    """What is added to one layer, a Linear or a Conv2d: ``up.T @ down`` and any number of Kronecker products."""

    layer: Any
    device: torch.device  # where the layer computes, even if its own weights are not there all the time
    is_used: bool = False
    down: torch.Tensor | None = None  # [rank, columns], as the layer's weight: [rank, inputs, height, width]
    up: torch.Tensor | None = None  # [rank, rows]
    kroneckers: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    kronecker_bytes: int = 0  # that these may take

    @property
    def bytes(self) -> int:
        """On the device."""
        low = 0 if self.down is None or self.up is None else self.down.nbytes + self.up.nbytes
        return low + self.kronecker_bytes

    def lacks(self, changes: Sequence[Change]) -> int:
        """Bytes that it needs for these beyond those that it has."""
        weight, present = self.layer.weight, 0 if self.up is None else self.up.shape[0]
        rank = max(0, _rounded(_rank(changes)) - present)
        products = max(0, _kronecker_bytes(changes) - self.kronecker_bytes)
        return int(rank * (weight[0].numel() + weight.shape[0]) * weight.itemsize + products)

    def grow(self, changes: Sequence[Change]) -> None:
        """Takes what these need; what lay in it may be lost."""
        self._make_room(_rank(changes))
        self.kronecker_bytes = max(self.kronecker_bytes, _kronecker_bytes(changes))

    def attach(self) -> None:
        """From now on the layer computes with what the slot holds."""
        compute, layer = self.layer.forward, self.layer

        def forward(x: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = compute(x)
            return self._added(x, output) if self.is_used else output

        layer.forward = forward

    def _added(self, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        is_linear = isinstance(self.layer, nn.Linear)
        if self.up is not None and self.down is not None:
            if is_linear:
                output = output + functional.linear(x, self.down) @ self.up
            else:
                output = output + functional.conv2d(self._convolved(x, self.down), self.up.T[..., None, None])
        for outer, inner in self.kroneckers:
            output = output + (_kron_linear(x, outer, inner) if is_linear else self._kron_convolved(x, outer, inner))
        return output

    def _convolved(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        layer = self.layer
        return functional.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation)

    def _kron_convolved(self, x: torch.Tensor, outer: torch.Tensor, inner: torch.Tensor) -> torch.Tensor:
        """The inputs in ``b`` groups go through the inner convolution; the outer matrix mixes what comes of them."""
        count, groups = x.shape[0], outer.shape[1]
        y = self._convolved(x.reshape(count * groups, -1, *x.shape[2:]), inner)
        return torch.einsum("ab,nbchw->nachw", outer, y.unflatten(0, (count, groups))).flatten(1, 2)

    def fill(self, changes: Sequence[tuple[Change, float]]) -> None:
        """Puts these in, each with its weight, and nothing else."""
        low = [(change, weight) for change, weight in changes if isinstance(change, LowRank)]
        krons = [(change, weight) for change, weight in changes if isinstance(change, Kronecker)]
        self.grow([change for change, _ in changes])
        self._fill_low(low)
        self._fill_kroneckers(krons)
        self.is_used = True

    def _fill_low(self, changes: Sequence[tuple[LowRank, float]]) -> None:
        if self.down is None or self.up is None:
            return
        down, up = self.down, self.up
        begin = 0
        for change, weight in changes:
            end = begin + change.down.shape[0]
            down[begin:end].copy_(change.down.view(-1, *down.shape[1:]), non_blocking=True)
            _copy_scaled(up[begin:end], change.up, weight)
            begin = end
        if begin < up.shape[0]:
            up[begin:].zero_()

    def _make_room(self, rank: int) -> None:
        """Tensors for that rank at least, on the layer's device."""
        weight, present = self.layer.weight, 0 if self.up is None else self.up.shape[0]
        if present < rank:
            size = _rounded(rank)
            self.down, self.up = (
                weight.new_zeros(size, *shape, device=self.device) for shape in (weight.shape[1:], weight.shape[:1])
            )

    def _fill_kroneckers(self, changes: Sequence[tuple[Kronecker, float]]) -> None:
        free, self.kroneckers = self.kroneckers, []
        for change, weight in changes:
            inner = self._as_kernel(change)
            shapes = (change.outer.shape, inner.shape)
            pair = next((pair for pair in free if (pair[0].shape, pair[1].shape) == shapes), None)
            if pair is None:
                outer, kernel = (self.layer.weight.new_empty(shape, device=self.device) for shape in shapes)
                pair = outer, kernel
            else:
                free = [other for other in free if other is not pair]
            _copy_scaled(pair[0], change.outer, weight)
            pair[1].copy_(inner, non_blocking=True)
            self.kroneckers.append(pair)

    def _as_kernel(self, change: Kronecker) -> torch.Tensor:
        if isinstance(self.layer, nn.Linear):
            return change.inner
        rows, inputs = change.inner.shape[0], self.layer.weight.shape[1] // change.outer.shape[1]
        return change.inner.view(rows, inputs, *self.layer.weight.shape[2:])


def _rank(changes: Iterable[Change]) -> int:
    """Of all low-rank products together."""
    return sum(change.down.shape[0] for change in changes if isinstance(change, LowRank))


def _rounded(rank: int) -> int:
    """The rank that slots are allocated for."""
    return max(LEAST_RANK, 1 << (rank - 1).bit_length()) if rank else 0


def _kronecker_bytes(changes: Iterable[Change]) -> int:
    return sum(tensor.nbytes for change in changes if isinstance(change, Kronecker) for tensor in change.tensors)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Copies hundreds of small tensors without torch's other threads.

    They gain nothing there; and where the cores are busy with other processes, each copy would wait until all of them
    have had their turn: measured, twenty times as long as all copies by one thread.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _copy_scaled(target: torch.Tensor, source: torch.Tensor, weight: float) -> None:
    if target.device == source.device:
        torch.mul(source, weight, out=target)
    else:
        target.copy_(source, non_blocking=True).mul_(weight)


def _kron_linear(x: torch.Tensor, outer: torch.Tensor, inner: torch.Tensor) -> torch.Tensor:
    y = functional.linear(x.unflatten(-1, (outer.shape[1], -1)), inner)  # [..., b, c]
    return (outer @ y).flatten(-2)


class Wardrobe:
    """The slots of some modules of a pipeline, and what lies in them now."""

    def __init__(self, parts: Iterable[str], device: torch.device) -> None:
        self._device = device
        self.parts = frozenset(parts)
        self.key: tuple[Any, ...] = ()
        self._slots: dict[str, Slot] = {}
        self._used: set[str] = set()

    def wear(self, worn: Worn, fitted: Mapping[Hosted, Mapping[str, Change]], layers: Mapping[str, Any]) -> bool:
        """Puts these adapters on, and takes all others off; says whether that was a change."""
        own = [(hosted, weight) for hosted, weight in worn if weight and self._concerns(fitted[hosted])]
        key = tuple((hosted.key, weight) for hosted, weight in own)
        if key == self.key:
            return False
        self.key = ("changing",)  # if a copy fails half-way, whoever comes next starts from nothing
        changes = self._by_layer(own, fitted)
        for name in self._used - changes.keys():
            self._slots[name].is_used = False
        with _one_thread():
            for name, found in changes.items():
                self._used.add(name)
                self._slot(name, layers).fill(found)
        self._used = set(changes)
        self.key = key
        return True

    def lacks(self, worn: Worn, fitted: Mapping[Hosted, Mapping[str, Change]], layers: Mapping[str, Any]) -> int:
        """Bytes that the slots need for these beyond those that they have."""
        found = self._by_layer(worn, fitted)
        slots = {name: self._slots.get(name) or Slot(layers[name], self._device) for name in found}
        return sum(slots[name].lacks([change for change, _ in changes]) for name, changes in found.items())

    def grow(self, worn: Worn, fitted: Mapping[Hosted, Mapping[str, Change]], layers: Mapping[str, Any]) -> None:
        """Gives the slots what they need for these; whatever is worn next is put on anew."""
        self.key = ("changing",)
        for name, changes in self._by_layer(worn, fitted).items():
            self._slot(name, layers).grow([change for change, _ in changes])

    @property
    def bytes(self) -> int:
        """Of all slots."""
        return sum(slot.bytes for slot in self._slots.values())

    def _by_layer(
        self, worn: Worn, fitted: Mapping[Hosted, Mapping[str, Change]]
    ) -> dict[str, list[tuple[Change, float]]]:
        """What each layer of these parts is changed by."""
        changes: dict[str, list[tuple[Change, float]]] = {}
        for hosted, weight in worn:
            for name, change in fitted[hosted].items() if weight else ():
                if name.partition(".")[0] in self.parts:
                    changes.setdefault(name, []).append((change, weight))
        return changes

    def _concerns(self, changes: Mapping[str, Change]) -> bool:
        return any(name.partition(".")[0] in self.parts for name in changes)

    def _slot(self, name: str, layers: Mapping[str, Any]) -> Slot:
        if name not in self._slots:
            self._slots[name] = Slot(layers[name], self._device)
            self._slots[name].attach()
        return self._slots[name]

    def empty(self) -> None:
        """Gives back the memory of all slots."""
        for slot in self._slots.values():
            slot.is_used, slot.down, slot.up, slot.kroneckers, slot.kronecker_bytes = False, None, None, [], 0
        self._used, self.key = set(), ()


class Adapters:
    """The adapters of one pipeline: those of its denoiser change between forwards, its encoders' between prompts."""

    def __init__(self, pipe: Any, device: torch.device) -> None:
        parts = {name: getattr(pipe, name, None) for name in (*DENOISERS, *ENCODERS)}
        self._layers = {
            f"{part}.{path}": layer
            for part, module in parts.items()
            if module is not None
            for path, layer in module.named_modules()
            if isinstance(layer, nn.Linear | nn.Conv2d) and getattr(layer, "groups", 1) == 1
        }
        self._fitted: dict[Hosted, dict[str, Change]] = {}
        self._denoiser = Wardrobe(DENOISERS, device)
        self._encoders = Wardrobe(ENCODERS, device)
        self._with_room: set[frozenset[Hashable]] = set()  # which of them the slots are known to have room for

    @property
    def bytes(self) -> int:
        """Of the slots, on the device."""
        return self._denoiser.bytes + self._encoders.bytes

    def lacks(self, worn: Worn) -> int:
        """Bytes on the device that these need beyond those that the slots have.

        Raises:
            InvalidRecipe: an adapter does not fit this pipeline.
        """
        if _keys(worn) in self._with_room:
            return 0
        self._fit(worn)
        lacking = sum(part.lacks(worn, self._fitted, self._layers) for part in (self._denoiser, self._encoders))
        if not lacking:
            self._with_room.add(_keys(worn))
        return lacking

    def grow(self, worn: Worn) -> None:
        """Takes them: from now on these can be worn without taking more."""
        for part in (self._denoiser, self._encoders):
            if part.lacks(worn, self._fitted, self._layers):
                part.grow(worn, self._fitted, self._layers)

    @property
    def encoders_key(self) -> tuple[Any, ...]:
        """What the text encoders wear: prompts encoded under one key are of no use under another."""
        return self._encoders.key

    def wear_on_encoders(self, worn: Worn) -> None:
        """Before a prompt is encoded.

        Raises:
            InvalidRecipe: an adapter does not fit this pipeline.
        """
        self._fit(worn)
        self._encoders.wear(worn, self._fitted, self._layers)

    def wear_on_denoiser(self, worn: Worn) -> bool:
        """Before a forward of runs that agree in these; says whether the one before wore others."""
        self._fit(worn)
        return self._denoiser.wear(worn, self._fitted, self._layers)

    def leave_device(self) -> None:
        """Takes everything off and gives the memory back."""
        self._denoiser.empty()
        self._encoders.empty()
        self._with_room.clear()

    def _fit(self, worn: Worn) -> None:
        """Holds adapters against the layers, once each; those that nobody else holds any more are forgotten."""
        wanted = {hosted for hosted, _ in worn}
        for hosted in [hosted for hosted in self._fitted.keys() - wanted if not hosted.is_kept]:
            del self._fitted[hosted]
        for hosted in wanted - self._fitted.keys():
            try:
                self._fitted[hosted] = self._changes(hosted)
            except CatalogError as error:
                raise InvalidRecipe([FieldError("loras", f"{hosted.name!r} cannot be used: {error}")]) from None

    def _changes(self, hosted: Hosted) -> dict[str, Change]:
        shapes = {name: tuple(layer.weight.shape) for name, layer in self._layers.items()}
        found: dict[str, Change] = {}
        for name, targets in adapterfile.match(hosted.file, shapes).items():
            change, begin = hosted.changes[name], 0
            for target in targets:
                end = begin + shapes[target][0]
                found[target] = rows_of(change, begin, end) if isinstance(change, LowRank) and targets[1:] else change
                begin = end
        return found


def _keys(worn: Worn) -> frozenset[Hashable]:
    return frozenset(hosted.key for hosted, weight in worn if weight)
