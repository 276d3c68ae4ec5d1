"""Owns the routes of finished pictures: files by the names that the server gave out."""

from starlette.requests import Request
from starlette.responses import FileResponse, Response

from daguerre.errors import RouteNotFound
from daguerre.http.state import State
from daguerre.imaging import media_type
from daguerre.store.files import EXTENSIONS

_MEDIA_TYPES = {f".{extension}": media_type(name) for name, extension in EXTENSIONS.items()}


async def output(request: Request[State]) -> Response:
    """``GET /outputs/{filename}``: a picture; anything but a name that the server gave out is 404."""
    path = request.state["files"].find(request.path_params["filename"])
    if path is None:
        raise RouteNotFound("there is no picture of that name")
    return FileResponse(path, media_type=_MEDIA_TYPES[path.suffix])
