"""Owns the answers: the bodies that go over the wire, as the server, its document and its client know them."""

from typing import Any, Literal

import msgspec

from daguerre.errors import FieldError
from daguerre.job import Failure, SafetyResult, Status, Timings
from daguerre.recipe import Format, Recipe


class Progress(msgspec.Struct, frozen=True):
    """How far a job is."""

    step: int
    steps: int
    fraction: float


class WireImage(msgspec.Struct, frozen=True, omit_defaults=True):
    """A finished picture of a job."""

    url: str
    filename: str
    seed: int
    width: int
    height: int
    format: str
    bytes: int
    sha256: str
    thumbnail_url: str
    b64: str | None = None
    safety_filter_result: SafetyResult | None = None


class WireJob(msgspec.Struct, frozen=True):
    """A job as clients see it; times are RFC 3339 in UTC, timings seconds."""

    id: str
    request_id: str
    status: Status
    created_at: str
    started_at: str | None
    finished_at: str | None
    position: int | None
    eta_s: float | None
    progress: Progress
    recipe: Recipe
    images: list[WireImage]
    error: Failure | None
    timings: Timings
    attempts: int
    safety_filter_result: SafetyResult | None
    metadata: dict[str, Any]
    links: dict[str, str]


class JobPage(msgspec.Struct, frozen=True):
    """Jobs, the newest first; ``next_cursor`` asks for those before them."""

    data: list[WireJob]
    next_cursor: str | None


class Cancellation(msgspec.Struct, frozen=True):
    """Whether anything was left to call off."""

    cancelled: bool


class QueuedJob(msgspec.Struct, frozen=True):
    """An unfinished job of the caller; ``position`` is 0 where it runs."""

    id: str
    status: Status
    position: int


class QueueStatus(msgspec.Struct, frozen=True):
    """How much there is to do, and until when, in seconds; of the jobs only the caller's own."""

    size: int
    running: int
    limit: int
    eta_s: float
    jobs: list[QueuedJob]


class TaskResult(msgspec.Struct, frozen=True):
    """What a task of the older API came to: the addresses of its pictures."""

    job_id: str
    images: list[str]


class TaskProgress(msgspec.Struct, frozen=True):
    """How many steps of a task of the older API are done."""

    current: int
    total: int


class Task(msgspec.Struct, frozen=True, omit_defaults=True):
    """A job as clients of the older task API know it."""

    task_id: str
    state: Literal["PENDING", "PROGRESS", "SUCCESS", "FAILURE"]
    result: TaskResult | None
    meta: TaskProgress | None = None
    error: str | None = None


class ModelProgress(msgspec.Struct, frozen=True):
    """What is being done with a model, and how many bytes of it have been fetched."""

    stage: str
    bytes: int
    total_bytes: int


class ModelDefaults(msgspec.Struct, frozen=True):
    """What a recipe gets that leaves these open."""

    width: int
    height: int
    steps: int
    guidance_scale: float
    negative_prompt: str
    scheduler: str


class WireModel(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A model of the catalogue; ``native_size`` is width and height in pixels."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    name: str
    description: str
    family: str
    modes: tuple[str, ...]
    default: bool
    state: Literal["device", "host", "disk", "absent"]
    native_size: tuple[int, int]
    size_factor: int
    max_area: int
    bytes: int
    defaults: ModelDefaults
    schedulers: tuple[str, ...]
    progress: ModelProgress | None = None
    error: Failure | None = None


class ModelList(msgspec.Struct, frozen=True):
    """All models of the catalogue."""

    object: Literal["list"]
    data: list[WireModel]


class WireLora(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A LoRA that can be used; its family is null where its file does not tell."""

    name: str
    object: Literal["lora"]
    family: str | None
    state: Literal["device", "host", "disk"]
    default_weight: float
    trigger_words: tuple[str, ...]
    rank: int
    bytes: int
    description: str
    error: Failure | None = None


class LoraList(msgspec.Struct, frozen=True):
    """All LoRAs that can be used."""

    object: Literal["list"]
    data: list[WireLora]


class WireScheduler(msgspec.Struct, frozen=True):
    """A scheduler, AUTOMATIC1111's name for it, and the families of models that can use it."""

    id: str
    label: str
    families: list[str]


class SchedulerList(msgspec.Struct, frozen=True):
    """All schedulers."""

    object: Literal["list"]
    data: list[WireScheduler]


class WireStyle(msgspec.Struct, frozen=True):
    """The words that a style puts around a prompt."""

    id: str
    prompt: str
    negative_prompt: str
    description: str


class StyleList(msgspec.Struct, frozen=True):
    """All styles of the catalogue."""

    object: Literal["list"]
    data: list[WireStyle]


class Bounds(msgspec.Struct, frozen=True):
    """What bounds a request; ``side`` is the least and the most, in pixels."""

    count: int
    loras: int
    reference_images: int
    side: tuple[int, int]
    seed: int
    metadata_bytes: int
    upload_pixels: int
    body_bytes: int
    queue: int


class WireIpAdapter(msgspec.Struct, frozen=True):
    """An IP-Adapter, and the models that it is for."""

    name: str
    family: str | None
    kind: str
    default_scale: float
    bytes: int
    description: str


class WireEmbedding(msgspec.Struct, frozen=True):
    """A textual inversion: a word for prompts, and the widths of the text encoders that know it."""

    name: str
    vectors: int
    widths: tuple[int, ...]


class ModeDefaults(ModelDefaults, frozen=True):
    """What a recipe of one mode gets that leaves these open and names no model."""

    model: str
    strength: float | None
    count: int
    format: Format
    quality: int


class Capabilities(msgspec.Struct, frozen=True):
    """What this server can do: each mode with the models that do it and with its defaults, and what bounds it."""

    modes: dict[str, list[str]]
    defaults: dict[str, ModeDefaults]
    formats: tuple[str, ...]
    prompt_syntaxes: tuple[str, ...]
    reference_images: list[str]
    ip_adapters: list[WireIpAdapter]
    embeddings: list[WireEmbedding]
    limits: Bounds


class Totals(msgspec.Struct, frozen=True):
    """What a client's jobs that succeeded have taken; ``since`` is the end of the first."""

    client: str
    since: str | None
    jobs: int
    images: int
    steps: int
    pixels: int
    device_seconds: float


class Alive(msgspec.Struct, frozen=True):
    """A sign of life."""

    status: Literal["ok", "ready"]


class Memory(msgspec.Struct, frozen=True):
    """The most memory that the server has held."""

    host_peak_bytes: int


class QueueLoad(msgspec.Struct, frozen=True):
    """Jobs that wait, jobs that run, and how many may wait."""

    size: int
    running: int
    limit: int


class Health(msgspec.Struct, frozen=True):
    """What a person wants to know; ``status`` is ok, or the code of what is wrong."""

    status: str
    detail: str
    version: str
    model: str
    device: str | None
    dtype: str | None
    memory: Memory
    queue: QueueLoad


class Problem(msgspec.Struct, frozen=True):
    """The body of every answer that is an error; ``errors`` names the fields that are wrong, if it is fields."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    errors: tuple[FieldError, ...] = ()


class Told(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why there is no picture, in an event."""

    code: str
    message: str
    errors: tuple[FieldError, ...] = ()


class Accepted(msgspec.Struct, frozen=True, tag="accepted", tag_field="type"):
    """The job is durable. On sockets that were opened with a recipe only."""

    job: WireJob


class Queued(msgspec.Struct, frozen=True, tag="queued", tag_field="type"):
    """It waits for its turn."""

    id: str
    position: int
    eta_s: float


class Started(msgspec.Struct, frozen=True, tag="started", tag_field="type"):
    """The engine works on it."""

    id: str


class Progressed(msgspec.Struct, frozen=True, omit_defaults=True, tag="progress", tag_field="type"):
    """So many steps are done; ``image`` is a preview, a JPEG in base64, where there is a new one."""

    id: str
    step: int
    steps: int
    fraction: float
    eta_s: float
    image: str | None = None


class Completed(msgspec.Struct, frozen=True, omit_defaults=True, tag="completed", tag_field="type"):
    """The pictures are there; on sockets that did not ask for binary frames they are here as well, in base64."""

    id: str
    job: WireJob
    image: str | None = None
    images: list[str] | None = None


class Failed(msgspec.Struct, frozen=True, tag="failed", tag_field="type"):
    """It ended without a picture, or was never accepted: then there is no id."""

    id: str | None
    error: Told


class Cancelled(msgspec.Struct, frozen=True, tag="cancelled", tag_field="type"):
    """It was called off."""

    id: str
    error: Told


#: What becomes of a job, as streams tell it.
Event = Accepted | Queued | Started | Progressed | Completed | Failed | Cancelled
