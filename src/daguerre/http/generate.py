"""Owns the synchronous routes: a recipe comes in, the picture goes out. It is submit followed by wait, nothing else."""

import asyncio
from pathlib import Path

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from daguerre.errors import FieldError, InvalidRecipe, JobCancelled
from daguerre.http import wire
from daguerre.http.state import State
from daguerre.imaging import media_type
from daguerre.job import Job
from daguerre.jobs.inputs import read
from daguerre.recipe import Draft, Mode

#: Bodies above this are parsed off the event loop.
LARGE_BODY = 64 * 1024


async def generate(request: Request[State]) -> Response:
    """``POST /generate``: paints what the recipe's images make of it: from text, from an image, or into one."""
    return await _generate(request, None)


async def txt2img(request: Request[State]) -> Response:
    """``POST /v1/txt2img``: paints from text alone."""
    return await _generate(request, "txt2img")


async def img2img(request: Request[State]) -> Response:
    """``POST /v1/img2img``: paints from an image."""
    return await _generate(request, "img2img")


async def inpaint(request: Request[State]) -> Response:
    """``POST /v1/inpaint``: paints a part of an image anew."""
    return await _generate(request, "inpaint")


async def _generate(request: Request[State], mode: Mode | None) -> Response:
    body = await request.body()
    loop = asyncio.get_running_loop()
    codec = request.state["codec"]
    content_type = request.headers.get("content-type", "")
    if len(body) > LARGE_BODY:
        draft = await loop.run_in_executor(codec, wire.read_draft, content_type, body)
    else:
        draft = wire.read_draft(content_type, body)
    _check_mode(draft, mode)
    accepted = wire.negotiate(request.headers.get("accept", ""), draft)
    if accepted.format is not None:
        draft = msgspec.structs.replace(draft, format=accepted.format)
    inputs = None if draft.image is None else await loop.run_in_executor(codec, read, draft)
    job = await paint(request, request.state["service"].submit(draft, inputs, client_of(request)))
    pictures = await read_pictures(request, job)
    headers = wire.generation_headers(job)
    if accepted.is_json:
        del headers["content-disposition"]
        encoded = await loop.run_in_executor(codec, msgspec.json.encode, wire.wire_job(job, pictures))
        return Response(encoded, headers=headers, media_type="application/json")
    return Response(pictures[0], headers=headers, media_type=media_type(job.recipe.format))


def _check_mode(draft: Draft, mode: Mode | None) -> None:
    """A route that names a mode insists on it."""
    if mode is None or draft.mode == mode:
        return
    needed = {"txt2img": (), "img2img": ("image",), "inpaint": ("image", "mask")}[mode]
    fields = [name for name in ("image", "mask") if (getattr(draft, name) is None) == (name in needed)]
    verb = {True: "is needed by", False: "is not for"}
    raise InvalidRecipe([FieldError(name, f"{verb[name in needed]} {mode}") for name in fields])


def client_of(request: Request[State]) -> str:
    """Who asks: as long as nobody has to say a name, the address."""
    return request.client.host if request.client is not None else ""


async def read_pictures(request: Request[State], job: Job) -> list[bytes]:
    """The files of a job that has succeeded."""
    paths = [request.state["files"].find(image.filename) for image in job.images]
    found = [path for path in paths if path is not None]
    return await asyncio.get_running_loop().run_in_executor(request.state["codec"], _read, found)


def _read(paths: list[Path]) -> list[bytes]:
    return [path.read_bytes() for path in paths]


async def paint(request: Request[State], job: Job) -> Job:
    """Waits for the job; a client that goes away meanwhile cancels it."""
    service = request.state["service"]
    waiting = asyncio.ensure_future(service.wait(job.id))
    leaving = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((waiting, leaving), return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            return waiting.result()
        raise JobCancelled("the client went away")
    finally:
        service.cancel(job.id)  # of a finished job this is nothing
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
