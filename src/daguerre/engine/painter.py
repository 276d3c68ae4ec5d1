"""Owns the painter: what the engine thread does. It begins pictures, has their calls computed together, and ends them.

Only that thread ever enters here, so nothing needs a lock.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

import diffusers
import torch

from daguerre.engine import adapter_cache, ip_adapters
from daguerre.engine.adapter_cache import AdapterCache, AdapterRead
from daguerre.engine.admission import Admission
from daguerre.engine.events import Event, ModelLoading, ModelPlaced, Painted, Pixels, RunEnded, Started, Stepped
from daguerre.engine.faults import as_failure, free_memory, is_device_fault, is_out_of_memory, unwind, without_frames
from daguerre.engine.headroom import Headroom
from daguerre.engine.inbox import (
    Cancel,
    Close,
    Look,
    Message,
    Preload,
    PreloadAdapter,
    Unload,
    UnloadAdapter,
)
from daguerre.engine.notebook import Notebook
from daguerre.engine.options import Options
from daguerre.engine.pace import Pace
from daguerre.engine.painting import Painting
from daguerre.engine.pipelines import Pipeline, Timer
from daguerre.engine.rendezvous import Call, Run
from daguerre.engine.replay import Record, Records
from daguerre.engine.residency import Loaded, Residency
from daguerre.engine.scheduler import Entrant, Scheduler, Waiting, bucket, has_place
from daguerre.engine.share import DeviceMemory
from daguerre.engine.spill import Spilling
from daguerre.engine.submission import Submission
from daguerre.engine.warmup import warm_up
from daguerre.engine.watchdog import Watchdog
from daguerre.errors import DaguerreError, Draining, JobCancelled, OutOfMemory
from daguerre.references import IpAdapter
from daguerre.telemetry.counters import Counters
from daguerre.version import __version__

log = logging.getLogger(__name__)

#: Runs of a model whose forwards fail, without a picture in between, before its weights are read anew.
FAILURES = 3


class Painter:
    """Takes messages from the inbox and tells what happens by events, until it is told to close.

    ``on_fault`` is called when the device answers every call with an error.
    """

    def __init__(
        self,
        inbox: "SimpleQueue[Message]",
        emit: Callable[[Event], None],
        options: Options,
        watchdog: Watchdog,
        on_fault: Callable[[str], None],
        counters: Counters,
    ) -> None:
        self._inbox = inbox
        self._emit = emit
        self._max_runs = options.max_runs
        self._tuning = options.tuning
        self._watchdog = watchdog
        self._on_fault = on_fault
        self._counters = counters
        self._tuning.prepare()
        # Once for the whole thread: a run must not leave a torch context open across a switch.
        torch.set_grad_enabled(False)
        self._residency = Residency(
            options.device, options.dtype, emit, inbox.put, options.budgets, options.tuning, self._warm
        )
        self._device, dtype = self._residency.device, self._residency.dtype
        is_pinned = self._device.type == "cuda"
        self._adapters = AdapterCache(
            partial(adapter_cache.read, dtype=dtype, is_pinned=is_pinned), "loras", emit, inbox.put
        )
        self._ip_adapters = AdapterCache(
            partial(ip_adapters.read, dtype=dtype, device=self._device),
            "reference_images",
            lambda _: None,
            inbox.put,
            ip_adapters.BUDGET,
        )
        self._admission = Admission(self._residency, self._adapters, self._ip_adapters, counters, self._end_job)
        self._notebook = Notebook(options.notes, self._device, dtype)
        self._scheduler = Scheduler(curve=self._notebook.read())
        self._pace: Pace[list[Waiting]] = Pace(self._device)
        self._records = Records()
        self._spilling = Spilling(options.spills, options.spill_every)
        self._memory = DeviceMemory(self._device)
        self._headroom = Headroom(self._memory if self._memory.is_its_own else None)
        self._forwards = 0  # so far
        self._running: dict[Run, Painting] = {}
        self._calls: dict[Run, Call] = {}
        self._started: set[str] = set()
        self._failures: Counter[str] = Counter()  # in a row, by model
        self._is_open = True

    def work(self) -> None:
        """Until it is closed."""
        try:
            while self._is_open:
                with self._watchdog.step():
                    self._begin_runs()
                self._read_inbox()
                if self._calls:
                    with self._watchdog.step():
                        self._step()
        finally:
            self._notebook.write(self._scheduler.curve, least=1)
            self._adapters.close()
            self._ip_adapters.close()
            self._residency.close()
            self._spilling.close()

    def _warm(self, pipeline: Pipeline) -> None:
        if self._tuning.needs_warm_up(self._device):
            self._emit(ModelLoading(pipeline.model.name, "warming up"))
            warm_up(pipeline, self._scheduler.curve, self._device)

    def _read_inbox(self) -> None:
        """Takes all messages; waits for one only when there is nothing to compute."""
        must_wait = not self._calls
        if must_wait:
            self._notebook.write(self._scheduler.curve)
        while True:
            try:
                message = self._inbox.get(block=must_wait)
            except Empty:
                return
            self._take(message)
            del message  # a model that it brought must not outlive its stay here
            must_wait = False

    def _take(self, message: Message) -> None:
        match message:
            case Submission(recipe=recipe):
                now = time.monotonic()
                paintings = (Painting(message, index, now, recipe.steps) for index in range(recipe.count))
                self._admission.waiting.extend(paintings)
            case Cancel(job_id=job_id, error=error):
                self._end_job(job_id, error)
            case Look(job_id=job_id):
                self._watch(job_id)
            case Preload(model=model):
                self._admission.preload(model)
            case Unload(name=name):
                self._unload(name)
            case Loaded():
                self._residency.take(message, self._in_use)
                self._counters.memory = self._memory.now()
            case PreloadAdapter(adapter=adapter):
                self._adapters.ask(adapter)
            case UnloadAdapter(name=name):
                self._adapters.drop(name)
            case AdapterRead(adapter=adapter):
                (self._ip_adapters if isinstance(adapter, IpAdapter) else self._adapters).take(message)
            case Close():
                for job_id in {painting.job_id for painting in self._alive}:
                    self._end_job(job_id, JobCancelled("the server is shutting down"))
                self._is_open = False

    @property
    def _alive(self) -> list[Painting]:
        """The pictures that wait, and those under way."""
        return [*self._admission.waiting, *self._running.values()]

    @property
    def _in_use(self) -> set[str]:
        """The models that pictures under way need."""
        return {painting.model.name for painting in self._running.values()}

    def _watch(self, job_id: str) -> None:
        """Of a job's pictures under way the one that began first is to be shown once."""
        first = next((painting for painting in self._running.values() if painting.job_id == job_id), None)
        if first is not None:
            first.is_watched = True

    def _unload(self, name: str) -> None:
        if name in self._in_use:
            self._emit(ModelPlaced(name, "device"))
        else:
            self._residency.drop(name)

    # Pictures begin.

    def _begin_runs(self) -> None:
        """Begins waiting pictures in the scheduler's order, as far as their models are there and there is room."""
        while len(self._running) < self._max_runs:
            ready = self._admission.ready(self._running.values())
            entrants = [painting.entrant() for painting in ready]
            under_way = [painting.forwards for painting in self._running.values()]
            if under_way:
                entrants = [one for one in entrants if self._has_room(one)]
            order = self._scheduler.order(entrants, time.monotonic())
            first = next((one.run for one in order if has_place(one.forwards, under_way, self._max_runs)), None)
            if first is None:
                return
            assert isinstance(first, Painting)
            self._admission.waiting.remove(first)
            self._begin(first, ready[first])

    def _has_room(self, entrant: Entrant) -> bool:
        """Whether the device's memory has room for one more picture beside those under way."""
        assert isinstance(entrant.run, Painting)
        return self._headroom.has_room(entrant.run.extent, [painting.extent for painting in self._running.values()])

    def _begin(self, painting: Painting, pipeline: Pipeline) -> None:
        job_id = painting.job_id
        if job_id not in self._started:
            self._started.add(job_id)
            self._emit(Started(job_id))
        painting.record = self._record(painting, pipeline)
        run = self._make_run(painting, pipeline)
        self._lap()
        self._running[run] = painting
        painting.pipeline = pipeline
        with self._headroom.beginning(painting.extent):
            self._advance(run, lambda: _start(run, painting, pipeline))

    def _record(self, painting: Painting, pipeline: Pipeline) -> Record:
        """Empty, or with what a process before this one left of the same picture."""
        made_with = partial(self._made_with, painting, pipeline)
        is_durable = painting.submission.is_durable
        spill = self._spilling.of(painting.job_id, painting.index, made_with) if is_durable else None
        record = Record(self._records, spill)
        if len(record):
            log.info("job %s: picture %d goes on after %d forwards", painting.job_id, painting.index, len(record))
        return record

    def _made_with(self, painting: Painting, pipeline: Pipeline) -> bytes:
        """All that a job's pictures depend on beside the job itself: where it differs, they begin anew."""
        submission = painting.submission
        looks = [(reference.digest, reference.scale) for reference in submission.seen]
        learned = [one.digest for one in submission.learned]
        versions = __version__, torch.__version__, diffusers.__version__
        place = str(self._device), str(self._residency.dtype), versions
        return repr((pipeline.model.edition.files, painting.adapters_key, looks, learned, place)).encode()

    def _lap(self) -> None:
        """Who is under way changes: the most memory that was held up to now was held by those until now."""
        peak = self._memory.lap()
        if peak is not None:
            for painting in self._running.values():
                painting.share.memory_peak = max(peak, painting.share.memory_peak or 0)
            self._counters.memory = self._memory.now()

    def _make_run(self, painting: Painting, pipeline: Pipeline) -> Run:
        submission, index = painting.submission, painting.index
        timer = painting.timer = Timer()

        def on_step(step: int, steps: int, preview: Callable[[], Pixels | None]) -> None:
            painting.forwards = steps - step
            every = submission.recipe.preview_every
            is_due = step < steps and (painting.is_watched or (every and step % every == 0))
            painting.is_watched = False
            self._emit(Stepped(painting.job_id, index, step, steps, preview() if is_due else None))

        return Run(
            lambda: pipeline.paint(
                submission.recipe,
                submission.image,
                submission.mask,
                index,
                on_step,
                timer,
                submission.seen,
                submission.learned,
            ),
            painting.kind,
        )

    # Their calls are computed.

    def _step(self) -> None:
        """One forward for the calls that the scheduler picks, and their runs go on with its output."""
        waiting = [self._running[run].waiting(call, self._device) for run, call in self._calls.items()]
        picked = self._scheduler.pick(waiting, time.monotonic())
        calls = [self._calls.pop(_run_of(waiting)) for waiting in picked]
        aside = [run for run in self._calls if self._running[run].last_forward == self._forwards > 0]
        self._counters.preemptions += len(aside)
        self._forwards += 1
        for call in calls:
            self._running[call.run].last_forward = self._forwards
        self._forward(calls, picked)

    def _forward(self, calls: list[Call], picked: list[Waiting]) -> None:
        rows = sum(call.rows for call in calls)
        painting = self._running[calls[0].run]
        assert painting.pipeline is not None
        try:
            self._counters.lora_switches += painting.pipeline.adapters.wear_on_denoiser(painting.worn)
            painting.pipeline.references.wear(painting.ip_adapter, painting.scales)
            self._pace.begin()
            with self._headroom.computing(painting.extent):
                outputs = calls[0].meeting.forward(calls, bucket(rows) if _can_share(picked[0]) else rows)
        except Exception as error:
            self._forward_failed(calls, picked, error)
            return
        self._counters.forwards[rows] += 1
        for call in calls:
            self._running[call.run].share.forwards += 1
        for timed in self._pace.end(picked):
            self._scheduler.ran(timed.subject, timed.seconds, time.monotonic())
            self._notebook.count()
            self._share_out(timed.subject, timed.seconds)
        for call, output in zip(calls, outputs, strict=True):
            if call.run in self._running:  # else another picture of its job has just failed, and ended it
                self._answer(call, output)

    def _share_out(self, subject: list[Waiting], seconds: float) -> None:
        """A forward has been timed: each picture that took part and is still under way has its part of it."""
        self._counters.forward_seconds += seconds
        rows = sum(waiting.rows for waiting in subject)
        for waiting in subject:
            painting = self._running.get(_run_of(waiting))
            if painting is not None:
                painting.share.add(seconds * waiting.rows / rows)

    def _forward_failed(self, calls: list[Call], picked: list[Waiting], error: Exception) -> None:
        """Nothing has changed yet: out of memory, the calls wait for smaller sets; else each is tried alone."""
        if is_out_of_memory(error):
            self._counters.out_of_memory += 1
            self._scheduler.ran_out_of_memory(picked[0].key, sum(call.rows for call in calls))
            error.__traceback__ = None  # its frames hold the tensors of the failed forward
            free_memory()
        if len(calls) == 1:
            run = calls[0].run
            if not is_out_of_memory(error):
                self._count_failure(self._running[run].model.name)
            self._advance(run, lambda: run.fail(error))
        elif is_out_of_memory(error):
            self._calls |= {call.run: call for call in calls}
        else:
            for call, waiting in zip(calls, picked, strict=True):
                if call.run in self._running:
                    self._forward([call], [waiting])

    def _count_failure(self, model: str) -> None:
        """The denoiser itself failed: if that goes on, something in memory may be broken that a fresh read mends."""
        self._failures[model] += 1
        if self._failures[model] >= FAILURES:
            log.warning("model %s has failed %d times in a row: its weights are read anew", model, FAILURES)
            self._residency.drop(model)
            del self._failures[model]

    def _answer(self, call: Call, output: Any) -> None:
        painting = self._running[call.run]
        assert painting.record is not None
        painting.record.keep(output)
        with self._headroom.computing(painting.extent):  # if it was the last, the picture is decoded
            self._advance(call.run, lambda: call.run.resume(output))

    # They go on, and end.

    def _advance(self, run: Run, resume: Callable[[], Any]) -> None:
        """Lets a run go on to its next call or to its end; whatever it raises fails its job alone."""
        painting = self._running[run]
        outcome = self._outcome(run, painting, resume)
        if isinstance(outcome, Call):
            painting.since = time.monotonic()
            self._calls[run] = outcome
            return
        self._lap()
        del self._running[run]
        if isinstance(outcome, Exception) and is_out_of_memory(outcome):
            outcome.__traceback__ = None
            outcome = self._decode_again(painting, outcome)
        assert painting.record is not None
        painting.record.drop()
        if isinstance(outcome, Exception):
            if is_device_fault(outcome):
                self._on_fault("the device answers with an error that does not go away")
            self._end_job(painting.job_id, as_failure(outcome, painting.job_id))
        else:
            self._painted(painting, outcome)

    def _outcome(self, run: Run, painting: Painting, resume: Callable[[], Any]) -> Any:
        """A run's next call that its record cannot answer, its picture, or what it raised."""
        assert painting.record is not None
        try:
            outcome = resume()
            while isinstance(outcome, Call):
                answer = painting.record.answer(self._device)
                if answer is None:
                    break
                outcome = run.resume(answer)
        except Exception as error:
            return error
        return outcome

    def _decode_again(self, painting: Painting, error: Exception) -> Any:
        """After running out of memory at the end of a run: the same run from its record, decoded in tiles.

        Every denoiser call is answered from the record, so this goes from the run's beginning to its end at once.
        """
        pipeline = self._residency.find(painting.model, {painting.model.name, *self._in_use})
        assert painting.record is not None
        if pipeline is None or painting.forwards > 0 or not painting.record.rewind():
            return error
        free_memory()
        log.warning("job %s: out of memory while decoding; decoding in tiles", painting.job_id)
        run = self._make_run(painting, pipeline)
        with pipeline.tiled_decode():
            outcome = self._outcome(run, painting, lambda: _start(run, painting, pipeline))
        if isinstance(outcome, Call):  # it asks for more than before
            unwind(run, OutOfMemory())
            return error
        return outcome

    def _painted(self, painting: Painting, pixels: Pixels) -> None:
        job_id, timer = painting.job_id, painting.timer
        assert timer is not None
        self._failures.pop(painting.model.name, None)
        if not self._has_pictures_of(job_id):
            self._started.discard(job_id)
            self._spilling.drop(job_id)
        self._emit(
            Painted(
                job_id,
                painting.index,
                pixels,
                encode_seconds=timer.encoded - timer.began,
                denoise_seconds=timer.denoised - timer.encoded,
                decode_seconds=timer.decoded - timer.denoised,
                device_seconds=timer.encoded - timer.began + painting.share.seconds + timer.decoded - timer.denoised,
                memory_peak=painting.share.memory_peak,
                tokens=timer.tokens,
            )
        )

    def _has_pictures_of(self, job_id: str) -> bool:
        """Whether any picture of the job is still to be painted."""
        return any(painting.job_id == job_id for painting in self._alive)

    def _end_job(self, job_id: str, error: DaguerreError) -> None:
        """Ends a job: its waiting pictures are dropped, its running ones unwound. Tells so once, if any was left."""
        was_known = job_id in self._started or self._has_pictures_of(job_id)
        self._admission.drop(job_id)
        for run in [run for run, painting in self._running.items() if painting.job_id == job_id]:
            painting = self._running.pop(run)
            self._calls.pop(run, None)
            unwind(run, error)
            assert painting.record is not None
            if isinstance(error, Draining):
                painting.record.put_aside()
            painting.record.drop()
        self._started.discard(job_id)
        if not isinstance(error, Draining):
            self._spilling.drop(job_id)
        if was_known:
            self._emit(RunEnded(job_id, without_frames(error)))


def _start(run: Run, painting: Painting, pipeline: Pipeline) -> Any:
    """Goes to its first call, for which its prompt and its references are encoded: its adapters are on by then."""
    pipeline.adapters.wear_on_encoders(painting.worn)
    pipeline.references.wear(painting.ip_adapter, painting.scales)
    return run.resume()


def _can_share(waiting: Waiting) -> bool:
    return isinstance(waiting.key, tuple) and not isinstance(waiting.key[-1], int)


def _run_of(waiting: Waiting) -> Run:
    assert isinstance(waiting.run, Run)
    return waiting.run
