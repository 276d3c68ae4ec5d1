"""Owns the routes of finished pictures: files by the names and ids that the server gave out, and their thumbnails."""

import asyncio
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response

from daguerre.errors import JobNotFound, RouteNotFound
from daguerre.http.exchange import expect, picture_at, principal_of
from daguerre.http.state import State
from daguerre.imaging import media_type
from daguerre.jobs import pictures
from daguerre.store.files import EXTENSIONS, thumbnail_name

_MEDIA_TYPES = {f".{extension}": media_type(name) for name, extension in EXTENSIONS.items()}


async def find_own(request: Request[State], filename: str) -> Path:
    """A picture's file. One of somebody else is answered as if there were none.

    Raises:
        RouteNotFound
    """
    path, owner = request.state["files"].find(filename), principal_of(request).owner
    if path is None or path.suffix not in _MEDIA_TYPES:
        raise _nothing()
    if owner is not None and await request.state["service"].client_of_picture(filename) != owner:
        raise _nothing()
    return path


async def output(request: Request[State]) -> Response:
    """``GET /outputs/{filename}``: a picture; anything but a name that the server gave out is 404."""
    return _file(await find_own(request, request.path_params["filename"]), "inline")


async def download(request: Request[State]) -> Response:
    """``GET /download/{filename}``: the same, which a browser keeps as a file instead of showing it."""
    return _file(await find_own(request, request.path_params["filename"]), "attachment")


async def image_file(request: Request[State]) -> Response:
    """``GET /v1/images/{id}/file``: a picture by its job's id, or by its name; 404 while there is none."""
    try:
        job = await expect(request)
    except JobNotFound:
        return _file(await find_own(request, request.path_params["id"]), "inline")
    if not job.images:
        raise _nothing()
    return _file(await find_own(request, picture_at(request, job).filename), "inline")


async def thumbnail(request: Request[State]) -> Response:
    """``GET /outputs/{filename}/thumbnail``: the same picture small, as WebP; for whoever may have the picture."""
    name = (await find_own(request, request.path_params["filename"])).name
    made = asyncio.get_running_loop().run_in_executor(
        request.state["codec"], pictures.thumbnail, request.state["files"], name
    )
    data = await made
    if data is None:
        raise _nothing()
    headers = {"content-disposition": f'inline; filename="{thumbnail_name(name)}"'}
    return Response(data, headers=headers, media_type=media_type("webp"))


def _file(path: Path, disposition: str) -> Response:
    kind = _MEDIA_TYPES[path.suffix]
    return FileResponse(path, media_type=kind, filename=path.name, content_disposition_type=disposition)


def _nothing() -> RouteNotFound:
    return RouteNotFound("there is no picture of that name")
