"""Owns the audit: who did what to the server, and who was turned away, as lines of the log without secrets."""

import logging

from daguerre.telemetry.metrics import Metrics

log = logging.getLogger("daguerre.audit")

#: Pairs of an address and a reason that are counted; after that the oldest begin anew.
MOST = 1024


class Audit:
    """Counts what is refused. A line is written at the first, second, fourth, eighth … of one kind from one address.

    So nobody fills the disk with guesses, and the last line still says how many there were, within a factor of two.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._refused = metrics.refused
        self._from: dict[tuple[str, str], int] = {}

    def refuse(self, address: str, route: str, reason: str, client: str = "") -> None:
        """Somebody was turned away."""
        self._refused.labels(reason).inc()
        times = self._from[address, reason] = self._from.pop((address, reason), 0) + 1
        if len(self._from) > MOST:
            del self._from[next(iter(self._from))]
        if times & (times - 1) == 0:
            who = f"{client} at {address}" if client else address
            log.warning("refused %s: %s (%d so far), now at %s", who, reason, times, route)

    def act(self, client: str, address: str, method: str, route: str, status: int) -> None:
        """Somebody changed something that is not theirs alone."""
        log.info("%s at %s: %s %s answered %d", client, address, method, route, status)
