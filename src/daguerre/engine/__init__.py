"""The engine: one thread that owns every torch object on the device. Importing this package loads no torch."""

import os

# Weights are data, never code. The switches are read when the libraries are imported, so they come first.
os.environ["DIFFUSERS_DISABLE_REMOTE_CODE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
# Advice that is given during the import, before anybody can turn it off: Pillow's image processors serve well.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from daguerre.engine.engine import Engine
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
from daguerre.engine.options import Options
from daguerre.engine.residency import Budgets
from daguerre.engine.submission import Reference, Submission
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
    "Options",
    "Painted",
    "Pixels",
    "Reference",
    "RunEnded",
    "Started",
    "Stepped",
    "Submission",
    "Tuning",
]
