"""Owns what both clients share: requests, when to ask again, and what is made of answers. It does no I/O itself.

A flow is a generator: it yields a request and is sent its response, or why there is none; or it yields seconds to wait
and is sent nothing. Each client drives it in its own way.
"""

import base64
import json
import random
import uuid
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from daguerre.answers import (
    Cancellation,
    Cancelled,
    Completed,
    Event,
    Failed,
    LoraList,
    ModelList,
    WireJob,
    WireLora,
    WireModel,
)
from daguerre.client.errors import (
    BadAddress,
    BadAnswer,
    Busy,
    ClientError,
    JobCancelled,
    JobFailed,
    Unfinished,
    Unreachable,
    refusal,
)
from daguerre.recipe import Draft
from daguerre.version import __version__

T = TypeVar("T")

#: Seconds before the first retry; each later one waits twice as long.
FIRST_PAUSE = 0.5
#: Seconds that a server may ask to wait; who is told more is refused at once.
LONGEST_PAUSE = 120.0
#: Idle connections are kept for less time than the server keeps them: else one is closed as a request goes out.
LIMITS = httpx.Limits(keepalive_expiry=2.0)
#: Events keep coming at least every 15 seconds.
TIMEOUT = httpx.Timeout(60.0, connect=10.0)


@dataclass(frozen=True, slots=True)
class Ask:
    """A request that may be made more than once."""

    method: str
    path: str
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)

    def options(self) -> dict[str, Any]:
        """What httpx's methods take."""
        return {"content": self.body, "headers": self.headers, "params": self.params}


Outcome = httpx.Response | httpx.TransportError | None
Flow = Generator[Ask | float, Outcome, T]


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture's file, its seed, and what the server says of its making."""

    data: bytes
    media_type: str
    seed: int
    metadata: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Painting:
    """A job that has succeeded, and its pictures."""

    job: WireJob
    pictures: tuple[Picture, ...]

    @property
    def data(self) -> bytes:
        """The file of the first picture."""
        return self.pictures[0].data

    @property
    def metadata(self) -> dict[str, Any]:
        """What the server says of the making of the first picture."""
        return self.pictures[0].metadata


def address(server: str) -> httpx.URL:
    """The address of a server.

    Raises:
        BadAddress
    """
    try:
        url = httpx.URL(server)
    except httpx.InvalidURL:
        raise BadAddress from None
    if url.scheme not in ("http", "https") or not url.host:
        raise BadAddress
    return url


def settings(server: str, api_key: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """What httpx's clients are made with; ``options`` have the last word.

    Raises:
        BadAddress
    """
    headers = {"user-agent": f"daguerre/{__version__}"}
    if api_key is not None:
        headers["authorization"] = f"Bearer {api_key}"
    headers |= options.get("headers", {})
    return {"base_url": address(server), "timeout": TIMEOUT, "limits": LIMITS, **options, "headers": headers}


def ask(request: Ask, retries: int) -> Flow[httpx.Response]:
    """The response to a request, asked again where that may help.

    Raises:
        Unreachable, Refused
    """
    patience = Patience(retries)
    while True:
        told = yield request
        assert told is not None
        if isinstance(told, httpx.Response) and told.is_success:
            return told
        yield patience.pause(refusal(told) if isinstance(told, httpx.Response) else told)


class Patience:
    """How often, and after how long, something is tried again."""

    def __init__(self, retries: int) -> None:
        self._retries = retries
        self.attempt = 0

    def pause(self, error: httpx.TransportError | ClientError) -> float:
        """Seconds to wait before the next attempt: never less than the server asks for.

        Raises:
            ClientError: the error, where another attempt cannot help, or there have been enough.
        """
        if isinstance(error, httpx.TransportError):
            error = Unreachable(f"no answer from the server: {error or type(error).__name__}")
        asked = error.retry_after if isinstance(error, Busy) else 0.0
        can_pass = isinstance(error, Unreachable | Busy) and asked <= LONGEST_PAUSE
        if self.attempt == self._retries or not can_pass:
            raise error
        self.attempt += 1
        return max(asked, FIRST_PAUSE * 2.0 ** (self.attempt - 1)) * random.uniform(1.0, 1.2)


def read(response: httpx.Response, kind: type[T]) -> T:
    """A response's JSON.

    Raises:
        BadAnswer
    """
    try:
        return msgspec.json.decode(response.content, type=kind)
    except msgspec.DecodeError as error:
        raise BadAnswer(f"the answer cannot be read: {error}") from None


def submit(recipe: Draft | str, fields: dict[str, Any], key: str | None, retries: int) -> Flow[WireJob]:
    """Submits a job; its key lets it be asked for again without being painted twice."""
    headers = {"content-type": "application/json", "idempotency-key": key or uuid.uuid4().hex}
    response = yield from ask(Ask("POST", "/v1/jobs", _body(recipe, fields), headers), retries)
    return read(response, WireJob)


def job(job_id: str, retries: int) -> Flow[WireJob]:
    """A job as it stands."""
    return read((yield from ask(Ask("GET", job_path(job_id)), retries)), WireJob)


def cancel(job_id: str, retries: int) -> Flow[bool]:
    """Calls a job off."""
    response = yield from ask(Ask("DELETE", job_path(job_id)), retries)
    return read(response, Cancellation).cancelled


def result(job_id: str, index: int, retries: int) -> Flow[Picture]:
    """A picture of a job."""
    request = Ask("GET", f"{job_path(job_id)}/result", params={"index": str(index)})
    response = yield from ask(request, retries)
    if response.status_code == 202:
        raise Unfinished("the job has no picture yet")
    try:
        seed, metadata = int(response.headers["x-seed"]), json.loads(response.headers["x-generation-metadata"])
    except (KeyError, ValueError):
        raise BadAnswer("the answer is no picture of a Daguerre server") from None
    return Picture(response.content, response.headers.get("content-type", ""), seed, metadata)


def painting(done: WireJob, retries: int) -> Flow[Painting]:
    """All pictures of a job that has succeeded."""
    pictures = []
    for index in range(len(done.images)):
        pictures.append((yield from result(done.id, index, retries)))  # noqa: PERF401 - a comprehension cannot yield
    return Painting(done, tuple(pictures))


def models(retries: int) -> Flow[list[WireModel]]:
    """The models of the catalogue."""
    return read((yield from ask(Ask("GET", "/v1/models"), retries)), ModelList).data


def loras(retries: int) -> Flow[list[WireLora]]:
    """The LoRAs that can be used."""
    return read((yield from ask(Ask("GET", "/v1/loras"), retries)), LoraList).data


def outcome(event: Event) -> WireJob | None:
    """The job, if this event says that it has succeeded.

    Raises:
        JobFailed, JobCancelled: it says that it has ended otherwise.
    """
    match event:
        case Completed(job=done):
            return done
        case Failed(id=job_id, error=why):
            raise JobFailed(job_id, why)
        case Cancelled(id=job_id, error=why):
            raise JobCancelled(job_id, why)
    return None


def job_path(job_id: str) -> str:
    """Where a job is asked for."""
    return f"/v1/jobs/{quote(job_id, safe='')}"


def _body(recipe: Draft | str, fields: dict[str, Any]) -> bytes:
    """A recipe as JSON; files given by their paths, or as bytes, become base64."""
    named = {"prompt": recipe} if isinstance(recipe, str) else msgspec.to_builtins(recipe)
    told = {name: _plain(value) for name, value in {**named, **fields}.items() if value is not None}
    return msgspec.json.encode(told)


def _plain(value: Any) -> Any:
    data = value.read_bytes() if isinstance(value, Path) else value
    return base64.b64encode(data).decode() if isinstance(data, bytes) else data
