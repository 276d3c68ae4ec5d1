"""Measures one picture of the embedded model, 256² in 20 guided steps: by HTTP and by diffusers alone, in turns."""

import statistics
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.bare import bare
from benchmarks.goals import Goal
from benchmarks.server import daguerre

RUNS = 10
RECIPE = {"width": 256, "height": 256, "steps": 20, "guidance_scale": 5.0}

GOALS = (Goal("seconds for a picture through HTTP", ("http", "median_s"), 2.0),)


def run() -> dict[str, Any]:
    """Seconds of both, and their ratio."""
    through_http: list[float] = []
    alone: list[float] = []
    with bare() as pipe, daguerre() as server:
        server.wait_until("/readyz")
        for number in range(RUNS + 1):
            recipe = {**RECIPE, "prompt": f"sunset number {number} over mountains", "seed": number}
            time.sleep(0.05)
            through_http.append(server.paint(recipe).seconds)
            time.sleep(0.05)
            alone.append(pipe.seconds(recipe))
    http, diffusers = _weighed(through_http[1:]), _weighed(alone[1:])  # the first ones warm up
    return {
        "http": http,
        "bare_diffusers": diffusers,
        "http_to_bare": round(http["median_s"] / diffusers["median_s"], 3),
        "runs": RUNS,
    }


def _weighed(seconds: Sequence[float]) -> dict[str, float]:
    figures = {"median_s": statistics.median(seconds), "min_s": min(seconds), "max_s": max(seconds)}
    return {name: round(value, 3) for name, value in figures.items()}
