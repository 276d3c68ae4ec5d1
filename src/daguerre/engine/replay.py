"""Owns replay: the denoiser outputs of a run, kept so that the run can be started again without denoising again.

They are the only expensive thing in a run. A pipeline that is called again with the same seed asks for them in the same
order and makes the same picture of them, to the byte.
"""

from typing import Any

import torch

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
    """The outputs of one run, in their order. One that found no room is incomplete, and answers nothing."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._outputs: list[Any] = []
        self._size = 0
        self._is_complete = True
        self._next = 0

    def keep(self, output: Any) -> None:
        """Keeps a copy in host memory."""
        if not self._is_complete:
            return
        size = _bytes(output)
        if not self._records.take(size):
            self.drop()
            self._is_complete = False
            return
        self._size += size
        self._outputs.append(_copied(output, torch.device("cpu")))
        self._next = len(self._outputs)

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

    def drop(self) -> None:
        """Forgets everything and returns its room."""
        self._records.give_back(self._size)
        self._outputs, self._size, self._next = [], 0, 0


def _bytes(output: Any) -> int:
    if isinstance(output, torch.Tensor):
        return int(output.nbytes)
    return sum(map(_bytes, output.values() if isinstance(output, dict) else output))


def _copied(output: Any, device: torch.device) -> Any:
    if isinstance(output, torch.Tensor):
        return output.to(device, copy=True)
    if isinstance(output, dict):
        return type(output)(**{key: _copied(value, device) for key, value in output.items()})
    return type(output)(_copied(item, device) for item in output)
