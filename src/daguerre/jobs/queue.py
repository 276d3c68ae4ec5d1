"""Owns the queue: the jobs that the engine has not been given yet, in their order. Used on the event loop only."""

import asyncio
from collections import Counter
from collections.abc import Iterable


class Queue:
    """Job ids: urgent ones first, then clients in turns, then the oldest.

    Turns keep one client's thousand jobs from standing before another's first. ``at_once`` bounds how many jobs of one
    client are out of the queue at a time; 0 does not.
    """

    def __init__(self, at_once: int = 0) -> None:
        self.at_once = at_once
        # Lanes by urgency and client, in the order of their turns: a dict keeps it, and forgets any member at once.
        self._lanes: tuple[dict[str, dict[str, None]], dict[str, dict[str, None]]] = ({}, {})
        self._clients: dict[str, str] = {}  # of jobs that wait
        self._taken: dict[str, str] = {}  # clients of jobs that are out
        self._out: Counter[str] = Counter()  # how many of each client are out
        self._has_changed = asyncio.Event()

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._clients

    def put(self, job_id: str, client: str = "", *, is_urgent: bool = False) -> None:
        """Puts a job last in its client's lane."""
        self._lanes[not is_urgent].setdefault(client, {})[job_id] = None
        self._clients[job_id] = client
        self._has_changed.set()

    async def take(self) -> str:
        """Waits for a job whose turn it is and takes it; ``done`` is to be said of it later."""
        while (job_id := self._next()) is None:
            self._has_changed.clear()
            await self._has_changed.wait()
        client = self._clients[job_id]
        for lanes in self._lanes:
            if job_id in lanes.get(client, ()):
                lanes[client] = lanes.pop(client)  # its next turn comes after all others
        self.remove(job_id)
        self._taken[job_id] = client
        self._out[client] += 1
        return job_id

    def _next(self) -> str | None:
        for lanes in self._lanes:
            for client, lane in lanes.items():
                if not self.at_once or self._out[client] < self.at_once:
                    return next(iter(lane))
        return None

    def done(self, job_id: str) -> None:
        """A job that was taken needs no place any more."""
        client = self._taken.pop(job_id, None)
        if client is not None:
            self._out[client] -= 1
            if not self._out[client]:
                del self._out[client]
            self._has_changed.set()

    def remove(self, job_id: str) -> bool:
        """Takes a waiting job out; says whether it was there."""
        client = self._clients.pop(job_id, None)
        if client is None:
            return False
        for lanes in self._lanes:
            if job_id in lanes.get(client, ()):
                del lanes[client][job_id]
                if not lanes[client]:
                    del lanes[client]
        return True

    def turns(self, *, is_urgent: bool) -> Iterable[str]:
        """The clients who have jobs of this urgency here, in the order of their turns."""
        return self._lanes[not is_urgent]
