"""Owns a picture's share of the device: the seconds of its forwards, by its rows among theirs, and the memory."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from daguerre.telemetry.counters import Memory

if TYPE_CHECKING:
    import torch


@dataclass(slots=True)
class Share:
    """What a picture has used so far."""

    forwards: int = 0  # that it took part in
    timed: int = 0  # of these
    timed_seconds: float = 0.0
    memory_peak: int | None = None

    def add(self, seconds: float) -> None:
        """One of its forwards has been timed; the seconds are its part of it."""
        self.timed += 1
        self.timed_seconds += seconds

    @property
    def seconds(self) -> float:
        """Of all its forwards: the last ones may still be under way on the device, and count like the others."""
        return self.timed_seconds * self.forwards / self.timed if self.timed else 0.0


class DeviceMemory:
    """What torch holds of a device with memory of its own. It keeps the numbers: asking waits for no device."""

    def __init__(self, device: "torch.device") -> None:
        self._device = device if device.type == "cuda" else None

    def lap(self) -> int | None:
        """The most bytes in tensors since this was last called."""
        if self._device is None:
            return None
        import torch

        peak = int(torch.cuda.max_memory_allocated(self._device))
        torch.cuda.reset_peak_memory_stats(self._device)
        return peak

    def now(self) -> Memory:
        """What is held at present."""
        if self._device is None:
            return Memory()
        import torch

        total = torch.cuda.get_device_properties(self._device).total_memory
        return Memory(torch.cuda.memory_allocated(self._device), torch.cuda.memory_reserved(self._device), total)
