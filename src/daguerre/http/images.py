"""Owns the routes of finished pictures: files by the names that the server gave out, and their thumbnails."""

import asyncio
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response

from daguerre.errors import RouteNotFound
from daguerre.http.state import State
from daguerre.imaging import media_type
from daguerre.jobs import pictures
from daguerre.store.files import EXTENSIONS

_MEDIA_TYPES = {f".{extension}": media_type(name) for name, extension in EXTENSIONS.items()}


async def output(request: Request[State]) -> Response:
    """``GET /outputs/{filename}``: a picture; anything but a name that the server gave out is 404."""
    path = _picture(request)
    return FileResponse(path, media_type=_MEDIA_TYPES[path.suffix])


async def thumbnail(request: Request[State]) -> Response:
    """``GET /outputs/{filename}/thumbnail``: the same picture small, as WebP."""
    name = _picture(request).name
    made = asyncio.get_running_loop().run_in_executor(
        request.state["codec"], pictures.thumbnail, request.state["files"], name
    )
    data = await made
    if data is None:
        raise _nothing()
    return Response(data, media_type=media_type("webp"))


def _picture(request: Request[State]) -> Path:
    """The file of the picture that a request names; whoever may have it may have its thumbnail.

    Raises:
        RouteNotFound: there is none.
    """
    path = request.state["files"].find(request.path_params["filename"])
    if path is None or path.suffix not in _MEDIA_TYPES:
        raise _nothing()
    return path


def _nothing() -> RouteNotFound:
    return RouteNotFound("there is no picture of that name")
