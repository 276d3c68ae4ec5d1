"""Owns the policy: which waiting calls go into the next forward."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

BUCKETS = (1, 2, 4, 6, 8, 12, 16)


def bucket(rows: int) -> int:
    """The smallest bucket that holds rows."""
    return next((size for size in BUCKETS if size >= rows), rows)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A call that waits for its forward."""

    run: Hashable
    key: Hashable
    place: Hashable
    rows: int
    forwards: int
    since: float
    client: str = ""


@dataclass(frozen=True, slots=True)
class Entrant:
    """A picture that has not begun."""

    run: Hashable
    key: Hashable
    forwards: int
    rows: int
    since: float
    client: str = ""


class Scheduler:
    """First come, first served."""

    def pick(self, waiting: Sequence[Waiting], now: float) -> list[Waiting]:
        """The next set."""
        head = min(waiting, key=lambda w: w.forwards)
        return [w for w in waiting if w.key == head.key][:8]

    def order(self, entrants: Sequence[Entrant], now: float) -> list[Entrant]:
        """Who begins first."""
        return sorted(entrants, key=lambda e: e.forwards)

    def ran(self, picked: Sequence[Waiting], seconds: float, now: float) -> None:
        """Learns."""

    def ran_out_of_memory(self, key: Hashable, rows: int) -> None:
        """Lowers the cap."""
