"""Owns what can be read off a process from outside: memory, descriptors, threads; and whether any of them grows."""

import re
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple


def memory(pid: int) -> int:
    """Bytes that the process holds."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def descriptors(pid: int) -> int:
    """How many it has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def threads(pid: int) -> int:
    """How many it has."""
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the line through the points with the least squares; needs two moments at least."""
    return statistics.linear_regression([x for x, _ in points], [y for _, y in points]).slope


class Sample(NamedTuple):
    """A process's memory at a moment."""

    pid: int
    at: float  # monotonic seconds
    bytes: int


class Sampler:
    """Looks at the memory of the process at hand once a second, from its making until it is closed."""

    def __init__(self, pid: Callable[[], int]) -> None:
        self.samples: list[Sample] = []
        self._pid = pid
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._is_closed.wait(1.0):
            pid = self._pid()
            try:
                self.samples.append(Sample(pid, time.monotonic(), memory(pid)))
            except (OSError, AssertionError):  # it has just ended
                continue

    def megabytes_a_minute(self, pid: int, since: float) -> float:
        """How fast one process grew from a moment on."""
        points = [(one.at / 60, one.bytes / 1e6) for one in self.samples if one.pid == pid and one.at >= since]
        return slope(points)

    def curve(self, pid: int, every: int) -> list[int]:
        """Of one process, the megabytes at moments so many seconds apart."""
        return [round(one.bytes / 1e6) for one in [one for one in self.samples if one.pid == pid][::every]]

    def close(self) -> None:
        """Looks no more."""
        self._is_closed.set()
        self._thread.join()
