"""The jobs-and-store half of a server as a process: everything but HTTP and torch, which dies at the call it is told.

``python half.py FOLDER NUMBER`` takes up what the process before left, accepts jobs, and tells each id once it is
accepted; pictures are painted from their seeds by arithmetic. At the NUMBERth call of the kernel or of SQLite that
changes something durable, before or after it, the process is killed; with 0 it ends by itself when all is done, and
tells how many such calls there were.
"""

import asyncio
import itertools
import os
import signal
import sqlite3
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daguerre import catalog
from daguerre.embeddings import Embeddings
from daguerre.engine import Engine, Event, Painted, Started, Stepped, Submission
from daguerre.errors import DaguerreError
from daguerre.job import Status
from daguerre.jobs.acceptance import Limits
from daguerre.jobs.deadlines import Timeouts
from daguerre.jobs.dispatch import Dispatch
from daguerre.jobs.service import JobService
from daguerre.jobs.sources import Sources
from daguerre.loras import Loras
from daguerre.recipe import Draft
from daguerre.references import References
from daguerre.store.db import Database
from daguerre.store.files import Files
from daguerre.store.jobs import JobRows, Key

WEIGHTS = Path(__file__).parent.parent.parent / "weights"
JOBS, STEPS, SIZE = 6, 2, 64
#: What makes something durable, or takes it away.
DEADLY = (os.fsync, os.write, os.rename, os.unlink)


class Deaths:
    """Counts the deadly calls of all threads, each twice: before it is made and after; and dies at one."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.counted = itertools.count(1)
        self.last = 0

    def see(self, _frame: FrameType, event: str, called: Any) -> None:
        """A profiler's hook."""
        is_deadly = called in DEADLY if event in ("c_call", "c_return") else False
        is_sql = getattr(called, "__name__", "") == "execute" and isinstance(
            getattr(called, "__self__", None), sqlite3.Connection
        )
        if event in ("c_call", "c_return") and (is_deadly or is_sql):
            self.last = next(self.counted)
            if self.last == self.number:
                os.kill(os.getpid(), signal.SIGKILL)


class Pattern:
    """The pixels of a seed; a codec thread asks for them."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def array(self) -> NDArray[np.uint8]:
        """[64, 64, 3]."""
        return np.random.default_rng(self._seed).integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)


class Arithmetic(Engine):
    """An engine without a thread: what it is given is painted when the loop gets to it."""

    def submit(self, submission: Submission) -> None:
        """Tells the events of the whole job."""
        job_id = submission.id
        events: list[Event] = [Started(job_id)]
        for index in range(submission.recipe.count):
            events += [Stepped(job_id, index, step + 1, STEPS) for step in range(STEPS)]
            events.append(Painted(job_id, index, Pattern(submission.recipe.seed + index), 0.0, 0.0, 0.0))
        for event in events:
            asyncio.get_running_loop().call_soon(self._emit, event)

    def cancel(self, job_id: str, error: DaguerreError | None = None) -> None:
        """Comes too late."""


async def main(folder: Path, deaths: Deaths) -> None:
    """A server's life, but for its connections."""
    files = Files(folder / "outputs")
    files.sweep()
    database = Database(folder / "data" / "daguerre.db")
    engine = Arithmetic(lambda event: dispatch.receive(event))
    service = JobService(
        catalog.read(WEIGHTS, "demo-xl"),
        Loras(WEIGHTS),
        JobRows(database),
        files,
        engine.cancel,
        sources=Sources(References(WEIGHTS), Embeddings(WEIGHTS)),
        limits=Limits(queue=100, least_disk=0),
        timeouts=Timeouts(600, 600, 600),
        result_ttl=3600,
    )
    with ThreadPoolExecutor(2) as codec:
        dispatch = Dispatch(service, engine, files, codec)
        await service.recover()
        feeding = asyncio.create_task(dispatch.feed())
        await asyncio.gather(*(_ask(service, number) for number in range(JOBS)))
        while service.unfinished:  # noqa: ASYNC110 - a test's patience
            await asyncio.sleep(0.002)
        await service.settled()
        for job in service.jobs_of("ada"):
            assert job.status is Status.SUCCEEDED, job
            _tell("done", job.id, job.recipe.seed, *(f"{image.filename}:{image.sha256}" for image in job.images))
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)
    database.close()
    _tell("calls", deaths.last)


async def _ask(service: JobService, number: int) -> None:
    """One client, which sends the same key whenever it asks, and so gets the same job."""
    await asyncio.sleep(0.003 * number)
    draft = Draft(prompt="x", width=SIZE, height=SIZE, steps=STEPS, seed=100 * number, count=1 + number % 3)
    job = await service.submit(draft, None, "ada", Key("ada", f"key {number}", "digest"), is_attached=False)
    _tell("accepted", number, job.id)


def _tell(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    seen = Deaths(int(sys.argv[2]))
    threading.setprofile(seen.see)
    sys.setprofile(seen.see)
    asyncio.run(main(Path(sys.argv[1]), seen))
