"""Owns access: a layer around each route that lets in who may use it, over HTTP and WebSocket alike.

The check stands behind the router: what is checked is the route that serves, however its path was spelled.
"""

import copy
from collections.abc import Iterable

from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from daguerre.errors import AccessRefused, DaguerreError, Forbidden, Unauthenticated
from daguerre.http import credentials, problems
from daguerre.http.failures import speaker
from daguerre.http.gate import discard
from daguerre.http.origins import SAFE
from daguerre.http.scopes import OPEN, needed
from daguerre.http.state import State
from daguerre.principal import Principal

#: Close code of a WebSocket whose credentials are not, or no longer, good.
POLICY = 1008


def guarded(routes: Iterable[BaseRoute]) -> list[BaseRoute]:
    """The same routes, each behind its check."""
    return [_guarded(route) for route in routes]


def _guarded(route: BaseRoute) -> BaseRoute:
    assert isinstance(route, Route | WebSocketRoute), "only routes whose path is known whole can be checked"
    needs = needed(route.path)
    if needs == OPEN:
        return route
    checked = copy.copy(route)
    checked.app = Access(route.app, route.path, needs or ())
    return checked


class Access:
    """One route with its check: any of the scopes suffices, and where there is none nobody comes through.

    Whoever does is ``scope["principal"]`` from here on.
    """

    def __init__(self, app: ASGIApp, path: str, needs: tuple[str, ...]) -> None:
        self._app = app
        self._path = path
        self._needs = needs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection."""
        try:
            scope["principal"] = principal = await self._admit(scope)
        except DaguerreError as error:
            await _hear_out(scope, receive)
            await self._refuse(error, scope, receive, send)
            return
        if scope["type"] == "websocket":
            await self._app(scope, self._listening(scope, receive, send), send)
        else:
            await self._app(scope, receive, self._sending(scope, send, principal))

    async def _admit(self, scope: Scope) -> Principal:
        """Whoever asks, if that one may.

        Raises:
            AccessRefused, Unavailable
        """
        state: State = scope["state"]
        principal = None
        try:
            if state["authenticator"].is_needed:
                principal = await state["authenticator"].identify(credentials.read(scope))
            else:
                principal = Principal(_address(scope), is_anonymous=True)
            if not principal.scopes.intersection(self._needs):
                raise Forbidden(scopes=self._needs)
        except AccessRefused as error:
            reason = error.reason if isinstance(error, Unauthenticated) else error.code
            state["audit"].refuse(_address(scope), self._path, reason, principal.client if principal else "")
            raise
        return principal

    async def _refuse(self, error: DaguerreError, scope: Scope, receive: Receive, send: Send) -> None:
        response = speaker(self._path)(error, scope.get("request_id", ""))
        response.headers["cache-control"] = "no-store"
        if scope["type"] == "http":
            await response(scope, receive, send)
        else:
            await problems.deny(send, response)

    def _listening(self, scope: Scope, receive: Receive, send: Send) -> Receive:
        """Checks again at each frame: a socket may be open for longer than its credentials are good."""

        async def receive_checked() -> Message:
            message = await receive()
            if message["type"] == "websocket.receive":
                try:
                    await self._admit(scope)
                except DaguerreError:
                    await send({"type": "websocket.close", "code": POLICY})
                    return {"type": "websocket.disconnect", "code": POLICY}
            return message

        return receive_checked

    def _sending(self, scope: Scope, send: Send, principal: Principal) -> Send:
        """Adds what follows from who asked, and notes who changed something."""
        is_change = scope["method"] not in SAFE and "generate" not in self._needs

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *await _about(scope, message, principal)]
                if is_change:
                    audit = scope["state"]["audit"]
                    audit.act(principal.client, _address(scope), scope["method"], self._path, message["status"])
            await send(message)

        return send_on


async def _about(scope: Scope, message: Message, principal: Principal) -> list[tuple[bytes, bytes]]:
    """Headers: that an answer is for one client alone, and how much that one may still ask for."""
    names = {name.lower() for name, _ in message.get("headers", ())}
    added = [] if b"cache-control" in names else [(b"cache-control", b"private")]
    left = await scope["state"]["service"].allowances.left(principal.client)
    if left is not None:
        # draft-ietf-httpapi-ratelimit-headers-10: a quota of so many units in a window; what remains, and until when.
        added.append((b"ratelimit-policy", f'"megapixel-steps";q={left.quota};w={left.window}'.encode()))
        added.append((b"ratelimit", f'"megapixel-steps";r={left.remaining};t={left.seconds}'.encode()))
    return added


async def _hear_out(scope: Scope, receive: Receive) -> None:
    """Reads the body to its end, keeping nothing: many a client meets a reset connection instead of an early answer."""
    asks_first = any(name == b"expect" and value.lower() == b"100-continue" for name, value in scope["headers"])
    if scope["type"] == "http" and not asks_first:
        await discard(receive)


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else ""
