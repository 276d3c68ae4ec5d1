"""Owns the engine thread: takes submissions from its inbox, paints, and tells what happens by events.

Two crossings touch the thread: the inbox, and ``emit``, which is called on it. So nothing in here needs a lock.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from daguerre.catalog import Model
from daguerre.engine.events import EngineDied, Event, ModelLoading, Painted, RunEnded, Started, Stepped
from daguerre.engine.residency import Loaded, Residency
from daguerre.errors import DaguerreError, JobCancelled, JobFailed, NotReady, OutOfMemory
from daguerre.recipe import Recipe

if TYPE_CHECKING:
    from daguerre.engine.pipelines import Pipeline, Timer
    from daguerre.engine.rendezvous import Call, Run

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Submission:
    """A job as the engine sees it: it knows nothing of users, addresses and files."""

    id: str
    recipe: Recipe
    model: Model


@dataclass(frozen=True, slots=True)
class Cancel:
    """Ends a job with this error at the next step of each of its runs."""

    job_id: str
    error: DaguerreError


@dataclass(frozen=True, slots=True)
class Preload:
    """Loads a model before anybody asks for a picture of it."""

    model: Model


@dataclass(frozen=True, slots=True)
class Close:
    """Ends every job and then the thread."""


Message = Submission | Cancel | Preload | Close | Loaded


@dataclass(slots=True, eq=False)
class Painting:
    """A picture that is waiting for its run, or running: one of a submission's ``count``."""

    submission: Submission
    index: int
    run: "Run | None" = None
    timer: "Timer | None" = None


@dataclass(slots=True)
class State:
    """What the engine thread works on. Only that thread ever sees it."""

    residency: Residency
    waiting: deque[Painting] = field(default_factory=deque)
    running: dict["Run", Painting] = field(default_factory=dict)
    calls: deque["Call"] = field(default_factory=deque)
    started: set[str] = field(default_factory=set)
    is_open: bool = True


class Engine:
    """Paints pictures on one thread. ``emit`` is called with every event, on that thread: it must not block."""

    def __init__(
        self, emit: Callable[[Event], None], device: str = "auto", dtype: str = "auto", max_runs: int = 1
    ) -> None:
        self._emit = emit
        self._device = device
        self._dtype = dtype
        self._max_runs = max_runs
        self._inbox: SimpleQueue[Message] = SimpleQueue()
        # A daemon: a hung device call must not keep the process from ending.
        self._thread = threading.Thread(target=self._main, name="daguerre-engine", daemon=True)

    def start(self, preload: Model | None = None) -> None:
        """Starts the thread; torch is imported there, so this returns at once."""
        if preload is not None:
            self._inbox.put(Preload(preload))
        self._thread.start()

    def submit(self, submission: Submission) -> None:
        """Hands over a job; events tell the rest."""
        self._inbox.put(submission)

    def cancel(self, job_id: str, error: DaguerreError | None = None) -> None:
        """Ends a job within one step; an unknown or finished one is left as it is."""
        self._inbox.put(Cancel(job_id, error or JobCancelled()))

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

        # Once for the whole thread: a run must not leave a torch context open across a switch.
        torch.set_grad_enabled(False)
        state = State(Residency(self._device, self._dtype, self._emit, self._inbox.put))
        while state.is_open:
            self._begin_runs(state)
            self._read_inbox(state)
            if state.calls:
                self._step(state, state.calls.popleft())

    def _read_inbox(self, state: State) -> None:
        """Takes all messages; waits for one only when there is nothing to compute."""
        must_wait = not state.calls
        while True:
            try:
                message = self._inbox.get(block=must_wait)
            except Empty:
                return
            self._take(state, message)
            must_wait = False

    def _take(self, state: State, message: Message) -> None:
        match message:
            case Submission(recipe=recipe):
                state.waiting.extend(Painting(message, index) for index in range(recipe.count))
            case Cancel(job_id=job_id, error=error):
                self._end_job(state, job_id, error)
            case Preload(model=model):
                state.residency.find(model)
            case Loaded():
                state.residency.take(message)
            case Close():
                for job_id in {p.submission.id for p in (*state.waiting, *state.running.values())}:
                    self._end_job(state, job_id, JobCancelled("the server is shutting down"))
                state.is_open = False

    def _begin_runs(self, state: State) -> None:
        """Begins waiting pictures in their order, as far as their models are there and there is room."""
        for painting in list(state.waiting):
            if len(state.running) >= self._max_runs:
                return
            job_id = painting.submission.id
            try:
                pipeline = state.residency.find(painting.submission.model)
            except DaguerreError as error:
                self._end_job(state, job_id, error)
                continue
            if pipeline is not None and painting in state.waiting:
                state.waiting.remove(painting)
                self._begin(state, painting, pipeline)

    def _begin(self, state: State, painting: Painting, pipeline: "Pipeline") -> None:
        from daguerre.engine.pipelines import Timer
        from daguerre.engine.rendezvous import Run

        job_id, index, recipe = painting.submission.id, painting.index, painting.submission.recipe
        if job_id not in state.started:
            state.started.add(job_id)
            self._emit(Started(job_id))
        timer = painting.timer = Timer()

        def paint() -> Any:
            def on_step(step: int, steps: int) -> None:
                self._emit(Stepped(job_id, index, step, steps))

            return pipeline.paint(recipe, recipe.seed + index, on_step, timer)

        run = painting.run = Run(paint)
        state.running[run] = painting
        self._advance(state, run, run.resume)

    def _step(self, state: State, call: "Call") -> None:
        """One forward, and its run goes on with the output."""
        try:
            output = call.forward()
        except Exception as error:
            failure = error
            self._advance(state, call.run, lambda: call.run.fail(failure))
        else:
            self._advance(state, call.run, lambda: call.run.resume(output))

    def _advance(self, state: State, run: "Run", resume: Callable[[], Any]) -> None:
        """Lets a run go on to its next call or to its end; whatever it raises fails its job alone."""
        from daguerre.engine.rendezvous import Call

        painting = state.running[run]
        job_id = painting.submission.id
        try:
            outcome = resume()
        except Exception as error:
            del state.running[run]
            self._end_job(state, job_id, _as_failure(error, job_id))
            return
        if isinstance(outcome, Call):
            state.calls.append(outcome)
            return
        del state.running[run]
        timer = painting.timer
        assert timer is not None
        if all(other.submission.id != job_id for other in (*state.waiting, *state.running.values())):
            state.started.discard(job_id)
        self._emit(
            Painted(
                job_id,
                painting.index,
                outcome,
                encode_seconds=timer.encoded - timer.began,
                denoise_seconds=timer.denoised - timer.encoded,
                decode_seconds=timer.decoded - timer.denoised,
            )
        )

    def _end_job(self, state: State, job_id: str, error: DaguerreError) -> None:
        """Ends a job: its waiting pictures are dropped, its running ones unwound. Tells so once, if any was left."""
        waiting = [painting for painting in state.waiting if painting.submission.id == job_id]
        running = [run for run, painting in state.running.items() if painting.submission.id == job_id]
        was_known = bool(waiting or running) or job_id in state.started
        for painting in waiting:
            state.waiting.remove(painting)
        for run in running:
            del state.running[run]
            state.calls = deque(call for call in state.calls if call.run is not run)
            _unwind(run, error)
        state.started.discard(job_id)
        if was_known:
            self._emit(RunEnded(job_id, error))


def _unwind(run: "Run", error: DaguerreError) -> None:
    """Throws the error into a run; a pipeline that goes on all the same is thrown at again until it ends."""
    while not run.dead:
        try:
            run.fail(error)
        except Exception as raised:
            if raised is not error:
                log.warning("a run that was ended raised %s", type(raised).__name__)
            return


def _as_failure(error: Exception, job_id: str) -> DaguerreError:
    """What a client may know of an exception; the log has all of it."""
    if isinstance(error, DaguerreError):
        return error
    log.error("job %s failed", job_id, exc_info=error)
    # By name: importing torch's class here would load torch with this module.
    return OutOfMemory() if type(error).__name__ == "OutOfMemoryError" else JobFailed()
