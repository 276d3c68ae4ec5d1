"""Owns the line: the unfinished jobs, how many of them wait, and what stands before each.

Clients take turns, so a job stands behind as many jobs of each other client as stand before it in its own lane. Lanes
hold thousands while hundreds come in a second, so nothing here looks at all of a lane: the sums over those before a job
are kept in Fenwick trees (P. Fenwick, "A new data structure for cumulative frequency tables", 1994).
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from daguerre.job import Job, Status

#: Slots that a lane begins with.
SLOTS = 16


class Share(NamedTuple):
    """What some jobs come to: how many of them wait, and the work left in all of them."""

    waiting: int = 0
    work: int = 0


class Lane:
    """Jobs of one client and one urgency, the oldest first."""

    def __init__(self) -> None:
        self._slots: dict[str, int] = {}  # a job's place in the tree, counted from 1
        self._shares: dict[str, Share] = {}
        self._clear(SLOTS)

    def _clear(self, size: int) -> None:
        self._waiting, self._work = [0] * (size + 1), [0] * (size + 1)
        self._last = 0
        self.whole = Share()

    def __len__(self) -> int:
        return len(self._slots)

    def put(self, job_id: str, share: Share) -> None:
        """Puts a job last, or tells what one that is here comes to now."""
        if job_id not in self._slots:
            self._make_room()
            self._last += 1
            self._slots[job_id] = self._last
        self._become(job_id, share)

    def remove(self, job_id: str) -> None:
        """Takes a job out."""
        self._become(job_id, Share())
        del self._slots[job_id], self._shares[job_id]

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


class Line:
    """Unfinished jobs by their ids, in the order in which they came. Used on the event loop only."""

    def __init__(self) -> None:
        self._jobs: dict[str, None] = {}
        self._of: defaultdict[str, dict[str, None]] = defaultdict(dict)  # a client's ids
        self._lanes: dict[tuple[bool, str], Lane] = {}  # by urgency and client
        self.whole = Share()

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._jobs

    def __iter__(self) -> Iterator[str]:
        return iter(self._jobs)

    def of(self, client: str) -> list[str]:
        """A client's jobs, the oldest first."""
        return list(self._of.get(client, ()))

    def count_of(self, client: str) -> int:
        """How many there are of a client."""
        return len(self._of.get(client, ()))

    def put(self, job: Job) -> None:
        """Puts a job last, or tells how one that is in the line stands now."""
        self._jobs[job.id] = self._of[job.client][job.id] = None
        lane = self._lanes.setdefault((job.is_urgent, job.client), Lane())
        before = lane.whole
        lane.put(job.id, Share(int(job.status is Status.QUEUED), left(job)))
        self._count(before, lane.whole)

    def remove(self, job: Job) -> None:
        """Takes a job out, if it is there."""
        if job.id not in self._jobs:
            return
        key = (job.is_urgent, job.client)
        lane = self._lanes[key]
        before = lane.whole
        lane.remove(job.id)
        self._count(before, lane.whole)
        if not lane:
            del self._lanes[key]
        del self._jobs[job.id], self._of[job.client][job.id]
        if not self._of[job.client]:
            del self._of[job.client]

    def _count(self, before: Share, after: Share) -> None:
        self.whole = Share(
            self.whole.waiting + after.waiting - before.waiting, self.whole.work + after.work - before.work
        )

    def up_to(self, job: Job, turns: Iterable[str]) -> Share:
        """What this job and all that are likely to be done before it come to, if clients take turns in this order."""
        waiting, work = own, _ = self._lanes[job.is_urgent, job.client].up_to(job.id)
        rounds = own  # those whose turns come before this client's have one more
        for client in turns:
            if client == job.client:
                rounds = own - 1
            elif (lane := self._lanes.get((job.is_urgent, client))) is not None:
                count = max(0, min(lane.whole.waiting, rounds))
                waiting += count
                work += lane.whole.work * count // max(1, lane.whole.waiting)
        if not job.is_urgent:
            urgent = [lane.whole for (is_urgent, _), lane in self._lanes.items() if is_urgent]
            waiting, work = waiting + sum(one.waiting for one in urgent), work + sum(one.work for one in urgent)
        return Share(waiting, work)


def work(job: Job) -> int:
    """Pixels times steps times pictures."""
    recipe = job.recipe
    return recipe.width * recipe.height * recipe.steps * recipe.count


def left(job: Job) -> int:
    """The work that is still to be done."""
    return work(job) * (job.steps - job.step) // job.steps if job.steps else work(job)
