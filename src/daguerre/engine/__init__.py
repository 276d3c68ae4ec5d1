"""The engine: one thread that owns every torch object on the device. Importing this package loads no torch."""

from daguerre.engine.engine import Engine, Reference, Submission
from daguerre.engine.events import (
    AdapterAbsent,
    AdapterPlaced,
    EngineDied,
    Event,
    ModelAbsent,
    ModelLoading,
    ModelPlaced,
    ModelReady,
    Painted,
    Pixels,
    RunEnded,
    Started,
    Stepped,
)
from daguerre.engine.residency import Budgets
from daguerre.engine.tuning import Tuning

__all__ = [
    "AdapterAbsent",
    "AdapterPlaced",
    "Budgets",
    "Engine",
    "EngineDied",
    "Event",
    "ModelAbsent",
    "ModelLoading",
    "ModelPlaced",
    "ModelReady",
    "Painted",
    "Pixels",
    "Reference",
    "RunEnded",
    "Started",
    "Stepped",
    "Submission",
    "Tuning",
]
