"""Owns retries: a client whose connection broke, and that asks again, gets the job that it already has.

OpenAI's client gives up after its timeout and asks up to twice more, with no Idempotency-Key but with a header that
counts. Without this, each of its tries would be painted from the beginning.
"""

import asyncio
import hashlib
from collections import Counter

import msgspec

from daguerre.job import Job, Status
from daguerre.jobs.inputs import Inputs
from daguerre.jobs.service import JobService
from daguerre.recipe import Draft

#: Seconds after which who has not asked again will not: that client waits for 8 at most.
GRACE = 10.0
#: Requests that are remembered.
MOST = 4096


class Retries:
    """The jobs of clients that may ask again, and how many connections wait for each job. On the event loop only."""

    def __init__(self, service: JobService) -> None:
        self._service = service
        self._jobs: dict[bytes, str] = {}
        self._waiting: Counter[str] = Counter()

    def find(self, asked: bytes) -> Job | None:
        """The job of a request like this one, unless it ended without a picture."""
        job = self._service.find(self._jobs.get(asked, ""))
        return None if job is None or job.status in (Status.FAILED, Status.CANCELLED) else job

    def remember(self, asked: bytes, job: Job) -> None:
        """A client that may ask again has this job."""
        self._jobs[asked] = job.id
        while len(self._jobs) > MOST:
            del self._jobs[next(iter(self._jobs))]

    def came(self, job: Job) -> None:
        """A connection waits for the job."""
        self._waiting[job.id] += 1

    def left(self, job: Job) -> None:
        """It waits no more: a job that nobody waits for is called off, once nobody can be expected to ask again."""
        self._waiting[job.id] -= 1
        if job.id in self._jobs.values():
            asyncio.get_running_loop().call_later(GRACE, self._call_off, job.id)
        else:
            self._call_off(job.id)

    def _call_off(self, job_id: str) -> None:
        if not self._waiting[job_id]:
            del self._waiting[job_id]
            self._service.cancel(job_id)  # of a finished job this is nothing


def digest(client: str, draft: Draft, inputs: Inputs | None) -> bytes:
    """What stands for a client's request. Of a form it is not its bytes, which differ each time it is sent."""
    pictures = () if inputs is None else (inputs.image, inputs.mask, *inputs.references)
    found = hashlib.sha256(msgspec.json.encode((client, draft)))
    for picture in pictures:
        found.update(b"" if picture is None else picture.tobytes())
    return found.digest()
