"""Measures a start: from the process's first moment to the open port, to readiness, to the first picture.

The weights come from a warm disk cache. The client waits for readiness and then asks for a picture with nothing but a
prompt (256², 20 steps, guided); the second picture has another seed.
"""

import statistics
import time
from typing import Any

from benchmarks.goals import Goal
from benchmarks.server import daguerre

RUNS = 5
PROMPT = "a beautiful sunset over mountains"

GOALS = (
    Goal("seconds from start to the open port", ("median", "port_s"), 1.0),
    Goal("seconds from start to the first picture", ("median", "first_picture_s"), 10.0),
)


def run() -> dict[str, Any]:
    """Seconds since the start, of every run and in the median; the last figure is the second picture's own latency."""
    runs = [_start() for _ in range(RUNS)]
    names = list(runs[0])
    return {
        "median": {name: round(statistics.median(one[name] for one in runs), 3) for name in names},
        "runs": {name: [round(one[name], 3) for one in runs] for name in names},
    }


def _start() -> dict[str, float]:
    start = time.perf_counter()
    with daguerre() as server:
        port = server.listening_at - start
        ping = server.wait_until("/ping") - start
        ready = server.wait_until("/readyz", every=0.05) - start
        server.paint({"prompt": PROMPT, "seed": 1})
        first = time.perf_counter() - start
        second = server.paint({"prompt": PROMPT, "seed": 2}).seconds
    return {
        "port_s": port,
        "ping_s": ping,
        "ready_s": ready,
        "first_picture_s": first,
        "second_picture_latency_s": second,
    }
