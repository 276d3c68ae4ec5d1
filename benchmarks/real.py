"""Measures real architectures at their real sizes on a GPU, random weights: pictures a second, and one picture alone.

The weights are random and finite: what they say does not change how long they take. Both sides paint in the dtype that
``auto`` means on the card, on the same weights, in alternating blocks. ``latency`` compiles our side and keeps channels
innermost; the plain side is diffusers as it comes.
"""

import time
from statistics import median
from typing import Any, NamedTuple

from benchmarks import models
from benchmarks.driver import Pair, pair
from benchmarks.goals import Goal
from daguerre.engine import Tuning

CLIENTS, STEPS, ROUNDS = 8, 30, 3


class Case(NamedTuple):
    """An architecture, the side of its pictures, and what is compared."""

    write: models.Writer
    side: int
    clients: int
    tuning: Tuning


CASES = {
    "throughput": Case(models.write_sd15, 512, CLIENTS, Tuning()),
    "throughput-xl": Case(models.write_sdxl, 1024, CLIENTS, Tuning()),
    "throughput-flux": Case(models.write_flux, 1024, CLIENTS // 2, Tuning()),
    "latency": Case(models.write_sdxl, 1024, 1, Tuning(compile="full", channels_last=True)),
}

GOALS = (
    Goal("SD 1.5, 512², 8 clients: pictures a second, ours to plain", ("throughput", "ratio"), 5.0, is_least=True),
    Goal("SDXL, 1024², 8 clients: pictures a second, ours to plain", ("throughput-xl", "ratio"), 2.3, is_least=True),
    Goal("FLUX, 1024², 4 clients: pictures a second, ours to plain", ("throughput-flux", "ratio"), 1.0, is_least=True),
    Goal("SDXL, 1024², one client: seconds, plain to ours", ("latency", "ratio"), 1.8, is_least=True),
)


def run() -> dict[str, Any]:
    """All cases."""
    return {name: _compared(case) for name, case in CASES.items()}


def _compared(case: Case) -> dict[str, float]:
    with pair(write=case.write, tuning=case.tuning) as both:
        _ours(both, case, 2)
        _theirs(both, case, 2)
        ours, theirs = [], []
        for _ in range(ROUNDS):
            ours.append(_ours(both, case, STEPS))
            theirs.append(_theirs(both, case, STEPS))
        return {
            "ours_seconds": round(median(ours), 3),
            "plain_seconds": round(median(theirs), 3),
            "pictures": case.clients,
            "ratio": round(median(theirs) / median(ours), 3),
            "peak_gib": round(both.peak_memory() / 1024**3, 2),
        }


def _ours(both: Pair, case: Case, steps: int) -> float:
    began = time.perf_counter()
    for client in range(case.clients):
        both.submit(str(client), width=case.side, height=case.side, steps=steps, seed=client)
    for _ in range(case.clients):
        painted = both.next_picture()
        assert painted is not None
        painted.pixels.array()  # waits for the device
    return time.perf_counter() - began


def _theirs(both: Pair, case: Case, steps: int) -> float:
    began = time.perf_counter()
    for client in range(case.clients):
        both.plain(str(client), width=case.side, height=case.side, steps=steps, seed=client)
    return time.perf_counter() - began
