"""Owns when Python looks for garbage in all of its objects, which holds the event loop back while it lasts.

Nearly everything here is freed by reference counts; only cycles wait for the collector. It is left alone with what is
young. All objects it would go through whenever a quarter more have come: for a quarter of a second where two thousand
sockets are open, and several times while they open.
"""

import asyncio
import contextlib
import gc
import time
from collections.abc import Callable, Iterator

#: Seconds between two looks through everything: of a server that has nothing to do, and of one that always has.
QUIET, BUSY = 60.0, 600.0

_NEVER = 1 << 30


def spare() -> None:
    """Takes what imports have made out of the collector's sight, once: it lives as long as the process.

    Torch and diffusers come to half a million objects. Of what is spared, reference counts free everything but cycles.
    """
    if gc.get_freeze_count() == 0:
        gc.collect()
        gc.freeze()


async def collect_for_ever(is_idle: Callable[[], bool]) -> None:
    """Looks through everything every ten minutes, and every minute in which there is nothing to do."""
    with _kept_to_the_young():
        while True:
            since = time.monotonic()
            while time.monotonic() - since < BUSY:
                await asyncio.sleep(QUIET)
                if is_idle():
                    break
            gc.collect()


@contextlib.contextmanager
def _kept_to_the_young() -> Iterator[None]:
    """Has the collector leave its oldest objects alone."""
    before = gc.get_threshold()
    gc.set_threshold(*before[:2], _NEVER)
    try:
        yield
    finally:
        gc.set_threshold(*before)
