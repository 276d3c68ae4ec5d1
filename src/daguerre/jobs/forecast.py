"""Owns the forecast: where a job stands among those that are unfinished, and how long it is likely to take yet."""

import time
from collections.abc import Iterable
from typing import NamedTuple

from daguerre.job import Job, Status
from daguerre.jobs.line import Line, work

#: How much of a new measurement enters the known one.
BLEND = 0.2
#: Work a second before anything was measured: a step of 512² in 50 ms.
UNKNOWN = 512 * 512 / 0.05


class Place(NamedTuple):
    """How many unfinished jobs came before it, itself included, and the seconds until it is likely to be done."""

    position: int
    eta: float


class Forecast:
    """Learns how much work is done in a second while there is some. Work is pixels times steps times pictures."""

    def __init__(self) -> None:
        self._rate = UNKNOWN
        self._last = 0.0  # monotonic seconds at which a job was done
        self.seconds_a_job = 1.0

    def done(self, job: Job, seconds: float) -> None:
        """A job has its pictures, ``seconds`` after its beginning; the time since the one before counts if it is less.

        So jobs that share forwards make the rate larger, and idle times do not make it smaller.
        """
        now = time.monotonic()
        seconds = max(1e-3, min(seconds, now - self._last))
        self._last = now
        self._rate += BLEND * (work(job) / seconds - self._rate)
        self.seconds_a_job += BLEND * (seconds - self.seconds_a_job)

    def place(self, job: Job, line: Line, turns: Iterable[str] = ()) -> Place:
        """Of a job; nothing is left of one that is in the line no more."""
        if job.id not in line:
            return Place(0, 0.0)
        share = line.up_to(job, turns)
        return Place(share.waiting if job.status is Status.QUEUED else 0, share.work / self._rate)

    def all_done(self, line: Line) -> float:
        """Seconds until nothing is likely to be left of the line."""
        return line.whole.work / self._rate
