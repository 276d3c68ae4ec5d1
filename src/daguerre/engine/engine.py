"""Owns the engine: its thread, and the two crossings that touch it.

What is asked of the engine goes into its inbox; what it tells comes by ``emit``, which is called on its thread. So
nothing needs a lock, and nobody else ever sees a torch object.
"""

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

from daguerre.catalog import Model
from daguerre.engine.events import EngineDied, Event, ModelLoading
from daguerre.engine.inbox import Cancel, Close, Look, Message, Preload, PreloadAdapter, Unload, UnloadAdapter
from daguerre.engine.options import Options
from daguerre.engine.submission import Submission
from daguerre.engine.watchdog import Watchdog
from daguerre.errors import DaguerreError, JobCancelled, NotReady
from daguerre.loras import Adapter
from daguerre.telemetry.counters import Counters

log = logging.getLogger(__name__)


class Engine:
    """Paints pictures on one thread. ``emit`` is called with every event, on that thread: it must not block.

    Pictures that are under way at once share forwards where their calls allow it. ``on_fault`` is called when nothing
    but a new process helps: a step that hangs (on a thread of its own), or a device that answers every call with an
    error.
    """

    def __init__(
        self,
        emit: Callable[[Event], None],
        options: Options | None = None,
        on_fault: Callable[[str], None] = lambda _: None,
        counters: Counters | None = None,
    ) -> None:
        self.options = options or Options()
        self.counters = counters or Counters()
        self._emit = emit
        self._on_fault = on_fault
        self._watchdog = Watchdog(self.options.step_timeout, lambda: on_fault("a step has taken too long"))
        self._inbox: SimpleQueue[Message] = SimpleQueue()
        # A daemon: a hung device call must not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name="daguerre-engine", daemon=True)

    @property
    def step_seconds(self) -> float:
        """How long the step at hand has taken so far."""
        return self._watchdog.seconds

    def start(self, preload: Model | None = None) -> None:
        """Starts the thread; torch is imported there, so this returns at once."""
        if preload is not None:
            self._inbox.put(Preload(preload))
        self._watchdog.start()
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

    def _work(self) -> None:
        try:
            self._emit(ModelLoading("", "importing torch and diffusers"))
            from daguerre.engine.painter import Painter

            Painter(self._inbox, self._emit, self.options, self._watchdog, self._on_fault, self.counters).work()
        except Exception:
            log.exception("the engine thread died")
            self._emit(EngineDied(NotReady("the engine has stopped; restart the server")))
        finally:
            self._watchdog.close()
