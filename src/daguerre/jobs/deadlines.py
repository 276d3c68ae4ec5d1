"""Owns deadlines: when each unfinished job must have begun, and been painted."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from daguerre.errors import DaguerreError, JobTimeout


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds that a job may wait, run, and take in all."""

    wait: float
    run: float
    total: float


class Deadlines:
    """Of jobs, by the loop's clock: the wall's may be set meanwhile. ``end`` is called when one has passed."""

    def __init__(self, timeouts: Timeouts, end: Callable[[str, DaguerreError], object]) -> None:
        self._timeouts = timeouts
        self._end = end
        self._entered: dict[str, float] = {}  # when it came to wait, or to be painted
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def waits(self, job_id: str) -> None:
        """It has come to wait."""
        self._set(job_id, min(self._timeouts.wait, self._timeouts.total))

    def runs(self, job_id: str) -> None:
        """It has waited, and is being painted from now on."""
        self._set(job_id, min(self._timeouts.run, self._timeouts.total - self.seconds(job_id)))

    def seconds(self, job_id: str) -> float:
        """For how long it has been waiting, or is being painted."""
        return asyncio.get_running_loop().time() - self._entered[job_id]

    def drop(self, job_id: str) -> None:
        """It has ended."""
        if job_id in self._timers:
            self._timers.pop(job_id).cancel()
            del self._entered[job_id]

    def _set(self, job_id: str, seconds: float) -> None:
        self.drop(job_id)
        loop = asyncio.get_running_loop()
        self._entered[job_id] = loop.time()
        self._timers[job_id] = loop.call_later(max(0.0, seconds), self._end, job_id, JobTimeout())
