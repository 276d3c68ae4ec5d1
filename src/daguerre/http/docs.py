"""Owns the routes of the document: OpenAPI as JSON, and a page of our own to read it, which needs no other site."""

import functools
from collections.abc import Awaitable, Callable, Sequence
from importlib.resources import files

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from daguerre.errors import RouteNotFound
from daguerre.http.document.assembly import document
from daguerre.http.state import State

#: The files of the page, and the media type of each.
FILES = {
    "docs.html": "text/html",
    "docs.css": "text/css",
    "docs.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
#: What the page may do: run its own script, and ask this server.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def describing(routes: Sequence[BaseRoute]) -> Callable[[Request[State]], Awaitable[Response]]:
    """``GET /openapi.json``: the document of these routes, made when it is first asked for."""

    @functools.cache
    def encoded() -> bytes:
        return msgspec.json.encode(document(routes))

    async def openapi(_request: Request[State]) -> Response:
        return Response(encoded(), media_type="application/json")

    return openapi


async def page(_request: Request[State]) -> Response:
    """``GET /docs``, and ``GET /``: it has a form to paint with."""
    return _file("docs.html")


async def part(request: Request[State]) -> Response:
    """``GET /docs/{filename}``: what the page is made of."""
    return _file(request.path_params["filename"])


def _file(name: str) -> Response:
    if name not in FILES:
        raise RouteNotFound("the page has no such part")
    data = (files("daguerre") / "web" / name).read_bytes()
    return Response(data, headers={"content-security-policy": POLICY}, media_type=FILES[name])


ROUTES: list[BaseRoute] = [Route("/", page), Route("/docs", page), Route("/docs/{filename}", part)]
