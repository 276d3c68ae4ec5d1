"""Owns the hub: whoever follows a job hears of its changes. Used on the event loop only."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Coroutine, Hashable
from typing import Any, TypeVar

from daguerre.job import Job

T = TypeVar("T")


class News:
    """A state of a job and the latest preview of it, a JPEG: one value, which is told to all who follow the job."""

    def __init__(self, job: Job, preview: bytes | None = None) -> None:
        self.job = job
        self.preview = preview
        self._made: dict[Hashable, asyncio.Future[Any]] = {}

    async def once(self, form: Hashable, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What ``make`` makes of these news in some form: made for the first who asks, and given to all."""
        if form not in self._made:
            self._made[form] = asyncio.ensure_future(make())
        made: T = await asyncio.shield(self._made[form])  # one who leaves does not end it for the others
        return made


class Hub:
    """A slot of the latest news for each listener: a slow one skips some, but never the last."""

    def __init__(self) -> None:
        self._listeners: defaultdict[str, set[asyncio.Queue[News | None]]] = defaultdict(set)
        self._latest: dict[str, News] = {}  # of jobs that somebody follows

    def followed(self) -> list[str]:
        """The ids of the jobs that somebody follows."""
        return list(self._latest)

    def publish(self, job: Job, preview: bytes | None = None) -> None:
        """Tells all who follow this job. A preview stands until there is a newer one, or the job ends."""
        if job.id not in self._latest:
            return
        if preview is None and not job.status.is_final:
            preview = self._latest[job.id].preview
        self._latest[job.id] = News(job, preview)
        self._tell(job.id, self._latest[job.id])

    def leave(self, job_id: str) -> None:
        """Nothing more is to be heard of this job in this process."""
        if job_id in self._latest:
            self._tell(job_id, None)

    def _tell(self, job_id: str, news: News | None) -> None:
        for slot in self._listeners[job_id]:
            if slot.full():
                slot.get_nowait()
            slot.put_nowait(news)

    async def follow(self, job: Job) -> AsyncGenerator[News, None]:
        """The job's present state, then each later one up to the final, or up to when it is left to another process."""
        slot: asyncio.Queue[News | None] = asyncio.Queue(maxsize=1)
        slot.put_nowait(self._latest.setdefault(job.id, News(job)))
        self._listeners[job.id].add(slot)
        try:
            while True:
                latest = await slot.get()
                if latest is None:
                    return
                yield latest
                if latest.job.status.is_final:
                    return
        finally:
            self._listeners[job.id].discard(slot)
            if not self._listeners[job.id]:
                del self._listeners[job.id], self._latest[job.id]
