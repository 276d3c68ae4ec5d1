"""Owns the engine thread: takes submissions from its inbox, paints, and tells what happens by events.

Two crossings touch the thread: the inbox, and ``emit``, which is called on it. So nothing in here needs a lock.
"""

import gc
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from daguerre.catalog import Model
from daguerre.embeddings import Learned
from daguerre.engine.adapter_cache import AdapterCache, AdapterRead
from daguerre.engine.events import (
    EngineDied,
    Event,
    ModelLoading,
    ModelPlaced,
    Painted,
    Pixels,
    RunEnded,
    Started,
    Stepped,
)
from daguerre.engine.residency import Budgets, Loaded, Residency
from daguerre.engine.scheduler import Entrant, Scheduler, Waiting, bucket, has_place
from daguerre.engine.share import DeviceMemory, Share
from daguerre.engine.tuning import UNTUNED, Tuning
from daguerre.engine.watchdog import Watchdog
from daguerre.errors import DaguerreError, JobCancelled, JobFailed, NotReady, OutOfMemory
from daguerre.loras import Adapter
from daguerre.recipe import Recipe
from daguerre.references import IpAdapter
from daguerre.telemetry.counters import Counters

if TYPE_CHECKING:
    from daguerre.engine.adapter_cache import Hosted
    from daguerre.engine.headroom import Headroom
    from daguerre.engine.ip_adapters import HostedIpAdapter
    from daguerre.engine.notebook import Notebook
    from daguerre.engine.pace import Pace
    from daguerre.engine.pipelines import Pipeline, Timer
    from daguerre.engine.rendezvous import Call, Run
    from daguerre.engine.replay import Record, Records

log = logging.getLogger(__name__)

#: Pictures under way at once, where nothing else says.
MAX_RUNS = 16
#: Seconds that a step may take, with the decoding of the pictures it finishes: SDXL on a slow CPU needs some.
STEP_TIMEOUT = 600.0
#: Runs of a model whose forwards fail, without a picture in between, before its weights are read anew.
FAILURES = 3


@dataclass(frozen=True, slots=True)
class Reference:
    """A reference image, and how strongly it counts; the digest stands for the picture."""

    picture: NDArray[np.uint8]  # [H, W, 3]
    scale: float
    digest: str


@dataclass(frozen=True, slots=True)
class Submission:
    """A job as the engine sees it: it knows nothing of users, addresses and files."""

    id: str
    recipe: Recipe
    model: Model
    image: NDArray[np.uint8] | None = None  # [H, W, 3], in the recipe's size
    mask: NDArray[np.uint8] | None = None  # [H, W], 255 is painted anew
    client: str = ""
    adapters: tuple[tuple[Adapter, float], ...] = ()  # each with its weight
    ip_adapter: IpAdapter | None = None  # what looks at the references
    references: tuple[Reference, ...] = ()
    learned: tuple[Learned, ...] = ()  # textual inversions that its prompts name
    is_urgent: bool = False

    @property
    def seen(self) -> tuple[Reference, ...]:
        """The references that count: one at scale 0 is none."""
        return tuple(reference for reference in self.references if reference.scale)


@dataclass(frozen=True, slots=True)
class Cancel:
    """Ends a job with this error at the next step of each of its runs."""

    job_id: str
    error: DaguerreError


@dataclass(frozen=True, slots=True)
class Look:
    """Has one preview made of a job's first picture under way, at its next step."""

    job_id: str


@dataclass(frozen=True, slots=True)
class Preload:
    """Loads a model before anybody asks for a picture of it."""

    model: Model


@dataclass(frozen=True, slots=True)
class Unload:
    """Lets go of a model's weights, unless a picture of it is under way."""

    name: str


@dataclass(frozen=True, slots=True)
class PreloadAdapter:
    """Reads an adapter before anybody asks for a picture with it."""

    adapter: Adapter


@dataclass(frozen=True, slots=True)
class UnloadAdapter:
    """Lets go of an adapter's weights; pictures under way keep theirs to their end."""

    name: str


@dataclass(frozen=True, slots=True)
class Close:
    """Ends every job and then the thread."""


Message = Submission | Cancel | Look | Preload | Unload | PreloadAdapter | UnloadAdapter | Close | Loaded | AdapterRead


@dataclass(slots=True, eq=False)
class Painting:
    """A picture that is waiting for its run, or running: one of a submission's ``count``."""

    submission: Submission
    index: int
    since: float  # monotonic seconds at which it began to wait, for its run or for its next forward
    forwards: int  # that it still has to do, as far as is known
    timer: "Timer | None" = None
    record: "Record | None" = None
    pipeline: "Pipeline | None" = None
    hosted: list["Hosted"] = field(default_factory=list)
    ip_adapter: "HostedIpAdapter | None" = None
    share: Share = field(default_factory=Share)
    last_forward: int = 0  # the number of the last one that it took part in
    is_counted: bool = False  # among those that looked for their adapters
    is_watched: bool = False  # somebody wants to see it at its next step

    @property
    def worn(self) -> list[tuple["Hosted", float]]:
        """Its adapters in host memory, each with its weight."""
        weights = [weight for _, weight in self.submission.adapters]
        return list(zip(self.hosted, weights, strict=True))

    @property
    def adapters_key(self) -> tuple[Hashable, ...]:
        """Pictures whose keys differ need other weights: they share no forward."""
        key = tuple((adapter.key, weight) for adapter, weight in self.submission.adapters if weight)
        wanted = self.submission.ip_adapter
        return (*key, (wanted.key, self.scales)) if wanted is not None and self.scales else key

    @property
    def scales(self) -> tuple[float, ...]:
        """Of its references."""
        return tuple(reference.scale for reference in self.submission.seen)

    @property
    def job_id(self) -> str:
        """Whose picture it is."""
        return self.submission.id

    @property
    def extent(self) -> tuple[Hashable, ...]:
        """By what the memory that it takes is known."""
        return (self.submission.model.name, self.submission.recipe.width, self.submission.recipe.height)

    @property
    def kind(self) -> tuple[Hashable, ...]:
        """What its calls have in common with those that they may share forwards with."""
        return (*self.extent, self.adapters_key) if self.adapters_key else self.extent


@dataclass(slots=True)
class State:
    """What the engine thread works on. Only that thread ever sees it."""

    residency: Residency
    scheduler: Scheduler
    pace: "Pace[list[Waiting]]"
    records: "Records"
    notebook: "Notebook"
    adapters: "AdapterCache[Adapter, Hosted]"
    ip_adapters: "AdapterCache[IpAdapter, HostedIpAdapter]"
    headroom: "Headroom"
    memory: DeviceMemory
    forwards: int = 0  # so far
    waiting: list[Painting] = field(default_factory=list)
    running: dict["Run", Painting] = field(default_factory=dict)
    calls: dict["Run", "Call"] = field(default_factory=dict)
    started: set[str] = field(default_factory=set)
    failures: Counter[str] = field(default_factory=Counter)  # in a row, by model
    preloads: list[Model] = field(default_factory=list)
    is_open: bool = True

    @property
    def in_use(self) -> set[str]:
        """The models that pictures under way need."""
        return {painting.submission.model.name for painting in self.running.values()}

    def has_room(self, entrant: Entrant) -> bool:
        """Whether the device's memory has room for one more picture beside those under way."""
        assert isinstance(entrant.run, Painting)
        return self.headroom.has_room(entrant.run.extent, [painting.extent for painting in self.running.values()])

    def watch(self, job_id: str) -> None:
        """Of a job's pictures under way the one that began first is to be shown once."""
        first = next((painting for painting in self.running.values() if painting.job_id == job_id), None)
        if first is not None:
            first.is_watched = True

    def has_pictures_of(self, job_id: str) -> bool:
        """Whether any picture of the job is still to be painted."""
        return any(painting.job_id == job_id for painting in (*self.waiting, *self.running.values()))


class Engine:
    """Paints pictures on one thread. ``emit`` is called with every event, on that thread: it must not block.

    At most ``max_runs`` pictures are under way at once, fewer where the device's memory has no room; they share
    forwards where their calls allow it. ``on_fault`` is called when nothing but a new process helps: a step that takes
    longer than ``step_timeout`` seconds (on a thread of its own), or a device that answers every call with an error.
    ``notes`` is the folder where it keeps what forwards take on this device.
    """

    def __init__(
        self,
        emit: Callable[[Event], None],
        device: str = "auto",
        dtype: str = "auto",
        max_runs: int = MAX_RUNS,
        step_timeout: float = STEP_TIMEOUT,
        on_fault: Callable[[str], None] = lambda _: None,
        tuning: Tuning = UNTUNED,
        notes: Path | None = None,
        budgets: Budgets | None = None,
        counters: Counters | None = None,
    ) -> None:
        self._budgets = budgets or Budgets()
        self._emit = emit
        self._tuning = tuning
        self._notes = notes
        self.step_timeout = step_timeout
        self._on_fault = on_fault
        self._device = device
        self._dtype = dtype
        self._max_runs = max_runs
        self._watchdog: Watchdog | None = None
        self.counters = counters or Counters()
        self._inbox: SimpleQueue[Message] = SimpleQueue()
        # A daemon: a hung device call must not keep the process from ending.
        self._thread = threading.Thread(target=self._main, name="daguerre-engine", daemon=True)

    @property
    def step_seconds(self) -> float:
        """How long the step at hand has taken so far."""
        return 0.0 if self._watchdog is None else self._watchdog.seconds

    def start(self, preload: Model | None = None) -> None:
        """Starts the thread; torch is imported there, so this returns at once."""
        if preload is not None:
            self._inbox.put(Preload(preload))
        self._thread.start()

    def load(self, model: Model) -> None:
        """Loads a model before anybody asks for a picture of it; those that are painted meanwhile go on."""
        self._inbox.put(Preload(model))

    def unload(self, name: str) -> None:
        """Lets go of a model's weights, unless a picture of it is under way; an event tells where they are then."""
        self._inbox.put(Unload(name))

    def load_adapter(self, adapter: Adapter) -> None:
        """Reads an adapter before anybody asks for a picture with it; an event tells when it is here."""
        self._inbox.put(PreloadAdapter(adapter))

    def unload_adapter(self, name: str) -> None:
        """Lets go of an adapter; an event tells so."""
        self._inbox.put(UnloadAdapter(name))

    def submit(self, submission: Submission) -> None:
        """Hands over a job; events tell the rest."""
        self._inbox.put(submission)

    def cancel(self, job_id: str, error: DaguerreError | None = None) -> None:
        """Ends a job within one step; an unknown or finished one is left as it is."""
        self._inbox.put(Cancel(job_id, error or JobCancelled()))

    def look(self, job_id: str) -> None:
        """Has one preview made at the next step of a job; of one that is not being painted there is none."""
        self._inbox.put(Look(job_id))

    def close(self, timeout: float) -> bool:
        """Ends every job and the thread; says whether it ended within that many seconds."""
        self._inbox.put(Close())
        if self._thread.is_alive():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    # Everything below runs on the engine thread.

    def _main(self) -> None:
        try:
            self._work()
        except Exception:
            log.exception("the engine thread died")
            self._emit(EngineDied(NotReady("the engine has stopped; restart the server")))

    def _work(self) -> None:
        self._emit(ModelLoading("", "importing torch and diffusers"))
        import torch

        from daguerre.engine import adapter_cache, ip_adapters
        from daguerre.engine.headroom import Headroom
        from daguerre.engine.notebook import Notebook
        from daguerre.engine.pace import Pace
        from daguerre.engine.replay import Records
        from daguerre.engine.warmup import warm_up

        self._tuning.prepare()
        # Once for the whole thread: a run must not leave a torch context open across a switch.
        torch.set_grad_enabled(False)
        residency = Residency(
            self._device, self._dtype, self._emit, self._inbox.put, self._budgets, self._tuning, lambda one: warm(one)
        )
        dtype, is_pinned = residency.dtype, residency.device.type == "cuda"
        adapters = AdapterCache(
            partial(adapter_cache.read, dtype=dtype, is_pinned=is_pinned), "loras", self._emit, self._inbox.put
        )
        looking = AdapterCache(
            partial(ip_adapters.read, dtype=dtype, device=residency.device),
            "reference_images",
            lambda _: None,
            self._inbox.put,
            ip_adapters.BUDGET,
        )
        notebook = Notebook(self._notes, residency.device, residency.dtype)
        scheduler = Scheduler(curve=notebook.read())
        memory = DeviceMemory(residency.device)
        headroom = Headroom(memory if memory.is_its_own else None)
        state = State(
            residency, scheduler, Pace(residency.device), Records(), notebook, adapters, looking, headroom, memory
        )

        def warm(pipeline: "Pipeline") -> None:
            if self._tuning.needs_warm_up(residency.device):
                self._emit(ModelLoading(pipeline.model.name, "warming up"))
                warm_up(pipeline, scheduler.curve, residency.device)

        watchdog = self._watchdog = Watchdog(self.step_timeout, lambda: self._on_fault("a step has taken too long"))
        try:
            while state.is_open:
                with watchdog.step():
                    self._begin_runs(state)
                self._read_inbox(state)
                if state.calls:
                    with watchdog.step():
                        self._step(state)
        finally:
            notebook.write(scheduler.curve, least=1)
            watchdog.close()
            adapters.close()
            looking.close()
            residency.close()

    def _read_inbox(self, state: State) -> None:
        """Takes all messages; waits for one only when there is nothing to compute."""
        must_wait = not state.calls
        if must_wait:
            state.notebook.write(state.scheduler.curve)
        while True:
            try:
                message = self._inbox.get(block=must_wait)
            except Empty:
                return
            self._take(state, message)
            del message  # a model that it brought must not outlive its stay here
            must_wait = False

    def _take(self, state: State, message: Message) -> None:
        match message:
            case Submission(recipe=recipe):
                now = time.monotonic()
                state.waiting.extend(Painting(message, index, now, recipe.steps) for index in range(recipe.count))
            case Cancel(job_id=job_id, error=error):
                self._end_job(state, job_id, error)
            case Look(job_id=job_id):
                state.watch(job_id)
            case Preload(model=model):
                state.preloads.append(model)
            case Unload(name=name):
                self._unload(state, name)
            case Loaded():
                state.residency.take(message, state.in_use)
                self.counters.memory = state.memory.now()
            case PreloadAdapter(adapter=adapter):
                state.adapters.ask(adapter)
            case UnloadAdapter(name=name):
                state.adapters.drop(name)
            case AdapterRead(adapter=adapter):
                (state.ip_adapters if isinstance(adapter, IpAdapter) else state.adapters).take(message)
            case Close():
                for job_id in {painting.job_id for painting in (*state.waiting, *state.running.values())}:
                    self._end_job(state, job_id, JobCancelled("the server is shutting down"))
                state.is_open = False

    def _unload(self, state: State, name: str) -> None:
        if name in state.in_use:
            self._emit(ModelPlaced(name, "device"))
        else:
            state.residency.drop(name)

    def _begin_runs(self, state: State) -> None:
        """Begins waiting pictures in the scheduler's order, as far as their models are there and there is room."""
        while len(state.running) < self._max_runs:
            ready = self._ready(state)
            entrants = [_entrant(painting) for painting in ready]
            under_way = [painting.forwards for painting in state.running.values()]
            if under_way:
                entrants = [one for one in entrants if state.has_room(one)]
            order = state.scheduler.order(entrants, time.monotonic())
            first = next((one.run for one in order if has_place(one.forwards, under_way, self._max_runs)), None)
            if first is None:
                return
            assert isinstance(first, Painting)
            state.waiting.remove(first)
            self._begin(state, first, ready[first])

    def _ready(self, state: State) -> dict[Painting, "Pipeline"]:
        """The waiting pictures whose models are on the device; the models of the others are asked for.

        Who came first has the say: a model makes room only when no picture under way needs it, and none that came
        earlier. So that two models do not take turns with every picture, all who wait for the present ones go on until
        their turn is over.
        """
        in_use = state.in_use
        if state.residency.is_turn:
            wanted = (painting.submission.model for painting in state.waiting)
            in_use |= {model.name for model in wanted if not state.residency.is_outdated(model)}
        dressed = {painting for painting in list(state.waiting) if self._is_dressed(state, painting)}
        state.adapters.settle()
        state.ip_adapters.settle()
        ready: dict[Painting, Pipeline] = {}
        failed: dict[str, DaguerreError] = {}
        crowded_out: str | None = None
        for painting in list(state.waiting):
            model = painting.submission.model
            if crowded_out not in (None, model.name):
                continue  # else the models in use would stay so for ever
            try:
                pipeline = state.residency.find(model, in_use)
            except DaguerreError as error:
                failed[model.name] = error
                continue
            if pipeline is not None:
                in_use.add(model.name)
                has_room = painting not in dressed or self._is_furnished(state, painting, pipeline, in_use)
                if painting in dressed and has_room and painting in state.waiting:
                    ready[painting] = pipeline
                elif not has_room:
                    crowded_out = model.name
            elif state.residency.is_crowded_out(model) and not state.residency.is_turn:
                crowded_out = model.name
        for painting in [painting for painting in state.waiting if painting.submission.model.name in failed]:
            self._end_job(state, painting.job_id, failed[painting.submission.model.name])
        self._preload(state, in_use)
        state.residency.forget_failures()
        return ready

    def _is_dressed(self, state: State, painting: Painting) -> bool:
        """Whether its adapters are in host memory; those that are not are asked for."""
        try:
            hosted = state.adapters.find([adapter for adapter, _ in painting.submission.adapters])
        except DaguerreError as error:
            self._end_job(state, painting.job_id, error)
            return False
        painting.hosted = hosted or []
        if not painting.is_counted and painting.submission.adapters:
            painting.is_counted = True
            self.counters.adapter_hits += hosted is not None
            self.counters.adapter_misses += hosted is None
        return hosted is not None and self._has_eyes(state, painting)

    def _has_eyes(self, state: State, painting: Painting) -> bool:
        """Whether its IP-Adapter is in host memory, if it has references."""
        wanted = painting.submission.ip_adapter
        if wanted is None or not painting.scales:
            return True
        try:
            found = state.ip_adapters.find([wanted])
        except DaguerreError as error:
            self._end_job(state, painting.job_id, error)
            return False
        painting.ip_adapter = None if found is None else found[0]
        return found is not None

    def _is_furnished(self, state: State, painting: Painting, pipeline: "Pipeline", in_use: set[str]) -> bool:
        """Whether what it needs of adapters is on the device, or there is room for it: then it is there now."""
        alive = (*state.waiting, *state.running.values())
        keep = {other.ip_adapter.key for other in alive if other.ip_adapter is not None}
        try:
            if painting.worn and not state.residency.dress(pipeline, painting.worn, in_use):
                return False
            if painting.ip_adapter is None:
                return True
            return state.residency.furnish(pipeline, painting.ip_adapter, keep, in_use)
        except DaguerreError as error:
            self._end_job(state, painting.job_id, error)
            return True

    def _preload(self, state: State, in_use: set[str]) -> None:
        for model in list(state.preloads):
            try:
                is_done = state.residency.find(model, in_use) is not None
            except DaguerreError:  # its event has told
                is_done = True
            if is_done:
                state.preloads.remove(model)

    def _begin(self, state: State, painting: Painting, pipeline: "Pipeline") -> None:
        from daguerre.engine.replay import Record

        job_id = painting.job_id
        if job_id not in state.started:
            state.started.add(job_id)
            self._emit(Started(job_id))
        painting.record = Record(state.records)
        run = self._make_run(painting, pipeline)
        self._lap(state)
        state.running[run] = painting
        painting.pipeline = pipeline
        with state.headroom.beginning(painting.extent):
            self._advance(state, run, lambda: _start(run, painting, pipeline))

    def _lap(self, state: State) -> None:
        """Who is under way changes: the most memory that was held up to now was held by those until now."""
        peak = state.memory.lap()
        if peak is not None:
            for painting in state.running.values():
                painting.share.memory_peak = max(peak, painting.share.memory_peak or 0)
            self.counters.memory = state.memory.now()

    def _make_run(self, painting: Painting, pipeline: "Pipeline") -> "Run":
        from daguerre.engine.pipelines import Timer
        from daguerre.engine.rendezvous import Run

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

    def _step(self, state: State) -> None:
        """One forward for the calls that the scheduler picks, and their runs go on with its output."""
        waiting = [_waiting(state.running[run], call) for run, call in state.calls.items()]
        picked = state.scheduler.pick(waiting, time.monotonic())
        calls = [state.calls.pop(_run_of(waiting)) for waiting in picked]
        aside = [run for run in state.calls if state.running[run].last_forward == state.forwards > 0]
        self.counters.preemptions += len(aside)
        state.forwards += 1
        for call in calls:
            state.running[call.run].last_forward = state.forwards
        self._forward(state, calls, picked)

    def _forward(self, state: State, calls: list["Call"], picked: list[Waiting]) -> None:
        rows = sum(call.rows for call in calls)
        painting = state.running[calls[0].run]
        assert painting.pipeline is not None
        try:
            self.counters.lora_switches += painting.pipeline.adapters.wear_on_denoiser(painting.worn)
            painting.pipeline.references.wear(painting.ip_adapter, painting.scales)
            state.pace.begin()
            with state.headroom.computing(painting.extent):
                outputs = calls[0].meeting.forward(calls, bucket(rows) if _can_share(picked[0]) else rows)
        except Exception as error:
            self._forward_failed(state, calls, picked, error)
            return
        self.counters.forwards[rows] += 1
        for call in calls:
            state.running[call.run].share.forwards += 1
        for timed in state.pace.end(picked):
            state.scheduler.ran(timed.subject, timed.seconds, time.monotonic())
            state.notebook.count()
            self._share_out(state, timed.subject, timed.seconds)
        for call, output in zip(calls, outputs, strict=True):
            if call.run in state.running:  # else another picture of its job has just failed, and ended it
                self._answer(state, call, output)

    def _share_out(self, state: State, subject: list[Waiting], seconds: float) -> None:
        """A forward has been timed: each picture that took part and is still under way has its part of it."""
        self.counters.forward_seconds += seconds
        rows = sum(waiting.rows for waiting in subject)
        for waiting in subject:
            painting = state.running.get(_run_of(waiting))
            if painting is not None:
                painting.share.add(seconds * waiting.rows / rows)

    def _forward_failed(self, state: State, calls: list["Call"], picked: list[Waiting], error: Exception) -> None:
        """Nothing has changed yet: out of memory, the calls wait for smaller sets; else each is tried alone."""
        if _is_out_of_memory(error):
            self.counters.out_of_memory += 1
            state.scheduler.ran_out_of_memory(picked[0].key, sum(call.rows for call in calls))
            error.__traceback__ = None  # its frames hold the tensors of the failed forward
            _free_memory()
        if len(calls) == 1:
            if not _is_out_of_memory(error):
                self._count_failure(state, state.running[calls[0].run].submission.model)
            self._advance(state, calls[0].run, lambda: calls[0].run.fail(error))
        elif _is_out_of_memory(error):
            state.calls |= {call.run: call for call in calls}
        else:
            for call, waiting in zip(calls, picked, strict=True):
                if call.run in state.running:
                    self._forward(state, [call], [waiting])

    def _answer(self, state: State, call: "Call", output: Any) -> None:
        painting = state.running[call.run]
        assert painting.record is not None
        painting.record.keep(output)
        with state.headroom.computing(painting.extent):  # if it was the last, the picture is decoded
            self._advance(state, call.run, lambda: call.run.resume(output))

    def _advance(self, state: State, run: "Run", resume: Callable[[], Any]) -> None:
        """Lets a run go on to its next call or to its end; whatever it raises fails its job alone."""
        from daguerre.engine.rendezvous import Call

        painting = state.running[run]
        try:
            outcome = resume()
        except Exception as error:
            outcome = error
        if isinstance(outcome, Call):
            painting.since = time.monotonic()
            state.calls[run] = outcome
            return
        self._lap(state)
        del state.running[run]
        if isinstance(outcome, Exception) and _is_out_of_memory(outcome) and not isinstance(outcome, DaguerreError):
            outcome.__traceback__ = None
            outcome = self._decode_again(state, painting, outcome)
        assert painting.record is not None
        painting.record.drop()
        if isinstance(outcome, Exception):
            if _is_device_fault(outcome):
                self._on_fault("the device answers with an error that does not go away")
            self._end_job(state, painting.job_id, _as_failure(outcome, painting.job_id))
        else:
            self._painted(state, painting, outcome)

    def _count_failure(self, state: State, model: Model) -> None:
        """The denoiser itself failed: if that goes on, something in memory may be broken that a fresh read mends."""
        state.failures[model.name] += 1
        if state.failures[model.name] >= FAILURES:
            log.warning("model %s has failed %d times in a row: its weights are read anew", model.name, FAILURES)
            state.residency.drop(model.name)
            del state.failures[model.name]

    def _decode_again(self, state: State, painting: Painting, error: Exception) -> Any:
        """After running out of memory at the end of a run: the same run from its record, decoded in tiles.

        Every denoiser call is answered from the record, so this goes from the run's beginning to its end at once.
        """
        from daguerre.engine.rendezvous import Call

        pipeline = state.residency.find(painting.submission.model, {painting.submission.model.name, *state.in_use})
        assert painting.record is not None
        if pipeline is None or painting.forwards > 0 or not painting.record.rewind():
            return error
        _free_memory()
        log.warning("job %s: out of memory while decoding; decoding in tiles", painting.job_id)
        run = self._make_run(painting, pipeline)
        with pipeline.tiled_decode():
            try:
                outcome = _start(run, painting, pipeline)
                while isinstance(outcome, Call):
                    answer = painting.record.answer(state.residency.device)
                    outcome = run.fail(error) if answer is None else run.resume(answer)
            except Exception as again:
                return again
        return outcome

    def _painted(self, state: State, painting: Painting, pixels: Pixels) -> None:
        job_id, timer = painting.job_id, painting.timer
        assert timer is not None
        state.failures.pop(painting.submission.model.name, None)
        if not state.has_pictures_of(job_id):
            state.started.discard(job_id)
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

    def _end_job(self, state: State, job_id: str, error: DaguerreError) -> None:
        """Ends a job: its waiting pictures are dropped, its running ones unwound. Tells so once, if any was left."""
        was_known = job_id in state.started or state.has_pictures_of(job_id)
        state.waiting = [painting for painting in state.waiting if painting.job_id != job_id]
        for run in [run for run, painting in state.running.items() if painting.job_id == job_id]:
            painting = state.running.pop(run)
            state.calls.pop(run, None)
            _unwind(run, error)
            if painting.record is not None:
                painting.record.drop()
        state.started.discard(job_id)
        if was_known:
            self._emit(RunEnded(job_id, _without_frames(error)))


def _start(run: "Run", painting: Painting, pipeline: "Pipeline") -> Any:
    """Goes to its first call, for which its prompt and its references are encoded: its adapters are on by then."""
    pipeline.adapters.wear_on_encoders(painting.worn)
    pipeline.references.wear(painting.ip_adapter, painting.scales)
    return run.resume()


def _waiting(painting: Painting, call: "Call") -> Waiting:
    """A call as the scheduler sees it."""
    # A reproducible run shares no forward: its rows then always lie in a batch of the same size.
    is_alone = call.key is None or painting.submission.recipe.reproducible
    return Waiting(
        run=call.run,
        key=(*painting.kind, id(call.run)) if is_alone else call.key,
        place=(painting.submission.model.name, painting.adapters_key),
        rows=call.rows,
        forwards=max(1, painting.forwards),
        since=painting.since,
        client=painting.submission.client,
        is_urgent=painting.submission.is_urgent,
    )


def _can_share(waiting: Waiting) -> bool:
    return isinstance(waiting.key, tuple) and not isinstance(waiting.key[-1], int)


def _run_of(waiting: Waiting) -> "Run":
    from daguerre.engine.rendezvous import Run

    assert isinstance(waiting.run, Run)
    return waiting.run


def _entrant(painting: Painting) -> Entrant:
    return Entrant(
        run=painting,
        key=painting.kind,
        forwards=painting.forwards,
        rows=2 if painting.submission.recipe.guidance_scale > 1 else 1,
        since=painting.since,
        client=painting.submission.client,
        is_urgent=painting.submission.is_urgent,
    )


def _unwind(run: "Run", error: DaguerreError) -> None:
    """Throws the error into a run; a pipeline that goes on all the same is thrown at again until it ends."""
    while not run.dead:
        try:
            run.fail(error)
        except Exception as raised:
            if raised is not error:
                log.warning("a run that was ended raised %s", type(raised).__name__)
            return


def _without_frames(error: DaguerreError) -> DaguerreError:
    """Its frames, and those of what caused it, hold the pipeline's tensors; who is told of it has no use for them."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def _is_out_of_memory(error: Exception) -> bool:
    # By name: importing torch's class here would load torch with this module.
    return type(error).__name__ == "OutOfMemoryError"


def _is_device_fault(error: Exception) -> bool:
    """Whether the device's context is lost: after an illegal access every later call fails, so a retry cannot help."""
    text = str(error)
    return type(error).__name__ == "AcceleratorError" or (isinstance(error, RuntimeError) and "CUDA error" in text)


def _free_memory() -> None:
    """Gives back what the failed computation held."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _as_failure(error: Exception, job_id: str) -> DaguerreError:
    """What a client may know of an exception; the log has all of it."""
    if isinstance(error, DaguerreError):
        return error
    log.error("job %s failed", job_id, exc_info=error)
    return OutOfMemory() if _is_out_of_memory(error) else JobFailed()
