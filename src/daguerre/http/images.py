"""Owns the routes of finished pictures: files by the names that the server gave out, and their thumbnails."""

import asyncio
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response

from daguerre.errors import RouteNotFound
from daguerre.http.exchange import principal_of
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
    path = await find_own(request, request.path_params["filename"])
    kind = _MEDIA_TYPES[path.suffix]
    return FileResponse(path, media_type=kind, filename=path.name, content_disposition_type="inline")


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


def _nothing() -> RouteNotFound:
    return RouteNotFound("there is no picture of that name")
