"""Owns the queue: the jobs that wait for the engine, bounded, first come first served. Used on the event loop only."""

import asyncio

from daguerre.errors import QueueFull


class Queue:
    """Job ids in their order."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._ids: dict[str, None] = {}  # a dict keeps its order and forgets any member at once
        self._has_some = asyncio.Event()

    def __len__(self) -> int:
        return len(self._ids)

    def put(self, job_id: str, retry_after: float) -> None:
        """Puts a job last.

        Raises:
            QueueFull: as many wait as may; the client may try again in ``retry_after`` seconds.
        """
        if len(self._ids) >= self.limit:
            raise QueueFull(f"{self.limit} jobs are waiting already", retry_after)
        self._ids[job_id] = None
        self._has_some.set()

    async def take(self) -> str:
        """Waits for a job and takes the first."""
        while not self._ids:
            self._has_some.clear()
            await self._has_some.wait()
        job_id = next(iter(self._ids))
        del self._ids[job_id]
        return job_id

    def remove(self, job_id: str) -> bool:
        """Takes a waiting job out; says whether it was there."""
        if job_id not in self._ids:
            return False
        del self._ids[job_id]
        return True
