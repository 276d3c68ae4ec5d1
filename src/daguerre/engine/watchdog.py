"""Owns the watchdog: a thread that sees a step take too long. A device that hangs can only be left, not interrupted."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator


class Watchdog:
    """Calls ``on_hang`` once, on its own thread, when a step takes longer than ``budget`` seconds."""

    def __init__(self, budget: float, on_hang: Callable[[], None]) -> None:
        self._budget = budget
        self._on_hang = on_hang
        # Written by the engine thread, read by the watchdog's: one reference, so no lock is needed.
        self._since: float | None = None
        self._is_closed = threading.Event()
        threading.Thread(target=self._watch, name="daguerre-watchdog", daemon=True).start()

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Whatever is done while it lasts has to be done within the budget."""
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = None

    @property
    def seconds(self) -> float:
        """How long the step at hand has taken; 0 between steps."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since

    def close(self) -> None:
        """Ends the thread."""
        self._is_closed.set()

    def _watch(self) -> None:
        while not self._is_closed.wait(min(0.5, self._budget / 4)):
            if self.seconds > self._budget:
                self._on_hang()
                return
