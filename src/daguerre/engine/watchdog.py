"""Owns the watchdog: a thread that sees a step take too long. A device that hangs can only be left, not interrupted."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator


class Watchdog:
    """Calls ``on_hang`` once, on its own thread, when a step takes longer than ``budget`` seconds.

    Time in which this whole process was stopped (SIGSTOP, a frozen container) is no step's fault.
    """

    def __init__(self, budget: float, on_hang: Callable[[], None]) -> None:
        self._budget = budget
        self._on_hang = on_hang
        # Written by the engine thread, read by the watchdog's: one reference, so no lock is needed.
        self._since: float | None = None
        self._stopped = 0.0  # seconds so far in which the process was stopped
        self._is_closed = threading.Event()

    def start(self) -> None:
        """Starts the thread."""
        threading.Thread(target=self._watch, name="daguerre-watchdog", daemon=True).start()

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Whatever is done while it lasts has to be done within the budget."""
        self._since = self._now()
        try:
            yield
        finally:
            self._since = None

    @property
    def seconds(self) -> float:
        """How long the step at hand has taken; 0 between steps."""
        since = self._since
        return 0.0 if since is None else max(0.0, self._now() - since)

    def _now(self) -> float:
        return time.monotonic() - self._stopped

    def close(self) -> None:
        """Ends the thread."""
        self._is_closed.set()

    def _watch(self) -> None:
        tick = min(0.5, self._budget / 4)
        before = time.monotonic()
        while not self._is_closed.wait(tick):
            # This thread only ever waits: when it is late, nobody has run, or somebody who holds the interpreter.
            late = time.monotonic() - before - tick
            self._stopped += late if late > tick else 0.0
            before = time.monotonic()
            if self.seconds > self._budget:
                self._on_hang()
                return
