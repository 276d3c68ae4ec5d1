"""Owns replay: the denoiser outputs of a run, kept so that the run can be started again without denoising again.

They are the only expensive thing in a run. A pipeline that is called again with the same seed asks for them in the same
order and makes the same picture of them, to the byte.
"""

from typing import Any

import torch

from daguerre.engine.spill import Spill

#: Bytes of host memory that all records together may hold; an SDXL step is 131 kB.
BUDGET = 1 << 30


class Records:
    """How much all records hold together. Used on the engine thread only."""

    def __init__(self, budget: int = BUDGET) -> None:
        self._budget = budget
        self.held = 0

    def take(self, size: int) -> bool:
        """Asks for room; says whether there is some."""
        if self.held + size > self._budget:
            return False
        self.held += size
        return True

    def give_back(self, size: int) -> None:
        """Returns room."""
        self.held -= size


class Record:
    """The outputs of one run, in their order. One that found no room is incomplete, and answers nothing.

    With a spill, they are on disk, too: the record begins with those that a process before this one left there.
    """

    def __init__(self, records: Records, spill: Spill | None = None) -> None:
        self._records = records
        self._spill = spill
        self._outputs: list[Any] = []
        self._size = 0
        self._is_complete = True
        self._next = 0
        # Up to the first that finds no room: what came after it would answer the wrong calls.
        all(self._take(output) for output in ([] if spill is None else spill.read()))

    def __len__(self) -> int:
        return len(self._outputs)

    def keep(self, output: Any) -> None:
        """Keeps a copy in host memory."""
        if self._is_complete and self._take(_copied(output, torch.device("cpu"))):
            self._next = len(self._outputs)
            if self._spill is not None:
                self._spill.offer(self._outputs)

    def _take(self, output: Any) -> bool:
        size = _bytes(output)
        if not self._records.take(size):
            self.drop()
            self._is_complete = False
            return False
        self._size += size
        self._outputs.append(output)
        return True

    def rewind(self) -> bool:
        """From now on the outputs are given from the first; says whether there are any."""
        self._next = 0
        return self._is_complete and bool(self._outputs)

    def answer(self, device: torch.device) -> Any | None:
        """The next output, on the device, or None when all have been given."""
        if self._next == len(self._outputs):
            return None
        self._next += 1
        return _copied(self._outputs[self._next - 1], device)

    def put_aside(self) -> None:
        """The next process is to go on from here: what is not on disk is written."""
        if self._spill is not None and self._is_complete:
            self._spill.write(self._outputs)

    def drop(self) -> None:
        """Forgets everything and returns its room. What is on disk stays there."""
        self._records.give_back(self._size)
        self._outputs, self._size, self._next = [], 0, 0


def _bytes(output: Any) -> int:
    if isinstance(output, torch.Tensor):
        return int(output.nbytes)
    return sum(map(_bytes, output.values() if isinstance(output, dict) else output))


def _copied(output: Any, device: torch.device) -> Any:
    if isinstance(output, torch.Tensor):
        if output.device.type == "cuda" and device.type == "cpu":
            # Into pinned memory, so that the engine need not wait for the device. What is read of it on the device
            # is read after it was written, since both happen in one stream; whoever else reads it waits first.
            return torch.empty_like(output, device=device, pin_memory=True).copy_(output, non_blocking=True)
        return output.to(device, copy=True)
    if isinstance(output, dict):
        return type(output)(**{key: _copied(value, device) for key, value in output.items()})
    return type(output)(_copied(item, device) for item in output)
