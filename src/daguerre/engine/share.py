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
    """What torch holds of a device with memory of its own. It keeps the numbers: asking waits for no device.

    Without such a device there is no `lap`, and nothing but that may be asked.
    """

    def __init__(self, device: "torch.device") -> None:
        self._device = device if device.type == "cuda" else None
        self._highest = 0  # since the last lap, up to the last `reset_peak`

    @property
    def is_its_own(self) -> bool:
        """Whether the device has memory of its own."""
        return self._device is not None

    def allocated(self) -> int:
        """Bytes in tensors."""
        import torch

        return int(torch.cuda.memory_allocated(self._device))

    def peak(self) -> int:
        """The most bytes in tensors since the last `reset_peak`."""
        import torch

        return int(torch.cuda.max_memory_allocated(self._device))

    def reset_peak(self) -> None:
        """Looks for the peak anew."""
        import torch

        self._highest = max(self._highest, self.peak())
        torch.cuda.reset_peak_memory_stats(self._device)

    def free(self) -> int:
        """Bytes that tensors could still take: what the driver has, and what the allocator keeps unused."""
        import torch

        driver, _ = torch.cuda.mem_get_info(self._device)
        return int(driver + torch.cuda.memory_reserved(self._device)) - self.allocated()

    def lap(self) -> int | None:
        """The most bytes in tensors since this was last called."""
        if self._device is None:
            return None
        self.reset_peak()
        highest, self._highest = self._highest, 0
        return highest

    def now(self) -> Memory:
        """What is held at present."""
        if self._device is None:
            return Memory()
        import torch

        total = torch.cuda.get_device_properties(self._device).total_memory
        return Memory(self.allocated(), torch.cuda.memory_reserved(self._device), total)
