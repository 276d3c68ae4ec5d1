"""Owns the jobs: submit, wait, cancel. Every way in leads here, and every change of a job is made here."""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from daguerre import recipe
from daguerre.catalog import Catalog
from daguerre.errors import (
    DaguerreError,
    Draining,
    JobCancelled,
    JobNotFound,
    KeyReused,
    NotReady,
    Poisoned,
    ResultExpired,
    StorageFailed,
)
from daguerre.job import Failure, Job, Status, new_id
from daguerre.jobs.acceptance import Acceptance, Limits
from daguerre.jobs.allowances import Allowances
from daguerre.jobs.deadlines import Deadlines, Timeouts
from daguerre.jobs.forecast import Forecast, Place
from daguerre.jobs.hub import Hub, News
from daguerre.jobs.inputs import Inputs
from daguerre.jobs.line import Line
from daguerre.jobs.queue import Queue
from daguerre.jobs.sources import Sources
from daguerre.loras import Loras
from daguerre.moderation import Moderation
from daguerre.store.files import Files
from daguerre.store.jobs import JobRows, Key
from daguerre.store.usage import Usage

if TYPE_CHECKING:
    from daguerre.jobs.webhooks import Webhooks

log = logging.getLogger(__name__)

#: Deaths of the process, while a job was being painted, after which it is taken to be their cause.
ATTEMPTS = 3
#: Seconds that an ended job's row outlives its result, to answer that it has expired.
EPITAPH = 7 * 24 * 3600.0
#: Seconds between two looks at who has moved up in the line.
REMIND_EVERY = 3.0
#: Seconds between two looks for rows to forget.
SWEEP_EVERY = 600.0


class JobService:
    """The jobs that are unfinished or whose results are kept. Used on the event loop only.

    What is in memory here is in the database, too: a job is accepted when its row is durable. ``cancel_run`` is called
    for jobs that the engine already has: it stops them within one step.
    """

    def __init__(
        self,
        catalog: Catalog,
        loras: Loras,
        rows: JobRows,
        files: Files,
        cancel_run: Callable[[str, DaguerreError], None],
        *,
        sources: Sources,
        limits: Limits,
        timeouts: Timeouts,
        result_ttl: float,
        allowances: Allowances | None = None,
        webhooks: "Webhooks | None" = None,
        moderation: Moderation | None = None,
    ) -> None:
        self.catalog = catalog
        self.loras = loras
        self.sources = sources
        self.queue = Queue()
        self.allowances = allowances or Allowances(0)
        self.limits = limits
        self._hub = Hub()
        self._rows = rows
        self._files = files
        self._cancel_run = cancel_run
        self._deadlines = Deadlines(timeouts, self.end)
        self._result_ttl = result_ttl
        self._webhooks = webhooks
        self._jobs: dict[str, Job] = {}
        self._line = Line()
        self._accepting: dict[str, asyncio.Event] = {}  # set when the job's row is durable, or will never be
        self._inputs: dict[str, Inputs] = {}
        self._fitting = asyncio.Lock()  # of uploads, one at a time: each takes memory for several copies of itself
        self._errors: dict[str, DaguerreError] = {}
        self._keys: dict[tuple[str, str], tuple[str, str]] = {}  # client and name to digest and job's id
        self._forecast = Forecast()
        self._acceptance = Acceptance(
            catalog, loras, sources, limits, files, self._line, self._forecast, webhooks, moderation
        )
        self._listeners: list[Callable[[Job], None]] = []

    def listen(self, listener: Callable[[Job], None]) -> None:
        """From now on it hears of every job whose state has changed."""
        self._listeners.append(listener)

    def _tell(self, job: Job) -> None:
        for listener in self._listeners:
            listener(job)

    @property
    def unfinished(self) -> list[Job]:
        """Jobs that are waiting or running, the oldest first."""
        return [self._jobs[job_id] for job_id in self._line]

    def unfinished_of(self, client: str) -> list[Job]:
        """A client's jobs that are waiting or running, the oldest first."""
        return [self._jobs[job_id] for job_id in self._line.of(client)]

    @property
    def unfinished_count(self) -> int:
        """How many jobs wait or run."""
        return len(self._line)

    def counts(self) -> dict[Status, int]:
        """How many jobs are in each state, of those that are kept."""
        found = Counter(job.status for job in self._jobs.values())
        return {status: found[status] for status in Status}

    @property
    def waiting(self) -> int:
        """How many jobs wait, whether the engine knows of them already or not."""
        return self._line.whole.waiting

    @property
    def running(self) -> int:
        """How many jobs the engine is working on."""
        return len(self._line) - self.waiting

    @property
    def refusal(self) -> DaguerreError | None:
        """Why new jobs are refused, if they are."""
        return self._acceptance.refusal

    def refuse(self, reason: DaguerreError) -> None:
        """Takes no more jobs from now on."""
        self._acceptance.refuse(reason)

    async def recover(self) -> None:
        """Takes up what the process before left: called once, before anything is submitted.

        Unfinished jobs are queued again in their order. Those whose clients waited on a connection are ended, since
        nobody is left to be told; so are those that were being painted when the process died, time after time.

        Raises:
            StorageFailed: the database cannot be read.
        """
        jobs = await self._rows.remembered(time.time() - self._result_ttl)
        nobodys = {job.id: _moment(job.created_at) for job in jobs if job.status is not Status.SUCCEEDED}
        await asyncio.to_thread(self._files.drop_of, nobodys)
        for job in jobs:
            self._jobs[job.id] = job
            if job.status.is_final:
                self._forget_later(job)
                continue
            self._line.put(job)
            if job.is_attached:
                self.failed(job.id, JobCancelled("the server was restarted"))
            elif job.attempts >= ATTEMPTS and job.status is Status.RUNNING:
                self.failed(job.id, Poisoned())
            else:
                await self._resume(job)
        self._keys = {(key.client, key.name): (key.digest, job_id) for key, job_id in await self._rows.keys()}
        self._sweep()

    async def _resume(self, job: Job) -> None:
        pictures = await self._rows.pictures(job.id)
        if pictures is not None:
            self._inputs[job.id] = await asyncio.to_thread(Inputs.unpacked, pictures)
        job = self._jobs[job.id] = msgspec.structs.replace(job, status=Status.QUEUED, started_at=None, step=0)
        self._line.put(job)
        self.queue.put(job.id, job.client, is_urgent=job.is_urgent)
        self._deadlines.waits(job.id)
        self._tell(self._jobs[job.id])

    def _sweep(self) -> None:
        """Forgets the rows whose epitaphs have stood long enough, now and from time to time."""
        before = time.time() - self._result_ttl - EPITAPH
        self._rows.drop(before)
        oldest = new_id(before)  # ids sort by their age
        self._keys = {name: (digest, job_id) for name, (digest, job_id) in self._keys.items() if job_id > oldest}
        asyncio.get_running_loop().call_later(SWEEP_EVERY, self._sweep)

    async def submit(
        self,
        draft: recipe.Draft,
        inputs: Inputs | None = None,
        client: str = "",
        key: Key | None = None,
        *,
        is_attached: bool = True,
        is_urgent: bool = False,
    ) -> Job:
        """Accepts a client's job and queues it: when this returns, it is durable.

        The same key and digest give the job that they gave before.

        Raises:
            InvalidRecipe: the model cannot do what is asked.
            ModelNotFound: there is no such model.
            KeyReused: the key has come with another request.
            QueueFull, ClientLimit, RateLimited, Draining, NotReady, DiskLow, StorageFailed: not now.
        """
        known = None if key is None else self._keys.get((key.client, key.name))
        if key is not None and known is not None:
            return await self._known(key.digest, *known)
        job = self._acceptance.job(draft, inputs, client, is_attached=is_attached, is_urgent=is_urgent)
        await self.allowances.take(client, job.recipe)
        self._jobs[job.id] = job
        self._line.put(job)
        accepting = self._accepting[job.id] = asyncio.Event()
        if key is not None:
            self._keys[key.client, key.name] = (key.digest, job.id)
        try:
            pictures = None
            if inputs is not None:
                async with self._fitting:
                    inputs = await asyncio.to_thread(inputs.at, (job.recipe.width, job.recipe.height))
                    pictures = await asyncio.to_thread(inputs.packed)
            await self._rows.add(job, pictures, key)
        except BaseException:
            self._withdraw(job, key)
            raise
        finally:
            del self._accepting[job.id]
            accepting.set()
        if inputs is not None:
            self._inputs[job.id] = inputs
        if not self._jobs[job.id].status.is_final:  # else it was ended meanwhile
            self.queue.put(job.id, client, is_urgent=is_urgent)
            self._deadlines.waits(job.id)
            self._tell(job)
        return self._jobs[job.id]

    async def _known(self, digest: str, known_digest: str, job_id: str) -> Job:
        """The job that a key stands for. It may still be on its way to the disk, and never arrive."""
        if digest != known_digest:
            raise KeyReused
        accepting = self._accepting.get(job_id)
        if accepting is not None:
            await accepting.wait()
            if job_id not in self._jobs:
                raise StorageFailed
        return await self.expect(job_id, None)

    def _withdraw(self, job: Job, key: Key | None) -> None:
        """A job that could not be written down was never there."""
        self._jobs.pop(job.id)
        self._line.remove(job)
        if key is not None:
            self._keys.pop((key.client, key.name), None)

    def find(self, job_id: str) -> Job | None:
        """The job's present state, while it is kept."""
        return self._jobs.get(job_id)

    async def expect(self, job_id: str, owner: str | None) -> Job:
        """The present state of an owner's job; of anybody's where no owner is given.

        Raises:
            JobNotFound: the owner never had one of that id, or long ago.
            ResultExpired: its result is no longer kept.
        """
        job = self._jobs.get(job_id)
        client = job.client if job is not None else await self._rows.client_of(job_id)
        if client is None or owner not in (None, client):
            raise JobNotFound
        if job is None:
            raise ResultExpired
        return job

    async def client_of_picture(self, filename: str) -> str | None:
        """Whose the picture of that name is, for as long as its file is there."""
        return await self._rows.client_of_picture(filename)

    def jobs_of(self, client: str) -> Iterator[Job]:
        """A client's jobs that are kept, the newest first."""
        return (job for job in reversed(self._jobs.values()) if job.client == client)

    def place(self, job: Job) -> Place:
        """Where an unfinished job stands, and how many seconds it is likely to take yet."""
        return self._forecast.place(job, self._line, self.queue.turns(is_urgent=job.is_urgent))

    @property
    def all_done(self) -> float:
        """Seconds until all jobs at hand are likely to be done."""
        return self._forecast.all_done(self._line)

    def inputs(self, job_id: str) -> Inputs | None:
        """The pictures that an unfinished job starts from."""
        return self._inputs.get(job_id)

    def error(self, job: Job) -> DaguerreError:
        """Why a job has no pictures. What another process told of it is known by its words alone."""
        kind = JobCancelled if job.status is Status.CANCELLED else DaguerreError
        return self._errors.get(job.id) or kind(job.error.message if job.error is not None else None)

    def follow(self, job: Job) -> "contextlib.aclosing[AsyncGenerator[News, None]]":
        """The job's present state, then each later one up to the final; a slow listener misses some between."""
        return contextlib.aclosing(self._hub.follow(job))

    async def wait(self, job_id: str) -> Job:
        """Waits for a job's end.

        Raises:
            DaguerreError: why the job has no pictures, as it was when it ended.
        """
        async with self.follow(self._jobs[job_id]) as states:
            async for news in states:
                if news.job.status is Status.SUCCEEDED:
                    return news.job
        raise self._errors[job_id]

    def cancel(self, job_id: str) -> bool:
        """Calls a job off; says whether there was anything left to call off."""
        return self.end(job_id, JobCancelled())

    def end(self, job_id: str, error: DaguerreError) -> bool:
        """Ends an unfinished job with this error: at once if it waits, within one step if it runs."""
        if job_id not in self._line:
            return False
        if not self.queue.remove(job_id):
            self._cancel_run(job_id, error)
        self.failed(job_id, error)
        return True

    async def usage(self, client: str) -> Usage:
        """What a client's pictures have taken so far.

        Raises:
            StorageFailed: it cannot be read.
        """
        return await self._rows.usage(client)

    # What dispatch tells of a job. Late news of a job that has ended are dropped.

    def changed(self, job_id: str, **changes: object) -> Job | None:
        """A step forward; tells all who follow the job."""
        if job_id not in self._line:
            return None
        before = self._jobs[job_id]
        job = self._jobs[job_id] = msgspec.structs.replace(before, **changes)
        if job.status is not before.status:
            self._rows.put(job)
            if job.status.is_final:
                self._finished(job)
            self._tell(job)
        if not job.status.is_final:
            self._line.put(job)
        self._hub.publish(job)
        return job

    async def remind(self) -> None:
        """Tells those who follow a job that waits when it has moved up in the line, from time to time, for ever."""
        told: dict[str, int] = {}
        while True:
            await asyncio.sleep(REMIND_EVERY)
            positions: dict[str, int] = {}
            for job_id in self._hub.followed():
                job = self._jobs.get(job_id)
                if job is None or job.status is not Status.QUEUED:
                    continue
                positions[job_id] = self.place(job).position
                if positions[job_id] != told.get(job_id):
                    self._hub.publish(job)
                    await asyncio.sleep(0)  # thousands may be told: others have their turn between them
            told = positions

    def is_suspect(self, job_id: str) -> bool:
        """Whether one more death of the process while it is painted would be taken to be its doing."""
        job = self._jobs.get(job_id)
        return job is not None and job.attempts >= ATTEMPTS - 1

    def previewed(self, job_id: str, preview: bytes) -> None:
        """What a running job's picture looks like so far, as a JPEG. It is told to all who follow it."""
        if job_id in self._line:
            self._hub.publish(self._jobs[job_id], preview)

    def _finished(self, job: Job) -> None:
        self._line.remove(job)
        self._deadlines.drop(job.id)
        self._inputs.pop(job.id, None)
        if self._webhooks is not None:
            self._webhooks.ended(job)
        self._forget_later(job)

    def began(self, job_id: str) -> None:
        """The engine has begun to paint."""
        job = self._jobs.get(job_id)
        if job is None or job_id not in self._line:
            return
        self.changed(job_id, status=Status.RUNNING, started_at=time.time(), attempts=job.attempts + 1)
        self._deadlines.runs(job_id)

    async def succeeded(self, job_id: str, **changes: object) -> bool:
        """The pictures are written. Those who wait are told once the row is, too; says whether the job is done."""
        job = self._jobs.get(job_id)
        if job is None or job_id not in self._line:
            return False
        job = msgspec.structs.replace(job, status=Status.SUCCEEDED, finished_at=time.time(), **changes)
        # A row that cannot be written costs nothing but painting the same picture again, should the process die.
        with contextlib.suppress(StorageFailed):
            await asyncio.wrap_future(self._rows.put(job))
        if job_id not in self._line:  # called off meanwhile, too late: what the row says now came last
            return False
        self._jobs[job_id] = job
        self._forecast.done(job, self._deadlines.seconds(job_id))
        self._finished(job)
        self._tell(job)
        self._hub.publish(job)
        return True

    def failed(self, job_id: str, error: DaguerreError) -> None:
        """The job ended without its pictures."""
        if job_id not in self._line:
            return
        self._errors[job_id] = error
        status = Status.CANCELLED if isinstance(error, JobCancelled) else Status.FAILED
        self.changed(job_id, status=status, finished_at=time.time(), error=Failure(error.code, error.message))

    def _forget_later(self, job: Job) -> None:
        assert job.finished_at is not None
        left = job.finished_at + self._result_ttl - time.time()
        asyncio.get_running_loop().call_later(max(0.0, left), self._forget, job.id)

    def _forget(self, job_id: str) -> None:
        self._jobs.pop(job_id, None)
        self._errors.pop(job_id, None)

    async def settled(self) -> None:
        """Returns when all that was changed before is durable."""
        with contextlib.suppress(StorageFailed):
            await self._rows.settled()

    async def drain(self, grace: float) -> None:
        """Takes no more jobs, lets those at hand finish for ``grace`` seconds, and ends the rest.

        Jobs that nobody waits for on a connection are kept for the next process: they are not begun any more, and one
        that does not finish in time is begun anew.
        """
        self.refuse(Draining())
        for job in self.unfinished:
            if not job.is_attached and job.status is Status.QUEUED:
                self._suspend(job)
        end_at = time.monotonic() + grace
        # Once in a process's life: an event would burden every job.
        while self._line and time.monotonic() < end_at:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        for job in self.unfinished:
            if job.is_attached:
                self.end(job.id, Draining())
            else:
                self._suspend(job)
        await self.settled()

    def _suspend(self, job: Job) -> None:
        """Leaves a job to the next process. That its painting was cut short is not held against it."""
        if not self.queue.remove(job.id):
            self._cancel_run(job.id, Draining())
        attempts = job.attempts - (job.status is Status.RUNNING)
        left = msgspec.structs.replace(job, status=Status.QUEUED, started_at=None, step=0, attempts=attempts)
        self._rows.put(left)
        if job.status is not left.status:
            self._tell(left)
        self._line.remove(job)
        self._deadlines.drop(job.id)
        self._hub.leave(job.id)

    def engine_died(self, error: NotReady) -> None:
        """Nothing more can be painted by this process; what nobody waits for on a connection is left to the next."""
        self.refuse(error)
        for job in self.unfinished:
            if job.is_attached:
                self.end(job.id, error)


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
