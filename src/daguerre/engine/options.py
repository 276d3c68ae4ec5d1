"""Owns the options: how the engine works, as the operator wants it."""

from dataclasses import dataclass, field
from pathlib import Path

from daguerre.engine.residency import Budgets
from daguerre.engine.tuning import UNTUNED, Tuning
from daguerre.store.spills import Spills

#: Pictures under way at once, where nothing else says.
MAX_RUNS = 16
#: Seconds that a step may take, with the decoding of the pictures it finishes: SDXL on a slow CPU needs some.
STEP_TIMEOUT = 600.0


@dataclass(frozen=True, slots=True)
class Options:
    """At most ``max_runs`` pictures are under way at once, fewer where the device's memory has no room.

    A step that takes longer than ``step_timeout`` seconds is taken to hang. ``notes`` is the folder where the engine
    keeps what forwards take on this device. The denoiser outputs of durable jobs' pictures are written to ``spills``
    every ``spill_every`` seconds; 0: never.
    """

    device: str = "auto"
    dtype: str = "auto"
    max_runs: int = MAX_RUNS
    step_timeout: float = STEP_TIMEOUT
    tuning: Tuning = UNTUNED
    notes: Path | None = None
    budgets: Budgets = field(default_factory=Budgets)
    spills: Spills | None = None
    spill_every: float = 0.0
