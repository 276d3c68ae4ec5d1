"""Owns the event loop's lag: how much later than it asked for a timer is called."""

import asyncio
from collections.abc import Callable

#: Seconds between two measurements.
EVERY = 0.25


class LoopLag:
    """Measures from its making on, until it is closed; ``observe`` is given seconds."""

    def __init__(self, observe: Callable[[float], None]) -> None:
        self._observe = observe
        self._loop = asyncio.get_running_loop()
        self._begin()

    def _begin(self) -> None:
        self._due = self._loop.time() + EVERY
        self._timer = self._loop.call_at(self._due, self._measure)

    def _measure(self) -> None:
        self._observe(max(0.0, self._loop.time() - self._due))
        self._begin()

    def close(self) -> None:
        """Measures no more."""
        self._timer.cancel()
