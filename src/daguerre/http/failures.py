"""Owns what is said of errors that reach the application: as problems, or as the dialect of the path tells its own."""

import logging
from collections.abc import Callable

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from daguerre import editions, errors
from daguerre.errors import DaguerreError
from daguerre.http import problems
from daguerre.http.dialects import a1111, openai

log = logging.getLogger(__name__)

#: How the errors of a dialect's routes look, by the beginning of their paths.
SPOKEN = {
    "/sdapi/": a1111.failure,
    **{
        f"{root}/images/{name}": openai.failure
        for root in ("/v1", "/api/v1")
        for name in ("generations", "edits", "variations")
    },
}


def speaker(path: str) -> Callable[[DaguerreError, str], Response]:
    """What tells errors of this path."""
    return next((speak for start, speak in SPOKEN.items() if path.startswith(start)), problems.answer)


async def on_error(request: Request, error: Exception) -> Response:
    """Starlette's handler for everything that a route raises."""
    request_id = request.scope.get("request_id", "")
    if isinstance(error, DaguerreError):
        return problems.answer(error, request_id)
    if isinstance(error, ClientDisconnect):  # nobody reads this; it is no failure of ours either
        return problems.answer(errors.RequestTimeout(), request_id)
    if isinstance(error, HTTPException):
        return _unserved(request, error, request_id)
    if isinstance(error, OSError) and editions.is_exhausted(error):
        log.error("request %s: %s", request_id, error.strerror)
        busy = errors.NotReady("the server has too many files open; try again in a moment")
        return problems.answer(busy, request_id)
    log.error("request %s failed", request_id, exc_info=error)
    return problems.answer(DaguerreError("something went wrong here; the server's log says what"), request_id)


async def unknown(scope: Scope, _receive: Receive, send: Send) -> None:
    """What no route is for, over HTTP and WebSocket alike."""
    if scope["type"] == "http":
        raise HTTPException(404)
    await problems.deny(send, problems.answer(errors.RouteNotFound(), scope["request_id"]))


def _unserved(request: Request, error: HTTPException, request_id: str) -> Response:
    """There is no such route, or it does not take that method: then it is told which it takes."""
    is_known = error.status_code == 405
    refused = errors.MethodNotAllowed() if is_known else errors.RouteNotFound()
    response = speaker(request.scope["path"])(refused, request_id)
    if is_known:
        response.headers["allow"] = ", ".join(sorted(_methods(request)))
    return response


def _methods(request: Request) -> set[str]:
    """Those of all routes of that path, of which the router names the first one's alone."""
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    paths = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    return {method for route in paths for method in route.methods or ()}
