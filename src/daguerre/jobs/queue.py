"""Owns the queue: the jobs that the engine has not been given yet, in their order. Used on the event loop only."""

import asyncio


class Queue:
    """Job ids in their order."""

    def __init__(self) -> None:
        self._ids: dict[str, None] = {}  # a dict keeps its order and forgets any member at once
        self._has_some = asyncio.Event()

    def put(self, job_id: str) -> None:
        """Puts a job last."""
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
