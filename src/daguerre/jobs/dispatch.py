"""Owns dispatch: feeds queued jobs to the engine, and turns its events into pictures on disk and states of jobs."""

import asyncio
import contextlib
import dataclasses
import errno
import logging
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from daguerre.engine import (
    Engine,
    EngineDied,
    Event,
    ModelAbsent,
    ModelLoading,
    ModelReady,
    Painted,
    Pixels,
    RunEnded,
    Started,
    Stepped,
    Submission,
)
from daguerre.errors import BadOutput, DaguerreError, DiskLow, ImageRefused, JobFailed, NotReady, SafetyCheckFailed
from daguerre.job import Image, Job, SafetyResult, Timings, gravest
from daguerre.jobs import pictures
from daguerre.jobs.inspection import Inspection
from daguerre.jobs.service import JobService
from daguerre.store.files import Files

log = logging.getLogger(__name__)

#: Jobs that the engine is given at once. It chooses among them: the more it sees, the less a short one waits.
AHEAD = 64


@dataclasses.dataclass(slots=True)
class EngineState:
    """What the rest of the house may know of the engine."""

    stage: str = "starting"
    ready: ModelReady | None = None
    error: DaguerreError | None = None


@dataclasses.dataclass(slots=True)
class Gathered:
    """How far the pictures of a job are, those that are written, and the seconds of their phases summed."""

    steps: dict[int, int] = dataclasses.field(default_factory=dict)  # done, by picture
    preview: bytes | None = None  # the latest
    images: dict[int, Image] = dataclasses.field(default_factory=dict)
    timings: Timings = dataclasses.field(default_factory=Timings)
    device_seconds: float = 0.0
    memory_peak: int | None = None

    def add(self, painted: Painted, image: Image, png_seconds: float) -> None:
        """One more picture."""
        self.images[painted.index] = image
        self.timings = _added(self.timings, painted, png_seconds)
        self.device_seconds += painted.device_seconds
        if painted.memory_peak is not None:
            self.memory_peak = max(painted.memory_peak, self.memory_peak or 0)


class Dispatch:
    """Between the event loop and the engine. ``receive`` runs on the loop; only pictures are made in the codec pool."""

    def __init__(
        self,
        service: JobService,
        engine: Engine,
        files: Files,
        codec: ThreadPoolExecutor,
        inspection: Inspection | None = None,
    ) -> None:
        self._inspection = inspection
        self._service = service
        self._engine = engine
        self._files = files
        self._codec = codec
        self._in_engine: dict[str, Gathered] = {}
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._writing: set[asyncio.Task[None]] = set()
        self.state = EngineState()

    @property
    def shows_previews(self) -> bool:
        """Whether anybody may see a picture that nobody has looked at; whoever asked for it, and by whatever way."""
        return self._inspection is None or self._inspection.allows_previews

    async def feed(self) -> None:
        """Hands jobs from the queue to the engine, for ever."""
        while True:
            await self._has_room.wait()
            job_id = await self._service.queue.take()
            # One that was there when the process died, twice: should it die again, no other job is to be blamed.
            is_suspect = self._service.is_suspect(job_id)
            if is_suspect:
                await self._is_idle.wait()
            job = self._service.find(job_id)
            if job is None or job.status.is_final:
                self._service.queue.done(job_id)
                continue
            self._in_engine[job_id] = Gathered()
            self._is_idle.clear()
            if len(self._in_engine) >= AHEAD:
                self._has_room.clear()
            try:
                submission = await self._submission(job)
            except DaguerreError as error:  # its model has gone from the weights folder since
                await self._fail(job, error)
                continue
            self._engine.submit(submission)
            if is_suspect:
                await self._is_idle.wait()

    async def _submission(self, job: Job) -> Submission:
        recipe, inputs = job.recipe, self._service.inputs(job.id)
        model = self._service.catalog.model(recipe.model)
        adapters = self._service.loras.adapters(recipe.loras)
        found = self._service.sources.find(recipe, model)
        loop = asyncio.get_running_loop()
        image = mask = None
        if inputs is not None:
            image, mask = await loop.run_in_executor(self._codec, inputs.fitted, (recipe.width, recipe.height))
        if not self.shows_previews:
            recipe = msgspec.structs.replace(recipe, preview_every=0)  # nobody would see them
        references, learned = await loop.run_in_executor(self._codec, found.read, inputs) if found else ((), ())
        return Submission(
            job.id,
            recipe,
            model,
            image,
            mask,
            client=job.client,
            adapters=adapters,
            ip_adapter=found.ip_adapter,
            references=references,
            learned=learned,
            is_urgent=job.is_urgent,
            is_durable=not job.is_attached,
        )

    def cancel(self, job_id: str, error: DaguerreError) -> None:
        """Stops a job that the engine has."""
        self._engine.cancel(job_id, error)

    def look(self, job_id: str) -> bytes | None:
        """The latest preview of a job that is being painted, a JPEG; another is made at its next step.

        None where pictures have to be inspected before anybody sees them.
        """
        gathered = self._in_engine.get(job_id)
        if gathered is None or not self.shows_previews:
            return None
        self._engine.look(job_id)
        return gathered.preview

    def receive(self, event: Event) -> None:
        """One event of the engine."""
        match event:
            case ModelLoading() | ModelReady() | ModelAbsent() | EngineDied():
                self._receive_state(event)
            case Started(job_id):
                self._service.began(job_id)
            case Stepped(job_id, index, step, steps, preview):
                self._step(job_id, index, step, steps)
                if preview is not None and self.shows_previews:
                    self._keep_task(self._show(job_id, preview))
            case Painted():
                self._keep_task(self._finish(event))
            case RunEnded(job_id, error):
                self._service.failed(job_id, error)
                self._keep_task(self._leave(job_id))

    def _step(self, job_id: str, index: int, step: int, steps: int) -> None:
        """A picture is a step further; those of one job take turns, or their steps together."""
        job, gathered = self._service.find(job_id), self._in_engine.get(job_id)
        if job is not None and gathered is not None:
            gathered.steps[index] = step
            self._service.changed(job_id, step=sum(gathered.steps.values()), steps=steps * job.recipe.count)

    async def _show(self, job_id: str, preview: Pixels) -> None:
        """Encodes a preview off the loop; one that cannot be shown is left out."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(BadOutput):
            data = await loop.run_in_executor(self._codec, pictures.preview, preview.array)
            if job_id in self._in_engine:
                self._in_engine[job_id].preview = data
            self._service.previewed(job_id, data)

    def _keep_task(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    def _receive_state(self, event: ModelLoading | ModelReady | ModelAbsent | EngineDied) -> None:
        match event:
            case ModelLoading(model, stage):
                self.state.stage = f"{model}: {stage}" if model else stage
                log.info("%s", self.state.stage)
            case ModelReady(model, device, dtype, seconds):
                if self._inspection is not None and self.state.ready is None:
                    self._inspection.prepare()
                self.state.ready, self.state.error = event, None
                log.info("%s is ready on %s in %s after %.1f s", model, device, dtype, seconds)
            case ModelAbsent(model, error):
                if self.state.ready is None:
                    self.state.error = error
                log.error("%s: %s", model, error)
            case EngineDied(error):
                self.state.error = error
                self._service.engine_died(NotReady(error.message))

    async def _finish(self, painted: Painted) -> None:
        """Has a picture looked at, encodes and writes it off the loop; the last one of a job ends it."""
        job = self._service.find(painted.job_id)
        gathered = self._in_engine.get(painted.job_id)
        if job is None or gathered is None or job.status.is_final:
            await self._leave(painted.job_id)
            return
        loop = asyncio.get_running_loop()
        try:
            painted, safety = await self._inspected(painted)
            image, seconds = await loop.run_in_executor(self._codec, self._keep, job, painted, safety)
        except DaguerreError as error:
            if isinstance(error, ImageRefused | SafetyCheckFailed):
                told: SafetyResult = "blocked" if isinstance(error, ImageRefused) else "unchecked"
                self._service.changed(job.id, safety_filter_result=told)
            await self._fail(job, error)
        except OSError as error:
            log.exception("job %s: its picture could not be written", job.id)
            await self._fail(job, _unwritten(error))
        else:
            gathered.add(painted, image, seconds)
            if job.id not in self._in_engine:  # the job was ended while this was written
                await self._drop(gathered)
            elif len(gathered.images) == job.recipe.count:
                await self._succeed(job, gathered)

    async def _inspected(self, painted: Painted) -> tuple[Painted, SafetyResult | None]:
        """The picture as it may be shown, and what is said of it."""
        if self._inspection is None:
            return painted, None
        pixels, result = await self._inspection.judge(painted.pixels)
        return dataclasses.replace(painted, pixels=pixels), result

    async def _succeed(self, job: Job, gathered: Gathered) -> None:
        queued = max(0.0, (job.started_at or job.created_at) - job.created_at)  # the clock may have been set back
        is_done = await self._service.succeeded(
            job.id,
            images=tuple(gathered.images[index] for index in sorted(gathered.images)),
            timings=msgspec.structs.replace(gathered.timings, queue=queued),
            device_seconds=gathered.device_seconds,
            memory_peak=gathered.memory_peak,
            safety_filter_result=gravest(*(image.safety_filter_result for image in gathered.images.values())),
        )
        if is_done:
            gathered.images.clear()
        await self._leave(job.id)

    def _keep(self, job: Job, painted: Painted, safety: SafetyResult | None) -> tuple[Image, float]:
        """In the codec pool: waits for the pixels there, so that neither the engine nor the loop has to."""
        pixels, safety = painted.pixels.array(), gravest(job.safety_filter_result, safety)
        return pictures.keep(self._files, pixels, job.recipe, job.id, painted.index, safety)

    async def _fail(self, job: Job, error: DaguerreError) -> None:
        self._engine.cancel(job.id, error)  # its other pictures, if any are still to come
        self._service.failed(job.id, error)
        await self._leave(job.id)

    async def _leave(self, job_id: str) -> None:
        """The engine has nothing more of this job; pictures of one that did not succeed are nobody's."""
        gathered = self._in_engine.pop(job_id, None)
        self._service.queue.done(job_id)
        if len(self._in_engine) < AHEAD:
            self._has_room.set()
        if not self._in_engine:
            self._is_idle.set()
        if gathered is not None:
            await self._drop(gathered)

    async def _drop(self, gathered: Gathered) -> None:
        names = [image.filename for image in gathered.images.values()]
        if names:
            await asyncio.get_running_loop().run_in_executor(self._codec, self._files.drop, names)


def _unwritten(error: OSError) -> DaguerreError:
    """What a client may know of a picture that could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskLow("there was no room for the picture on the server's disk", retry_after=60.0)
    return JobFailed("the picture could not be written; the server's log says why")


def _added(timings: Timings, painted: Painted, png_seconds: float) -> Timings:
    return Timings(
        encode=timings.encode + painted.encode_seconds,
        denoise=timings.denoise + painted.denoise_seconds,
        decode=timings.decode + painted.decode_seconds,
        png=timings.png + png_seconds,
    )
