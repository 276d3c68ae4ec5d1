"""Owns what the routes of painting share: what comes in read, a job waited for, and what goes out of it."""

import asyncio
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import msgspec
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import Response

from daguerre.errors import FieldError, Forbidden, InvalidRecipe, JobCancelled, MalformedBody, RouteNotFound
from daguerre.http import wire
from daguerre.http.state import State
from daguerre.job import Image, Job
from daguerre.jobs.inputs import Inputs, read
from daguerre.jobs.retries import digest
from daguerre.principal import Principal
from daguerre.recipe import Draft
from daguerre.store.jobs import Key

#: Bodies above this are parsed off the event loop.
LARGE_BODY = 64 * 1024

#: How often OpenAI's client has asked before.
TRIES = "x-stainless-retry-count"

#: The header that says ``high`` for a job that is to go before others.
PRIORITY = "daguerre-priority"

_KEY = re.compile(r"[\x21-\x7e]{1,255}")


def client_of(connection: HTTPConnection[State]) -> str:
    """The name under which the jobs of whoever asks are kept."""
    return principal_of(connection).client


def principal_of(connection: HTTPConnection[State]) -> Principal:
    """Who asks."""
    principal: Principal = connection.scope["principal"]
    return principal


def is_urgent(connection: HTTPConnection[State]) -> bool:
    """Whether the job is to go before others.

    Raises:
        Forbidden: these credentials do not allow it.
    """
    if connection.headers.get(PRIORITY, "").strip().lower() != "high":
        return False
    if "priority" not in principal_of(connection).scopes:
        raise Forbidden("these credentials do not let jobs go before others", ("priority",))
    return True


async def expect(connection: HTTPConnection[State]) -> Job:
    """The job that the path names. One of somebody else is answered as if there were none.

    Raises:
        JobNotFound, ResultExpired
    """
    owner = principal_of(connection).owner
    return await connection.state["service"].expect(connection.path_params["id"], owner)


def picture_at(request: Request[State], job: Job) -> Image:
    """The picture of a job that has some which ``?index=`` names.

    Raises:
        InvalidRecipe, RouteNotFound
    """
    text = request.query_params.get("index", "0")
    if not (text.isascii() and text.isdigit() and len(text) < 6):
        raise InvalidRecipe([FieldError("index", f"must be a whole number from 0 to {len(job.images) - 1}")])
    if int(text) >= len(job.images):
        raise RouteNotFound(f"the job has no picture {int(text)}; the last is {len(job.images) - 1}")
    return job.images[int(text)]


async def read_draft(request: Request[State]) -> Draft:
    """The recipe in a request's body."""
    body = await request.body()
    content_type = request.headers.get("content-type", "")
    if len(body) <= LARGE_BODY:
        return wire.read_draft(content_type, body)
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(request.state["codec"], wire.read_draft, content_type, body)


async def read_inputs(connection: HTTPConnection[State], draft: Draft) -> Inputs | None:
    """The pictures that the recipe starts from."""
    if not draft.has_pictures:
        return None
    return await asyncio.get_running_loop().run_in_executor(connection.state["codec"], read, draft)


async def submit_detached(request: Request[State], draft: Draft, inputs: Inputs | None) -> Job:
    """Accepts a job that nobody waits for on a connection; when this returns, it is durable."""
    client = client_of(request)
    key = _key(request, client, await request.body())
    urgent = is_urgent(request)
    return await request.state["service"].submit(draft, inputs, client, key, is_attached=False, is_urgent=urgent)


def _key(request: Request[State], client: str, body: bytes) -> Key | None:
    """The client's Idempotency-Key, if it sent one; the digest is of the body that it came with."""
    name = request.headers.get("idempotency-key")
    if name is None:
        return None
    if not _KEY.fullmatch(name):
        raise MalformedBody("Idempotency-Key must be 1 to 255 printable ASCII characters")
    return Key(client, name, hashlib.sha256(body).hexdigest())


async def submit_again(request: Request[State], draft: Draft, inputs: Inputs | None) -> Job:
    """Accepts a job of a client that waits for it, or gives the job that it has if it says that it asks again."""
    client, service, retries = client_of(request), request.state["service"], request.state["retries"]
    tries, urgent = request.headers.get(TRIES), is_urgent(request)
    if tries is None:
        return await service.submit(draft, inputs, client, is_urgent=urgent)
    asked = await asyncio.get_running_loop().run_in_executor(request.state["codec"], digest, client, draft, inputs)
    job = retries.find(asked) if tries != "0" else None
    job = job or await service.submit(draft, inputs, client, is_urgent=urgent)
    retries.remember(asked, job)
    return job


async def paint(request: Request[State], job: Job) -> Job:
    """Waits for the job; a client that goes away meanwhile cancels it, unless it can be expected to ask again."""
    retries = request.state["retries"]
    retries.came(job)
    waiting = asyncio.ensure_future(request.state["service"].wait(job.id))
    leaving = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((waiting, leaving), return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            return waiting.result()
        raise JobCancelled("the client went away")
    finally:
        retries.left(job)
        for task in (waiting, leaving):
            task.cancel()
        await asyncio.gather(waiting, leaving, return_exceptions=True)


async def _gone(request: Request[State]) -> None:
    """Returns when the client has closed the connection. The body has been read, so nothing else can come."""
    try:
        while (await request.receive())["type"] != "http.disconnect":
            pass
    except ClientDisconnect:
        pass


async def read_pictures(connection: HTTPConnection[State], job: Job) -> list[bytes]:
    """The files of a job that has succeeded."""
    paths = [connection.state["files"].find(image.filename) for image in job.images]
    found = [path for path in paths if path is not None]
    return await asyncio.get_running_loop().run_in_executor(connection.state["codec"], _read, found)


def _read(paths: list[Path]) -> list[bytes]:
    return [path.read_bytes() for path in paths]


def as_json(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """The answer that is this value now, and may be another one the next time."""
    fresh = {"cache-control": "no-store", **(headers or {})}
    return Response(msgspec.json.encode(value), status, fresh, "application/json")


def accepted(job: Job, request: Request[State], headers: dict[str, str] | None = None) -> Response:
    """202: where the job can be asked for."""
    return job_json(request, job, 202, {"location": f"/v1/jobs/{job.id}", **(headers or {})})


def job_json(request: Request[State], job: Job, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """The answer that is a job."""
    place = None if job.status.is_final else request.state["service"].place(job)
    return as_json(wire.wire_job(job, [], place), status, {"x-job-id": job.id, **(headers or {})})
