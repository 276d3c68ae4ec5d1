"""Measures the event loop under full engine load: ``/ping`` while four clients paint without a pause."""

import statistics
import threading
import time
from typing import Any

from benchmarks.goals import Goal
from benchmarks.server import Running, daguerre

SECONDS, CLIENTS = 20.0, 4

GOALS = (Goal("milliseconds of /ping, p99", ("p99_ms",), 50.0),)


def run() -> dict[str, Any]:
    """Latencies of /ping in milliseconds, on connections of their own."""
    with daguerre() as server:
        server.wait_until("/readyz")
        server.paint({"prompt": "warm", "steps": 2})
        stop = threading.Event()
        painters = [threading.Thread(target=_paint_on, args=(server, stop, seed)) for seed in range(CLIENTS)]
        for painter in painters:
            painter.start()
        time.sleep(1.0)
        seen, end = [], time.perf_counter() + SECONDS
        while time.perf_counter() < end:
            seen.append(1000 * server.ask("GET", "/ping").seconds)
            time.sleep(0.01)
        stop.set()
        for painter in painters:
            painter.join()
    seen.sort()
    return {
        "pings": len(seen),
        "median_ms": round(statistics.median(seen), 2),
        "p99_ms": round(seen[int(0.99 * (len(seen) - 1))], 2),
        "max_ms": round(seen[-1], 2),
    }


def _paint_on(server: Running, stop: threading.Event, seed: int) -> None:
    while not stop.is_set():
        server.paint({"prompt": "a city skyline at night", "steps": 10, "seed": seed})
