"""Measures pictures a second for 8 clients at once, the engine against ``pipe(...)`` one after the other.

Stable Diffusion 1.5's architecture with few channels, 30 guided steps, one CPU thread: as on a GPU at 512², a forward
of one request does not fill the device at 64 pixels, and nearly fills it at 128.
"""

import time
from statistics import median
from typing import Any

from benchmarks.driver import Pair, pair
from benchmarks.goals import Goal

CLIENTS, STEPS, ROUNDS = 8, 30, 3
SIDES = (64, 128)

GOALS = tuple(
    Goal(f"{side}²: pictures a second, ours to plain", (f"{side}px", "ratio"), 2.0, is_least=True) for side in SIDES
)


def run() -> dict[str, Any]:
    """Both sides in alternating blocks; medians."""
    with pair() as both:
        return {f"{side}px": _compared(both, side) for side in SIDES}


def _compared(both: Pair, side: int) -> dict[str, float]:
    _ours(both, side, 2)
    _theirs(both, side, 2)
    ours, theirs = [], []
    for _ in range(ROUNDS):
        ours.append(_ours(both, side, STEPS))
        theirs.append(_theirs(both, side, STEPS))
    return {
        "ours_pictures_per_second": round(CLIENTS / median(ours), 3),
        "plain_pictures_per_second": round(CLIENTS / median(theirs), 3),
        "ratio": round(median(theirs) / median(ours), 3),
    }


def _ours(both: Pair, side: int, steps: int) -> float:
    began = time.perf_counter()
    for client in range(CLIENTS):
        both.submit(str(client), width=side, height=side, steps=steps, seed=client)
    for _ in range(CLIENTS):
        both.next_picture()
    return time.perf_counter() - began


def _theirs(both: Pair, side: int, steps: int) -> float:
    began = time.perf_counter()
    for client in range(CLIENTS):
        both.plain(str(client), width=side, height=side, steps=steps, seed=client)
    return time.perf_counter() - began
