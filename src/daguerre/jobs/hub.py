"""Owns the hub: whoever follows a job hears of its changes. Used on the event loop only."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator

from daguerre.job import Job


class Hub:
    """A slot of the latest state for each listener: a slow one skips states, but never the last."""

    def __init__(self) -> None:
        self._listeners: defaultdict[str, set[asyncio.Queue[Job]]] = defaultdict(set)

    def publish(self, job: Job) -> None:
        """Tells all who follow this job."""
        for slot in self._listeners.get(job.id, ()):
            if slot.full():
                slot.get_nowait()
            slot.put_nowait(job)

    async def follow(self, job: Job) -> AsyncGenerator[Job, None]:
        """The job's present state, then each later one up to the final."""
        slot: asyncio.Queue[Job] = asyncio.Queue(maxsize=1)
        slot.put_nowait(job)
        self._listeners[job.id].add(slot)
        try:
            while True:
                latest = await slot.get()
                yield latest
                if latest.status.is_final:
                    return
        finally:
            self._listeners[job.id].discard(slot)
            if not self._listeners[job.id]:
                del self._listeners[job.id]
