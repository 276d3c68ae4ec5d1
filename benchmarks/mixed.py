"""Measures waiting under mixed load: 4-step and 50-step jobs half and half, arriving at random at 90 % load.

Load is counted against ``pipe(...)`` one after the other, first come first served; the same seeded arrivals go to both.
"""

import random
import statistics
import time
from typing import Any

from benchmarks.driver import Pair, pair
from benchmarks.goals import Goal

SHORT, LONG, SIDE, JOBS, LOAD, SEED = 4, 50, 64, 60, 0.9, 7

GOALS = (
    Goal("p95 of 4-step jobs, plain to ours", ("short_p95_ratio",), 20.0, is_least=True),
    Goal("p95 of 50-step jobs, plain to ours", ("long_p95_ratio",), 0.9, is_least=True),
)

Arrival = tuple[float, str, int]  # seconds from the beginning, the job's name, its steps


def run() -> dict[str, Any]:
    """Latencies of both, in seconds, and their ratios."""
    with pair() as both:
        arrivals = _arrivals(_mean_seconds(both) / LOAD)
        theirs, ours = _theirs(both, arrivals), _ours(both, arrivals)
    figures: dict[str, Any] = {"ours": _summary(ours, arrivals), "plain": _summary(theirs, arrivals)}
    for kind in ("short", "long"):
        for figure in ("mean", "p95"):
            name = f"{kind}_{figure}"
            figures[f"{name}_ratio"] = round(figures["plain"][name] / figures["ours"][name], 2)
    return figures


def _mean_seconds(both: Pair) -> float:
    """Seconds that a job of the mix takes alone, by diffusers."""
    seconds = []
    for steps in (SHORT, LONG, SHORT, LONG):
        began = time.perf_counter()
        both.plain("warm", width=SIDE, height=SIDE, steps=steps, seed=0)
        seconds.append(time.perf_counter() - began)
    return statistics.mean(seconds[2:])


def _arrivals(gap: float) -> list[Arrival]:
    chance, now, found = random.Random(SEED), 0.0, []
    for number in range(JOBS):
        now += chance.expovariate(1 / gap)
        found.append((now, str(number), chance.choice((SHORT, LONG))))
    return found


def _theirs(both: Pair, arrivals: list[Arrival]) -> dict[str, float]:
    began, latencies = time.perf_counter(), {}
    for at, name, steps in arrivals:
        time.sleep(max(0.0, at - (time.perf_counter() - began)))
        both.plain(name, width=SIDE, height=SIDE, steps=steps, seed=1)
        latencies[name] = time.perf_counter() - began - at
    return latencies


def _ours(both: Pair, arrivals: list[Arrival]) -> dict[str, float]:
    began, due = time.perf_counter(), {name: at for at, name, _ in arrivals}
    latencies: dict[str, float] = {}
    coming = list(arrivals)
    while len(latencies) < len(arrivals):
        now = time.perf_counter() - began
        while coming and coming[0][0] <= now:
            _, name, steps = coming.pop(0)
            both.submit(name, width=SIDE, height=SIDE, steps=steps, seed=1)
        painted = both.next_picture(timeout=coming[0][0] - now if coming else None)
        if painted is not None:
            latencies[painted.job_id] = time.perf_counter() - began - due[painted.job_id]
    return latencies


def _summary(latencies: dict[str, float], arrivals: list[Arrival]) -> dict[str, float]:
    found = {}
    for kind, steps in (("short", SHORT), ("long", LONG)):
        values = sorted(latencies[name] for _, name, its in arrivals if its == steps)
        found[f"{kind}_mean"] = round(statistics.mean(values), 3)
        found[f"{kind}_p95"] = round(values[int(0.95 * (len(values) - 1))], 3)
    return found
