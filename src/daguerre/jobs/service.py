"""Owns the jobs: submit, wait, cancel. Every way in leads here, and every change of a job is made here."""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from daguerre import recipe
from daguerre.catalog import Catalog
from daguerre.errors import DaguerreError, Draining, JobCancelled, JobTimeout, NotReady, QueueFull
from daguerre.job import Failure, Job, Status, new_id
from daguerre.jobs.hub import Hub
from daguerre.jobs.inputs import Inputs
from daguerre.jobs.queue import Queue


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds that a job may wait, run, and take in all."""

    wait: float
    run: float
    total: float


class JobService:
    """The jobs that this process knows. Used on the event loop only.

    ``cancel_run`` is called for jobs that the engine already has: it stops them within one step.
    """

    def __init__(
        self,
        catalog: Catalog,
        queue: Queue,
        hub: Hub,
        cancel_run: Callable[[str, DaguerreError], None],
        *,
        queue_limit: int,
        timeouts: Timeouts,
        result_ttl: float,
    ) -> None:
        self.catalog = catalog
        self.queue = queue
        self.queue_limit = queue_limit
        self._hub = hub
        self._cancel_run = cancel_run
        self._timeouts = timeouts
        self._result_ttl = result_ttl
        self._jobs: dict[str, Job] = {}
        self._inputs: dict[str, Inputs] = {}
        self._errors: dict[str, DaguerreError] = {}
        self._deadlines: dict[str, asyncio.TimerHandle] = {}
        self._seconds_per_job = 1.0
        self._refusal: DaguerreError | None = None

    @property
    def unfinished(self) -> list[Job]:
        """Jobs that are waiting or running."""
        return [job for job in self._jobs.values() if not job.status.is_final]

    def unfinished_of(self, client: str) -> list[Job]:
        """A client's jobs that are waiting or running, the oldest first."""
        return [job for job in self.unfinished if job.client == client]

    @property
    def waiting(self) -> int:
        """How many jobs wait, whether the engine knows of them already or not."""
        return sum(job.status is Status.QUEUED for job in self._jobs.values())

    @property
    def running(self) -> int:
        """How many jobs the engine is working on."""
        return sum(job.status is Status.RUNNING for job in self._jobs.values())

    @property
    def refusal(self) -> DaguerreError | None:
        """Why new jobs are refused, if they are."""
        return self._refusal

    def refuse(self, reason: DaguerreError) -> None:
        """Takes no more jobs from now on."""
        self._refusal = self._refusal or reason

    def submit(self, draft: recipe.Draft, inputs: Inputs | None = None, client: str = "") -> Job:
        """Accepts a client's job and queues it.

        Raises:
            InvalidRecipe: the model cannot do what is asked.
            ModelNotFound: there is no such model.
            QueueFull, Draining, NotReady: not now.
        """
        if self._refusal is not None:
            raise self._refusal
        model = self.catalog.model(draft.model)
        seed = random.randrange(recipe.RANDOM_SEEDS)
        size = None if inputs is None else inputs.image.size
        whole = recipe.resolve(draft, model, seed, self.catalog.styles, size)
        job = Job(id=new_id(), recipe=whole, created_at=time.time(), client=client)
        if self.waiting >= self.queue_limit:
            raise QueueFull(f"{self.queue_limit} jobs are waiting already", self._seconds_per_job)
        if inputs is not None:
            self._inputs[job.id] = inputs
        self.queue.put(job.id)
        self._jobs[job.id] = job
        self._set_deadline(job.id, min(self._timeouts.wait, self._timeouts.total))
        return job

    def _set_deadline(self, job_id: str, seconds: float) -> None:
        if job_id in self._deadlines:
            self._deadlines[job_id].cancel()
        loop = asyncio.get_running_loop()
        self._deadlines[job_id] = loop.call_later(max(0.0, seconds), self.end, job_id, JobTimeout())

    def find(self, job_id: str) -> Job | None:
        """The job's present state, while it is remembered."""
        return self._jobs.get(job_id)

    def inputs(self, job_id: str) -> Inputs | None:
        """The pictures that an unfinished job starts from."""
        return self._inputs.get(job_id)

    async def wait(self, job_id: str) -> Job:
        """Waits for a job's end.

        Raises:
            DaguerreError: why the job has no pictures, as it was when it ended.
        """
        async with contextlib.aclosing(self._hub.follow(self._jobs[job_id])) as states:
            async for job in states:
                if job.status is Status.SUCCEEDED:
                    return job
        raise self._errors[job_id]

    def cancel(self, job_id: str) -> bool:
        """Calls a job off; says whether there was anything left to call off."""
        return self.end(job_id, JobCancelled())

    def end(self, job_id: str, error: DaguerreError) -> bool:
        """Ends an unfinished job with this error: at once if it waits, within one step if it runs."""
        job = self._jobs.get(job_id)
        if job is None or job.status.is_final:
            return False
        if not self.queue.remove(job_id):
            self._cancel_run(job_id, error)
        self.failed(job_id, error)
        return True

    # What dispatch tells of a job. Late news of a job that has ended are dropped.

    def changed(self, job_id: str, **changes: object) -> Job | None:
        """A step forward; tells all who follow the job."""
        job = self._jobs.get(job_id)
        if job is None or job.status.is_final:
            return None
        job = msgspec.structs.replace(job, **changes)
        self._jobs[job_id] = job
        if job.status.is_final:
            self._deadlines.pop(job_id).cancel()
            self._inputs.pop(job_id, None)
            asyncio.get_running_loop().call_later(self._result_ttl, self._forget, job_id)
        self._hub.publish(job)
        return job

    def began(self, job_id: str) -> None:
        """The engine has begun to paint."""
        now = time.time()
        job = self.changed(job_id, status=Status.RUNNING, started_at=now)
        if job is not None:
            left = self._timeouts.total - (now - job.created_at)
            self._set_deadline(job_id, min(self._timeouts.run, left))

    def succeeded(self, job_id: str, **changes: object) -> None:
        """The pictures are written."""
        job = self.changed(job_id, status=Status.SUCCEEDED, finished_at=time.time(), **changes)
        if job is not None and job.finished_at is not None:
            spent = job.finished_at - (job.started_at or job.created_at)
            self._seconds_per_job = 0.8 * self._seconds_per_job + 0.2 * spent

    def failed(self, job_id: str, error: DaguerreError) -> None:
        """The job ended without its pictures."""
        self._errors[job_id] = error
        status = Status.CANCELLED if isinstance(error, JobCancelled) else Status.FAILED
        self.changed(job_id, status=status, finished_at=time.time(), error=Failure(error.code, error.message))

    def _forget(self, job_id: str) -> None:
        self._jobs.pop(job_id, None)
        self._errors.pop(job_id, None)

    async def drain(self, grace: float) -> None:
        """Takes no more jobs, lets those at hand finish for ``grace`` seconds, and ends the rest."""
        self.refuse(Draining())
        end_at = time.monotonic() + grace
        # Once in a process's life: an event would burden every job.
        while self.unfinished and time.monotonic() < end_at:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        for job in self.unfinished:
            self.end(job.id, Draining())

    def engine_died(self, error: NotReady) -> None:
        """Nothing more can be painted by this process."""
        self.refuse(error)
        for job in self.unfinished:
            self.end(job.id, error)
