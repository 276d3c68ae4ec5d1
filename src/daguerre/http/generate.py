"""Owns the synchronous routes: a recipe comes in, the picture goes out. It is submit followed by wait, nothing else."""

import asyncio

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from daguerre.errors import FieldError, InvalidRecipe
from daguerre.http import wire
from daguerre.http.exchange import (
    accepted,
    client_of,
    is_urgent,
    paint,
    read_draft,
    read_inputs,
    read_pictures,
    submit_detached,
)
from daguerre.http.state import State
from daguerre.imaging import media_type
from daguerre.recipe import Draft, Mode


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
    loop = asyncio.get_running_loop()
    codec = request.state["codec"]
    draft = await read_draft(request)
    _check_mode(draft, mode)
    is_preferred = _prefers_queue(request)
    if is_preferred or (mode is None and request.state["settings"].generate_default == "queued"):
        job = await submit_detached(request, draft, await read_inputs(request, draft))
        return accepted(job, request, {"preference-applied": "respond-async"} if is_preferred else None)
    form = wire.negotiate(request.headers.get("accept", ""), draft)
    if form.format is not None:
        draft = msgspec.structs.replace(draft, format=form.format)
    inputs = await read_inputs(request, draft)
    urgent = is_urgent(request)
    submitted = await request.state["service"].submit(draft, inputs, client_of(request), is_urgent=urgent)
    job = await paint(request, submitted)
    pictures = await read_pictures(request, job)
    headers = wire.generation_headers(job)
    if form.is_json:
        del headers["content-disposition"]
        encoded = await loop.run_in_executor(codec, msgspec.json.encode, wire.wire_job(job, pictures))
        return Response(encoded, headers=headers, media_type="application/json")
    return Response(pictures[0], headers=headers, media_type=media_type(job.recipe.format))


def _prefers_queue(request: Request[State]) -> bool:
    """``Prefer: respond-async`` (RFC 7240)."""
    preferences = request.headers.get("prefer", "").lower().split(",")
    return any(preference.split(";")[0].strip() == "respond-async" for preference in preferences)


def _check_mode(draft: Draft, mode: Mode | None) -> None:
    """A route that names a mode insists on it."""
    if mode is None or draft.mode == mode:
        return
    needed = {"txt2img": (), "img2img": ("image",), "inpaint": ("image", "mask")}[mode]
    fields = [name for name in ("image", "mask") if (getattr(draft, name) is None) == (name in needed)]
    verb = {True: "is needed by", False: "is not for"}
    raise InvalidRecipe([FieldError(name, f"{verb[name in needed]} {mode}") for name in fields])
