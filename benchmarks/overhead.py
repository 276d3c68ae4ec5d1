"""Measures what a server adds to a picture: a client's wall time minus the bare pipeline's, ours and a naive server's.

Three processes hold the same weights: our server, `benchmarks.naive`, and `benchmarks.bare`, whose number is subtracted
from both. They take turns picture by picture, in changing order and never two at once, so that a slower or faster spell
of the machine meets all three; a server's overhead is the median over the rounds of its wall time minus the same
round's bare time. Ours writes every picture to disk, with its recipe inside, before it answers; the naive one writes
nothing.

A prompt that comes again is answered from our cache of embeddings, which neither the bare pipeline nor the naive server
has; so each size has a row with one prompt and a row with a new prompt every time, where our Compel runs against the
pipeline's own encoding.

``own_clock`` is the same without the machine's noise between pictures, and takes the servers at their word: wall time
minus what the server itself says it computed for this very picture. Of ours that is Server-Timing's encode, denoise and
decode; of the naive one all of ``pipe(...)``, which includes its conversion to a Pillow image and so flatters it.
"""

import base64
import json
import statistics
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from benchmarks.bare import Bare, bare
from benchmarks.goals import Goal
from benchmarks.server import Answer, Running, daguerre, milliseconds, naive, phases

BUDGET = 110.0  # seconds for a size; where the machine is slow or busy there are fewer rounds, and the figures say so
PAUSE = 0.05  # seconds in which the threads of the one before go to sleep
COMPUTED = ("encode", "denoise", "decode")

SIZES = {
    "1024², 1 step": ({"width": 1024, "height": 1024, "steps": 1, "guidance_scale": 1.0}, 9),
    "256², 4 steps": ({"width": 256, "height": 256, "steps": 4, "guidance_scale": 1.0}, 21),
}
PROMPTS = ("one prompt", "new prompts")

GOALS = tuple(
    Goal(f"overhead to the naive one's, {size}, {prompts}{clock}", (size, prompts, *way, "to_naive"), 0.1)
    for size in SIZES
    for prompts in PROMPTS
    for clock, way in (("", ()), (", own clock", ("own_clock",)))
)


class Round(NamedTuple):
    """One picture by each."""

    bare: float
    naive: Answer
    ours: Answer


def run() -> dict[str, Any]:
    """The figures of every size, with one prompt and with new ones."""
    with bare() as pipe, naive() as theirs, daguerre() as ours:
        ours.wait_until("/readyz")
        return {size: measure(pipe, theirs, ours, fields, rounds) for size, (fields, rounds) in SIZES.items()}


def measure(
    pipe: Bare, theirs: Running, ours: Running, fields: Mapping[str, Any], rounds: int
) -> dict[str, dict[str, Any]]:
    """Both rows of a size; the first round of each warms up and is thrown away."""
    taken: dict[str, list[Round]] = {prompts: [] for prompts in PROMPTS}
    give_up = time.monotonic() + BUDGET
    for number in range(rounds + 1):
        if number > 1 and time.monotonic() > give_up:
            break
        for prompts in PROMPTS:
            prompt = "a lake in the mountains" if prompts == "one prompt" else f"lake number {number} in the mountains"
            recipe = {**fields, "prompt": prompt, "seed": number}
            taken[prompts].append(_round(pipe, theirs, ours, recipe, number))
    return {prompts: _weighed(found[1:]) for prompts, found in taken.items()}


def _round(pipe: Bare, theirs: Running, ours: Running, recipe: Mapping[str, Any], number: int) -> Round:
    """One picture by each, in an order that changes with the number."""
    found: dict[str, Any] = {}
    calls = [("bare", pipe.seconds), ("naive", theirs.paint), ("ours", ours.paint)]
    for place in range(3):
        time.sleep(PAUSE)
        name, call = calls[(number + place) % 3]
        found[name] = call(recipe)
    return Round(**found)


def _weighed(rounds: list[Round]) -> dict[str, Any]:
    theirs = milliseconds([one.naive.seconds - one.bare for one in rounds])
    ours = milliseconds([one.ours.seconds - one.bare for one in rounds])
    clocks = [phases(one.ours) for one in rounds]
    our_clock = [
        one.ours.seconds - sum(clock[name] for name in COMPUTED) / 1000
        for one, clock in zip(rounds, clocks, strict=True)
    ]
    their_clock = [one.naive.seconds - json.loads(one.naive.body)["pipe_s"] for one in rounds]
    return {
        "bare_ms": milliseconds([one.bare for one in rounds]),
        "naive_ms": milliseconds([one.naive.seconds for one in rounds]),
        "daguerre_ms": milliseconds([one.ours.seconds for one in rounds]),
        "naive_overhead_ms": theirs,
        "daguerre_overhead_ms": ours,
        "to_naive": _quotient(ours, theirs),
        "own_clock": {
            "naive_overhead_ms": milliseconds(their_clock),
            "daguerre_overhead_ms": milliseconds(our_clock),
            "to_naive": _quotient(statistics.median(our_clock), statistics.median(their_clock)),
        },
        "daguerre_phases_ms": {
            name: round(statistics.median(clock[name] for clock in clocks), 1) for name in clocks[0]
        },
        "bare_min_ms": milliseconds([min(one.bare for one in rounds)]),
        "bare_max_ms": milliseconds([max(one.bare for one in rounds)]),
        "naive_png_bytes": statistics.median(len(_picture(one.naive)) for one in rounds),
        "daguerre_png_bytes": statistics.median(len(one.ours.body) for one in rounds),
        "rounds": len(rounds),
    }


def _quotient(ours: float, theirs: float) -> float | None:
    """Ours by theirs; where noise has swallowed one of them there is none."""
    return round(ours / theirs, 3) if ours > 0 and theirs > 0 else None


def _picture(answer: Answer) -> bytes:
    return base64.b64decode(json.loads(answer.body)["image"])
