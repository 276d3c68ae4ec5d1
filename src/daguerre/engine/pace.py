"""Owns the pace: how far the host runs ahead of the device, and how long each forward took there."""

import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")

#: Forwards that may be under way at once: enough that the device never waits, few enough that newcomers do not either.
AHEAD = 2


@dataclass(frozen=True, slots=True)
class Timed(Generic[T]):
    """A forward that has ended, and the seconds it took on the device."""

    subject: T
    seconds: float


class Pace(Generic[T]):
    """Measures forwards. On a CPU a forward has ended when it returns; on CUDA the device tells by its own events."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._under_way: deque[tuple[T, Any, Any]] = deque()
        self._began: Any = None

    def begin(self) -> None:
        """A forward begins."""
        self._began = self._mark()

    def end(self, subject: T) -> list[Timed[T]]:
        """It has been handed to the device; gives those that have ended, after waiting for those too far behind."""
        self._under_way.append((subject, self._began, self._mark()))
        ended = []
        while self._under_way and (len(self._under_way) > AHEAD or self._has_ended(self._under_way[0][2])):
            first, began, done = self._under_way.popleft()
            ended.append(Timed(first, self._between(began, done)))
        return ended

    def _mark(self) -> Any:
        if not self._is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _has_ended(self, mark: Any) -> bool:
        return bool(mark.query()) if self._is_cuda else True

    def _between(self, began: Any, done: Any) -> float:
        if not self._is_cuda:
            return float(done - began)
        done.synchronize()
        return float(began.elapsed_time(done)) / 1000
