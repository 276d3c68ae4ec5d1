"""Owns the headroom: how much memory the device has left, and how many more pictures may be under way in it.

A picture that is under way holds little (latents, embeddings, its scheduler's state); what takes much comes and goes: a
forward, a decode. Both are measured as pictures are painted, by what they are pictures of. A picture may begin where
what it would hold leaves room for the largest thing that comes and goes; where nothing has been measured it may begin,
since running out of memory in a forward or a decode costs a smaller set or tiles, and no picture.
"""

import contextlib
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator
from typing import Protocol


class Gauge(Protocol):
    """What a device tells of its memory, in bytes."""

    def allocated(self) -> int:
        """What tensors hold now."""

    def peak(self) -> int:
        """The most that they have held since the last `reset_peak`."""

    def reset_peak(self) -> None:
        """Begins anew to look for the peak."""

    def free(self) -> int:
        """What tensors could still take."""


class Headroom:
    """Without a gauge there is always room: then the number of runs is the only bound."""

    def __init__(self, gauge: Gauge | None) -> None:
        self._gauge = gauge
        self._held: defaultdict[Hashable, int] = defaultdict(int)  # by a picture of a kind, once it is under way
        self._passing: defaultdict[Hashable, int] = defaultdict(int)  # by the largest forward or decode of a kind

    def has_room(self, kind: Hashable, under_way: Iterable[Hashable]) -> bool:
        """Whether one more picture of this kind may begin beside those under way, by their kinds."""
        if self._gauge is None:
            return True
        return self._gauge.free() - self._held[kind] >= max(self._passing[one] for one in (kind, *under_way))

    @contextlib.contextmanager
    def beginning(self, kind: Hashable) -> Iterator[None]:
        """Around a picture's way to its first call: what is held after it is what such a picture holds."""
        with self.computing(kind):
            before = self._gauge.allocated() if self._gauge is not None else 0
            yield
            if self._gauge is not None:
                self._held[kind] = max(self._held[kind], self._gauge.allocated() - before)

    @contextlib.contextmanager
    def computing(self, kind: Hashable) -> Iterator[None]:
        """Around a forward or a picture's end: the most that was held within, beyond what was held before."""
        if self._gauge is None:
            yield
            return
        before = self._gauge.allocated()
        self._gauge.reset_peak()
        yield
        self._passing[kind] = max(self._passing[kind], self._gauge.peak() - before)
