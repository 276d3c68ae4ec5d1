"""Owns webhooks: a job is posted to the URL that its client named when it ends, again and again until it arrives.

What is owed is a row that is written with the job's end, so it outlives the process. The id of a delivery is its
job's: whoever gets it twice, since the answer to the first was lost, can tell.
"""

import asyncio
import hashlib
import hmac
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakValueDictionary

from daguerre import fetching
from daguerre.errors import DaguerreError, FetchFailed, FieldError, InvalidRecipe, StorageFailed, UrlRefused
from daguerre.fetching import Fetcher
from daguerre.job import Job
from daguerre.store.deliveries import Delivery, DeliveryRows
from daguerre.version import __version__

log = logging.getLogger(__name__)

#: Posts under way at once, and those to one host.
SLOTS, SLOTS_OF_HOST = 32, 4
#: How much longer each wait for another try is than the one before, and the longest, in seconds.
GROWTH, LONGEST = 3.0, 3600.0


@dataclass(frozen=True, slots=True)
class Tries:
    """How often a webhook is tried, and the seconds before the second try."""

    most: int
    first_wait: float

    def wait(self, attempts: int) -> float:
        """Seconds until the next try after so many: exponentially more, and never the same for two."""
        # The power is bounded before it is taken: beyond some hundreds of tries it would not fit a float.
        longest = min(LONGEST, self.first_wait * GROWTH ** min(attempts - 1, 20))
        return longest * random.uniform(0.5, 1.0)


def signature(secret: str, body: bytes, now: int) -> str:
    """The Daguerre-Signature header: HMAC-SHA256 (RFC 2104) over the Unix second, a dot and the body."""
    digest = hmac.new(secret.encode(), b"%d." % now + body, hashlib.sha256).hexdigest()
    return f"t={now},v1={digest}"


class Webhooks:
    """The deliveries of one server, on its event loop. ``tell`` makes a job's JSON."""

    def __init__(
        self, rows: DeliveryRows, fetcher: Fetcher, secret: str, tries: Tries, tell: Callable[[Job], bytes]
    ) -> None:
        self._rows = rows
        self._fetcher = fetcher
        self._secret = secret
        self._tries = tries
        self._tell = tell
        self._slots = asyncio.Semaphore(SLOTS)
        self._hosts: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._under_way: dict[str, asyncio.Task[None]] = {}

    def check(self, url: str) -> None:
        """What can be said of a URL before its host is resolved, which is done for each delivery.

        Raises:
            InvalidRecipe: it cannot be posted to.
        """
        try:
            self._fetcher.check(url)
        except UrlRefused as error:
            raise InvalidRecipe([FieldError("webhook", error.message)]) from None

    async def recover(self) -> None:
        """Takes up what the process before owed.

        Raises:
            StorageFailed: the database cannot be read.
        """
        for delivery in await self._rows.owed():
            self._begin(delivery)

    def ended(self, job: Job) -> None:
        """A job has ended, and its row says so, or is about to."""
        if job.webhook is not None:
            self._begin(Delivery(job.id, 0, 0.0))

    async def close(self) -> None:
        """Stops; what has not arrived is left to the next process."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._fetcher.close()

    def _begin(self, delivery: Delivery) -> None:
        if delivery.job_id not in self._under_way:
            task = asyncio.get_running_loop().create_task(self._deliver(delivery))
            self._under_way[delivery.job_id] = task
            task.add_done_callback(lambda _: self._under_way.pop(delivery.job_id))

    async def _deliver(self, delivery: Delivery) -> None:
        job_id, attempts, due_at = delivery
        while True:
            await asyncio.sleep(min(LONGEST, due_at - time.time()))  # bounded, should the clock have been set back
            try:
                job = await self._rows.job(job_id)
            except StorageFailed:
                return  # it is still owed, by the next process
            if job is None or not job.status.is_final:  # the end could not be written: it will be met again
                return
            failure = await self._post(job)
            attempts += 1
            if failure is not None and attempts < self._tries.most and not isinstance(failure, UrlRefused):
                due_at = time.time() + self._tries.wait(attempts)
                log.info("webhook of job %s, try %d: %s", job_id, attempts, failure)
                self._rows.postpone(Delivery(job_id, attempts, due_at))
                continue
            if failure is not None:
                log.warning("webhook of job %s was given up after %d tries: %s", job_id, attempts, failure)
            self._rows.settle(job_id)
            return

    async def _post(self, job: Job) -> DaguerreError | None:
        """One try; why it failed, if it did."""
        assert job.webhook is not None
        try:
            host = fetching.checked(job.webhook).host
            async with self._hosts.setdefault(host, asyncio.Semaphore(SLOTS_OF_HOST)), self._slots:
                body = self._tell(job)
                answer = await self._fetcher.fetch("POST", job.webhook, headers=self._headers(job, body), content=body)
        except (UrlRefused, FetchFailed) as error:
            return error
        return None if 200 <= answer.status < 300 else FetchFailed(f"it answered {answer.status}")

    def _headers(self, job: Job, body: bytes) -> dict[str, str]:
        return {
            "content-type": "application/json",
            "user-agent": f"daguerre/{__version__}",
            "daguerre-delivery": job.id,
            "daguerre-signature": signature(self._secret, body, int(time.time())),
        }
