"""Owns the operation: what the document says of a route, and the parameters and headers that routes share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from msgspec import Meta
from starlette.responses import Response

from daguerre import errors
from daguerre.answers import Problem
from daguerre.errors import DaguerreError
from daguerre.http import problems
from daguerre.job import Status

JSON, EVENTS, FORM = "application/json", "text/event-stream", "multipart/form-data"


class Picture:
    """Stands for bytes where a type is asked for."""


class Lines:
    """Stands for lines of text where a type is asked for."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a request; ``kind`` is its type."""

    name: str
    place: Literal["path", "query", "header"]
    kind: Any
    description: str


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that is no error: its bodies by their media types, and its headers by their names."""

    status: int
    description: str
    bodies: Mapping[str, Any]
    headers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Body:
    """What a request carries: a type, and the fields that this route insists on or has no use for."""

    kind: Any
    media: str = JSON
    needed: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    example: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Envelope:
    """How a dialect tells errors: the function that does, the type of what it makes, and headers that come later."""

    tell: Callable[[DaguerreError, str], Response]
    kind: Any
    headers: tuple[str, ...] = ()


PROBLEMS = Envelope(problems.answer, Problem)


@dataclass(frozen=True, slots=True)
class Operation:
    """What a route is for, takes and answers; ``raised`` are the errors that a client can meet there."""

    summary: str
    tag: str
    answers: tuple[Answer, ...]
    body: Body | None = None
    parameters: tuple[Parameter, ...] = ()
    raised: tuple[type[DaguerreError], ...] = ()
    envelope: Envelope = field(default=PROBLEMS)


#: What any request may meet, whatever its route; always told as a problem.
EVERYWHERE = (errors.HostNotAllowed, errors.MalformedRequest, errors.RequestTimeout, DaguerreError)

#: What reading a JSON body may end in.
UNREADABLE = (errors.MalformedBody, errors.BodyTooLarge, errors.UnsupportedMediaType, errors.InvalidRecipe)
#: What submitting a job may end in.
REFUSED = (
    *UNREADABLE,
    errors.ModelNotFound,
    errors.ModelNotPulled,
    errors.LoraNotFound,
    errors.LoraIncompatible,
    errors.CatalogError,
    errors.QueueFull,
    errors.NotReady,
    errors.Draining,
    errors.DiskLow,
    errors.StorageFailed,
    errors.RateLimited,
    errors.ClientLimit,
    errors.PromptRefused,
    errors.ModerationFailed,
)
#: What the gate may say of a request to a route that is not open, and of one that a page of another site sends.
GATED = (errors.Unauthenticated, errors.Forbidden, errors.AuthUnavailable)
SENT = (errors.OriginNotAllowed,)
#: What waiting for a job may end in.
ENDED = (
    errors.DiskLow,
    errors.JobCancelled,
    errors.JobTimeout,
    errors.JobFailed,
    errors.BadOutput,
    errors.OutOfMemory,
    errors.ImageRefused,
    errors.SafetyCheckFailed,
    errors.Poisoned,
)
#: What asking for a job may end in.
UNKNOWN = (errors.JobNotFound, errors.ResultExpired, errors.StorageFailed)

ID = Parameter("id", "path", str, "The job's id, a UUIDv7.")
MODEL = Parameter("id", "path", str, "The model's name in the catalogue.")
FILENAME = Parameter("filename", "path", str, "A name that the server gave out.")
INDEX = Parameter("index", "query", Annotated[int, Meta(ge=0, le=7)], "Which of the job's pictures; 0 when absent.")
STATUS = Parameter("status", "query", Status, "Only jobs in this state.")
LIMIT = Parameter("limit", "query", Annotated[int, Meta(ge=1, le=200)], "Jobs of a page; 50 when absent.")
CURSOR = Parameter("cursor", "query", str, "The next_cursor of the page before.")
PREFER = Parameter("Prefer", "header", str, "respond-async: answer 202 at once (RFC 7240).")
KEY = Parameter(
    "Idempotency-Key",
    "header",
    Annotated[str, Meta(min_length=1, max_length=255)],
    "1 to 255 printable characters; of queued jobs. The same key and body give the same job, while it is kept.",
)
LAST_EVENT = Parameter("Last-Event-ID", "header", str, "The id of the last event heard.")
SINCE = Parameter("since", "query", str, "The same as Last-Event-ID.")
REQUEST_ID = Parameter(
    "X-Request-Id", "header", str, "A name for this request, of letters, digits, dot, dash and underscore; echoed."
)
TRIES = Parameter(
    "X-Stainless-Retry-Count", "header", str, "How often OpenAI's client has asked before; such a retry gets its job."
)

#: Headers of answers: what each says, and an example.
HEADERS: dict[str, tuple[str, str]] = {
    "X-Request-Id": ("The name of the request, for the log.", "0197f0a4-6f3e-7c11-9d2a-5b8f3c6a1e20"),
    "X-Content-Type-Options": ("Browsers take the media type as it is.", "nosniff"),
    "X-Frame-Options": ("Not to be shown inside another page.", "DENY"),
    "Content-Security-Policy": ("Nothing in an answer may run in a browser.", "default-src 'none'; sandbox"),
    "Referrer-Policy": ("Browsers do not tell this address to others.", "no-referrer"),
    "Cache-Control": ("Not to be kept.", "no-store"),
    "Vary": ("What else decides the answer, where other sites' pages are allowed.", "Origin"),
    "X-Job-Id": ("The job's id.", "0197f0a4-6f3e-7c11-9d2a-5b8f3c6a1e20"),
    "X-Seed": ("The picture's seed.", "7"),
    "X-Generation-Metadata": (
        "How the picture was made: JSON in ASCII, below 4 KB.",
        '{"model": "demo-xl", "seed": 7}',
    ),
    "Server-Timing": ("Milliseconds of each phase.", "queue;dur=1.2, encode;dur=8.1, denoise;dur=900.4"),
    "Content-Disposition": (
        "The name of the picture's file.",
        'inline; filename="20261121_080000_demo-xl_3c6a1e20.png"',
    ),
    "Location": ("Where to ask from now on.", "/v1/jobs/0197f0a4-6f3e-7c11-9d2a-5b8f3c6a1e20"),
    "Retry-After": ("Seconds after which to ask again.", "2"),
    "Preference-Applied": ("Which preference was followed.", "respond-async"),
    "Accept-Ranges": ("Parts may be asked for.", "bytes"),
    "Content-Range": ("Which part this is.", "bytes 0-9/2048"),
    "ETag": ("Names this version of the file.", '"5f2b"'),
    "Last-Modified": ("When the file was written.", "Sat, 21 Nov 2026 08:00:00 GMT"),
    "X-Process-Time": ("Seconds that the answer took.", "0.0123"),
    "WWW-Authenticate": ("How to say who asks.", 'Bearer realm="daguerre"'),
    "RateLimit": (
        "What is left of the allowance, and the seconds until there is more.",
        '"megapixel-steps";r=968;t=60',
    ),
    "RateLimit-Policy": ("The allowance, and its seconds.", '"megapixel-steps";q=1000;w=60'),
    "X-Should-Retry": ("Whether OpenAI's client is to ask again.", "false"),
}
#: Those of every answer.
ALWAYS = (
    "X-Request-Id",
    "X-Content-Type-Options",
    "X-Frame-Options",
    "Content-Security-Policy",
    "Referrer-Policy",
    "Cache-Control",
    "Vary",
    "RateLimit",
    "RateLimit-Policy",
)
