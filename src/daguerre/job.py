"""Owns the job: a recipe on its way to its pictures, its states, and the events that move it."""

import os
import time
import uuid
from enum import StrEnum
from typing import Literal, get_args

import msgspec

from daguerre.recipe import Recipe


class Status(StrEnum):
    """Where a job stands."""

    #: It waits for its turn.
    QUEUED = "queued"
    #: The engine works on it.
    RUNNING = "running"
    #: Its pictures are written.
    SUCCEEDED = "succeeded"
    #: It ended without pictures; ``error`` says why.
    FAILED = "failed"
    #: It was called off, by its client or by the client's leaving.
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether a job in this state will never change again."""
        return self not in (Status.QUEUED, Status.RUNNING)


#: What filters said of a prompt or a picture, the gravest last; nothing is said where there are none.
SafetyResult = Literal["passed", "unchecked", "flagged", "blurred", "blocked"]


def gravest(*results: SafetyResult | None) -> SafetyResult | None:
    """What is to be told of several together."""
    told = [result for result in results if result is not None]
    return max(told, key=get_args(SafetyResult).index, default=None)


class Timings(msgspec.Struct, frozen=True, gc=False):
    """Seconds that a job spent in each phase."""

    queue: float = 0.0
    encode: float = 0.0
    denoise: float = 0.0
    decode: float = 0.0
    png: float = 0.0


class Image(msgspec.Struct, frozen=True, gc=False):
    """A finished picture."""

    filename: str
    seed: int
    width: int
    height: int
    format: str
    bytes: int
    sha256: str
    safety_filter_result: SafetyResult | None = None


class Failure(msgspec.Struct, frozen=True, gc=False):
    """Why a job has no pictures, in words fit for its client."""

    code: str
    message: str


class Job(msgspec.Struct, frozen=True, gc=False):
    """A recipe on its way. Times are Unix seconds; a change makes a new value."""

    id: str
    recipe: Recipe
    created_at: float
    client: str = ""  # who asked for it
    is_attached: bool = True  # its client waits for it on a connection, and has given it up when that ends
    attempts: int = 0  # how often its painting has begun
    status: Status = Status.QUEUED
    started_at: float | None = None
    finished_at: float | None = None
    step: int = 0
    steps: int = 0
    images: tuple[Image, ...] = ()
    error: Failure | None = None
    timings: Timings = Timings()
    request_id: str = ""  # of the request that it came with
    device_seconds: float = 0.0  # its share of the device's time
    memory_peak: int | None = None  # bytes of the device; none where it has no memory of its own
    is_urgent: bool = False  # it goes before others
    webhook: str | None = None  # where its end is to be told; clients are not shown it, since it may hold a token
    safety_filter_result: SafetyResult | None = None  # of its prompt, then the gravest of its pictures' as well


def new_id(now: float | None = None) -> str:
    """A UUIDv7 (RFC 9562): 48 bits of milliseconds, then random bits, so that ids sort by their age."""
    milliseconds = int((time.time() if now is None else now) * 1000)
    value = milliseconds << 80 | int.from_bytes(os.urandom(10))
    value = value & ~(0xF << 76) | 0x7 << 76  # version
    value = value & ~(0x3 << 62) | 0x2 << 62  # variant
    return str(uuid.UUID(int=value))
