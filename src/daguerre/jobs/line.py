"""Owns the line: the unfinished jobs in the order in which they came, how many wait, and how much is left to do.

Thousands may stand in it while hundreds come in a second, so nothing here looks at all of them: the sums over those who
came before a job are kept in a Fenwick tree (P. Fenwick, "A new data structure for cumulative frequency tables", 1994).
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from daguerre.job import Job, Status

#: Slots that a line begins with.
SLOTS = 1024


class Share(NamedTuple):
    """What some jobs of the line come to: how many of them wait, and the work left in all of them."""

    waiting: int = 0
    work: int = 0


class Line:
    """Unfinished jobs by their ids. Used on the event loop only."""

    def __init__(self) -> None:
        self._slots: dict[str, int] = {}  # a job's place in the tree, counted from 1
        self._shares: dict[str, Share] = {}
        self._of: defaultdict[str, dict[str, None]] = defaultdict(dict)  # a client's ids, in their order
        self._clear(SLOTS)

    def _clear(self, size: int) -> None:
        self._waiting, self._work = [0] * (size + 1), [0] * (size + 1)
        self._last = 0
        self.whole = Share()

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._slots

    def __iter__(self) -> Iterator[str]:
        return iter(self._slots)

    def of(self, client: str) -> list[str]:
        """A client's jobs, the oldest first."""
        return list(self._of[client]) if client in self._of else []

    def put(self, job: Job) -> None:
        """Puts a job last, or tells how one that is in the line stands now."""
        if job.id not in self._slots:
            self._make_room()
            self._last += 1
            self._slots[job.id] = self._last
            self._of[job.client][job.id] = None
        self._become(job.id, Share(int(job.status is Status.QUEUED), left(job)))

    def remove(self, job: Job) -> None:
        """Takes a job out, if it is there."""
        if job.id not in self._slots:
            return
        self._become(job.id, Share())
        del self._slots[job.id], self._shares[job.id], self._of[job.client][job.id]
        if not self._of[job.client]:
            del self._of[job.client]

    def up_to(self, job_id: str) -> Share:
        """What this job and all that came before it come to."""
        slot, waiting, work = self._slots[job_id], 0, 0
        while slot:
            waiting += self._waiting[slot]
            work += self._work[slot]
            slot &= slot - 1
        return Share(waiting, work)

    def _become(self, job_id: str, share: Share) -> None:
        known = self._shares.get(job_id, Share())
        waiting, work = share.waiting - known.waiting, share.work - known.work
        self._shares[job_id] = share
        self.whole = Share(self.whole.waiting + waiting, self.whole.work + work)
        slot = self._slots[job_id]
        while slot < len(self._work):
            self._waiting[slot] += waiting
            self._work[slot] += work
            slot += slot & -slot

    def _make_room(self) -> None:
        """Gives the slots of jobs that have left to others, once all are used up."""
        if self._last + 1 < len(self._work):
            return
        ids, shares = list(self._slots), self._shares
        self._clear(max(SLOTS, 2 * len(ids)))
        self._slots, self._shares = {}, {}
        for job_id in ids:
            self._last += 1
            self._slots[job_id] = self._last
            self._become(job_id, shares[job_id])


def work(job: Job) -> int:
    """Pixels times steps times pictures."""
    recipe = job.recipe
    return recipe.width * recipe.height * recipe.steps * recipe.count


def left(job: Job) -> int:
    """The work that is still to be done."""
    return work(job) * (job.steps - job.step) // job.steps if job.steps else work(job)
