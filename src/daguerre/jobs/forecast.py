"""Owns the forecast: where a job stands among those that are unfinished, and how long it is likely to take yet."""

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from daguerre.job import Job, Status

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
        self._last = 0.0  # Unix seconds at which a job was done
        self.seconds_a_job = 1.0

    def done(self, job: Job) -> None:
        """A job has its pictures. The time since the one before counts, or since its own beginning if that was later.

        So jobs that share forwards make the rate larger, and idle times do not make it smaller.
        """
        assert job.finished_at is not None
        began = max(self._last, job.started_at or job.created_at)
        self._last = job.finished_at
        seconds = max(1e-3, job.finished_at - began)
        self._rate += BLEND * (_work(job) / seconds - self._rate)
        self.seconds_a_job += BLEND * (seconds - self.seconds_a_job)

    def place(self, job: Job, unfinished: Iterable[Job]) -> Place:
        """Of a job among all that are unfinished, the oldest first."""
        before = list(itertools.takewhile(lambda other: other.id != job.id, unfinished))
        position = 1 + sum(other.status is Status.QUEUED for other in before) if job.status is Status.QUEUED else 0
        return Place(position, (_left(job) + sum(map(_left, before))) / self._rate)

    def places(self, unfinished: Iterable[Job]) -> Iterator[tuple[str, Place]]:
        """Of all jobs that are unfinished, the oldest first, by their ids."""
        waiting, work = 0, 0.0
        for job in unfinished:
            waiting += job.status is Status.QUEUED
            work += _left(job)
            yield job.id, Place(waiting if job.status is Status.QUEUED else 0, work / self._rate)


def _work(job: Job) -> float:
    recipe = job.recipe
    return float(recipe.width * recipe.height * recipe.steps * recipe.count)


def _left(job: Job) -> float:
    return _work(job) * (1 - job.step / job.steps) if job.steps else _work(job)
