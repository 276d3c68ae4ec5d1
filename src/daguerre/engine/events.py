"""Owns the engine's events: all that it ever tells the rest of the house. They are emitted on the engine thread."""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from daguerre.errors import DaguerreError

Place = Literal["device", "host", "disk"]


class Pixels(Protocol):
    """A picture that may still be on its way from the device."""

    def array(self) -> NDArray[np.uint8]:
        """Waits for the copy and gives the picture, [H, W, 3].

        Raises:
            BadOutput: the model painted not-a-number, or nothing but black.
        """
        ...


@dataclass(frozen=True, slots=True)
class ModelLoading:
    """The loader began to read a model's weights; ``stage`` is fit to be shown."""

    model: str
    stage: str


@dataclass(frozen=True, slots=True)
class ModelReady:
    """A model is on the device; ``seconds`` since it was asked for."""

    model: str
    device: str
    dtype: str
    seconds: float


@dataclass(frozen=True, slots=True)
class ModelPlaced:
    """A model's weights are there now: it made room for others, was loaded ahead, or was sent away."""

    model: str
    place: Place


@dataclass(frozen=True, slots=True)
class AdapterPlaced:
    """An adapter is there now: in host memory, ready to be used, or on disk only."""

    adapter: str
    place: Place


@dataclass(frozen=True, slots=True)
class AdapterAbsent:
    """An adapter could not be read; jobs that wait for it fail one by one with their own events."""

    adapter: str
    error: DaguerreError


@dataclass(frozen=True, slots=True)
class ModelAbsent:
    """A model could not be loaded; jobs that wait for it fail one by one with their own events."""

    model: str
    error: DaguerreError


@dataclass(frozen=True, slots=True)
class Started:
    """The first picture of a job is being painted."""

    job_id: str


@dataclass(frozen=True, slots=True)
class Stepped:
    """Picture ``index`` of a job has done ``step`` of ``steps`` turns of its pipeline's loop.

    ``preview`` is there only where the recipe, or somebody who looks, asks for it now: an eighth of the picture's size.
    """

    job_id: str
    index: int
    step: int
    steps: int
    preview: Pixels | None = None


@dataclass(frozen=True, slots=True)
class Painted:
    """Picture ``index`` of a job is there; the seconds are those that its run spent in each phase.

    ``device_seconds`` is its share of the device's time, ``memory_peak`` the most bytes that the device held meanwhile,
    ``tokens`` what the text encoders read for it: none where they knew its prompt.
    """

    job_id: str
    index: int
    pixels: Pixels
    encode_seconds: float
    denoise_seconds: float
    decode_seconds: float
    device_seconds: float = 0.0
    memory_peak: int | None = None  # None: the device has no memory of its own
    tokens: int | None = None  # None: the pipeline encodes for itself


@dataclass(frozen=True, slots=True)
class RunEnded:
    """A job ended in the engine without its pictures: cancelled, out of time, or failed. Sent once a job."""

    job_id: str
    error: DaguerreError


@dataclass(frozen=True, slots=True)
class EngineDied:
    """The engine thread itself failed; nothing more will come from it."""

    error: DaguerreError


Event = (
    ModelLoading
    | ModelReady
    | ModelPlaced
    | ModelAbsent
    | AdapterPlaced
    | AdapterAbsent
    | Started
    | Stepped
    | Painted
    | RunEnded
    | EngineDied
)
