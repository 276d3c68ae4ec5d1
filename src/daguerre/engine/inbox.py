"""Owns the inbox: all that the engine thread can be told."""

from dataclasses import dataclass

from daguerre.catalog import Model
from daguerre.engine.adapter_cache import AdapterRead
from daguerre.engine.residency import Loaded
from daguerre.engine.submission import Submission
from daguerre.errors import DaguerreError
from daguerre.loras import Adapter


@dataclass(frozen=True, slots=True)
class Cancel:
    """Ends a job with this error at the next step of each of its runs."""

    job_id: str
    error: DaguerreError


@dataclass(frozen=True, slots=True)
class Look:
    """Has one preview made of a job's first picture under way, at its next step."""

    job_id: str


@dataclass(frozen=True, slots=True)
class Preload:
    """Loads a model before anybody asks for a picture of it."""

    model: Model


@dataclass(frozen=True, slots=True)
class Unload:
    """Lets go of a model's weights, unless a picture of it is under way."""

    name: str


@dataclass(frozen=True, slots=True)
class PreloadAdapter:
    """Reads an adapter before anybody asks for a picture with it."""

    adapter: Adapter


@dataclass(frozen=True, slots=True)
class UnloadAdapter:
    """Lets go of an adapter's weights; pictures under way keep theirs to their end."""

    name: str


@dataclass(frozen=True, slots=True)
class Close:
    """Ends every job and then the thread."""


Message = Submission | Cancel | Look | Preload | Unload | PreloadAdapter | UnloadAdapter | Close | Loaded | AdapterRead
