"""Owns the course of an adapter's training: its steps, what it prints, and its checkpoints."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from daguerre.demo.flat import FlatWeights
from daguerre.demo.training import Plan


class AdapterPlan(Protocol):
    """What a run will do."""

    @property
    def batch(self) -> int:
        """Samples of a step."""

    @property
    def sizes(self) -> Plan:
        """The sizes of pictures and the rate, as a plan of the embedded model's."""


class Learner(Protocol):
    """A training of an adapter, beside an embedded model that stays as it is."""

    weights: FlatWeights

    @property
    def plan(self) -> AdapterPlan:
        """What it will do."""

    @property
    def seen(self) -> int:
        """Samples so far."""

    def step(self) -> float:
        """Take one step and return its loss."""


def run(
    learner: Learner, out: Path, write: Callable[[], None], stop: int | None = None, save_every: float = 120
) -> None:
    """Train to the plan's end, or until so many samples were seen; the clock decides only when to save.

    A run goes on from the checkpoint in `out`; `write` writes what has been learned so far.
    """
    checkpoint = out / "checkpoint.safetensors"
    if checkpoint.exists():
        learner.weights.load(checkpoint)
    began = last = time.monotonic()
    losses: list[float] = []
    end = min(learner.plan.sizes.total, stop or learner.plan.sizes.total)
    while learner.seen < end:
        losses.append(learner.step())
        if len(losses) == 25 or learner.seen >= end:
            print(_progress(learner, losses, time.monotonic() - began), flush=True)
            losses, began = [], time.monotonic()
        if time.monotonic() - last > save_every:
            _keep(learner, checkpoint, write)
            last = time.monotonic()
    _keep(learner, checkpoint, write)


def _keep(learner: Learner, checkpoint: Path, write: Callable[[], None]) -> None:
    learner.weights.save(checkpoint, {})
    write()


def _progress(learner: Learner, losses: list[float], seconds: float) -> str:
    sizes, seen = learner.plan.sizes, learner.seen
    pace = seconds / len(losses) / learner.plan.batch * 1000
    return (
        f"{seen:>6} of {sizes.total}  {sizes.side(seen - 1)}²  rate {sizes.rate_at(seen):.1e}  "
        f"loss {sum(losses) / len(losses):.4f}  {pace:.1f} ms a sample"
    )
