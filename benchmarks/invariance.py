"""Counts equal bytes: the same ``reproducible`` recipe again and again, each time among other random neighbours."""

import random
from typing import Any

from benchmarks.driver import Pair, pair
from benchmarks.goals import Goal

TIMES, STEPS, SIDE = 1000, 3, 64

GOALS = (Goal(f"equal pictures of {TIMES}", ("equal",), TIMES, is_least=True),)


def run() -> dict[str, Any]:
    """How many pictures equal the first, among neighbours of other lengths, seeds and guidance."""
    chance, equal, shared = random.Random(3), 0, 0
    with pair() as both:
        first = _paint(both, neighbours=[])
        for _ in range(TIMES):
            neighbours = [
                {
                    "steps": chance.randint(1, 4),
                    "seed": chance.randrange(1000),
                    "guidance_scale": chance.choice((1.0, 7.0)),
                }
                for _ in range(chance.randint(0, 3))
            ]
            shared += bool(neighbours)
            equal += _paint(both, neighbours) == first
    return {"times": TIMES, "with_neighbours": shared, "equal": equal}


def _paint(both: Pair, neighbours: list[dict[str, Any]]) -> bytes:
    for number, fields in enumerate(neighbours):
        both.submit(f"neighbour {number}", width=SIDE, height=SIDE, **fields)
    both.submit("wanted", width=SIDE, height=SIDE, steps=STEPS, seed=1, reproducible=True)
    found = b""
    for _ in range(len(neighbours) + 1):
        painted = both.next_picture()
        assert painted is not None
        if painted.job_id == "wanted":
            found = painted.pixels.array().tobytes()
    return found
