"""Owns naive servers: each makes mistakes that real ones have made, so that the probes have something to find."""

import contextlib
import re
import threading
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import doors
import jwt
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from daguerre.http.routes import ROUTES


async def _answer(_request: Request) -> Response:
    return JSONResponse({"data": []})


async def _socket(socket: WebSocket) -> None:
    await socket.accept()
    await socket.close()


def _routes() -> list[BaseRoute]:
    """Our routes, with nothing behind them."""
    return [
        Route(route.path, _answer, methods=sorted(route.methods or ()))
        if isinstance(route, Route)
        else WebSocketRoute(route.path, _socket)
        for route in ROUTES
        if isinstance(route, Route | WebSocketRoute)
    ]


class ByPrefix(BaseHTTPMiddleware):
    """Guards ``/v1`` alone, by an address that the Host header is part of, and no sockets (vLLM, LiteLLM)."""

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        """Any credentials will do."""
        path = urlsplit(f"http://{request.headers['host']}{request.scope['path']}").path
        if path.startswith("/v1") and not request.headers.get("authorization"):
            return JSONResponse({}, 401)
        return await call_next(request)


class ByRawPath:
    """Guards what looks guarded before it is decoded and its slashes are merged (as behind many a proxy)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection."""
        if scope["type"] == "http":
            if scope["raw_path"].startswith((b"/v1", b"/api/v1")):
                await JSONResponse({}, 401)(scope, receive, send)
                return
            scope["path"] = re.sub("/+", "/", scope["path"])
        await self._app(scope, receive, send)


class Credulous:
    """Guards every route and socket, but looks at credentials as somebody in a hurry does."""

    def __init__(self, app: ASGIApp, keys: dict[str, str]) -> None:
        self._app = app
        self._keys = frozenset(keys.values())  # those that have expired, or were revoked, among them

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection."""
        if scope["type"] == "lifespan" or self._lets_in(dict(scope["headers"]).get(b"authorization", b"").decode()):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await JSONResponse({}, 401)(scope, receive, send)

    def _lets_in(self, header: str) -> bool:
        credential = header.removeprefix("Bearer ")
        if credential in self._keys:
            return True  # whatever its scopes are
        if credential in doors.ACCOUNTS:
            return True  # any account of the Hub
        try:
            jwt.decode(credential, options={"verify_signature": False, "verify_exp": False, "verify_aud": False})
        except jwt.PyJWTError:
            return False
        return True


def by_prefix() -> ASGIApp:
    """A naive server."""
    return Starlette(routes=_routes(), middleware=[Middleware(ByPrefix)])


def by_raw_path() -> ASGIApp:
    """Another."""
    return Starlette(routes=_routes(), middleware=[Middleware(ByRawPath)])


def credulous(keys: dict[str, str]) -> ASGIApp:
    """Another."""
    return Starlette(routes=_routes(), middleware=[Middleware(Credulous, keys=keys)])


@contextlib.contextmanager
def served(app: ASGIApp) -> Iterator[int]:
    """Serves it with uvicorn as it comes; gives its port."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, http="h11", ws="websockets-sansio"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(10)
