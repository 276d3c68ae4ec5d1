"""Owns the gate: what every request passes before its route, as plain ASGI layers for HTTP and WebSocket alike."""

import ipaddress
import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from daguerre.errors import BodyTooLarge, HostNotAllowed, MalformedBody
from daguerre.http import problems
from daguerre.job import new_id
from daguerre.telemetry.request import request_id

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")

#: For pictures and JSON: nothing in such an answer may run in a browser. A page has a policy of its own.
SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'; sandbox"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
]


class RequestId:
    """Names every request, by the client's own X-Request-Id if it is fit to be logged, and adds the fixed headers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"")
        name = given if _REQUEST_ID.fullmatch(given) else new_id().encode()
        scope["request_id"] = name.decode()
        request_id.set(name.decode())

        async def send_named(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                given = list(message.get("headers", ()))
                own = {header for header, _ in given}
                fixed = [header for header in SECURITY_HEADERS if header[0] not in own]
                message["headers"] = [*given, (b"x-request-id", name), *fixed]
            elif message["type"] == "websocket.accept":
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", name)]
            await send(message)

        await self._app(scope, receive, send_named)


class HostCheck:
    """Answers only to host names that are this server's, so that no web page can rebind a name of its own to it.

    Addresses are always its own: a browser cannot be made to send one that it did not connect to.
    """

    def __init__(self, app: ASGIApp, allowed: tuple[str, ...]) -> None:
        self._app = app
        self._allowed = frozenset(name.lower() for name in allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection."""
        if scope["type"] not in ("http", "websocket") or self._is_allowed(dict(scope["headers"]).get(b"host")):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await problems.deny(send, problems.answer(HostNotAllowed(), scope["request_id"]))
        else:
            await problems.answer(HostNotAllowed(), scope["request_id"])(scope, receive, send)

    def _is_allowed(self, host: bytes | None) -> bool:
        if "*" in self._allowed or host is None:  # HTTP/1.0 names none
            return True
        name = re.sub(r":\d*$", "", host.decode("latin-1")).strip("[]").lower()
        if name in self._allowed:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


class Framing:
    """Lets nothing hide behind a body: where its end can be read in two ways, what follows may be meant as a request.

    A length beside chunks is refused, and after chunks the connection is closed (RFC 9112, 6.1 and 11.2).
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection."""
        names = {name for name, _ in scope["headers"]} if scope["type"] == "http" else set()
        if b"transfer-encoding" not in names:
            await self._app(scope, receive, send)
            return

        async def send_last(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        if b"content-length" in names:
            error = MalformedBody("a body is either chunked or has a length")
            await problems.answer(error, scope["request_id"])(scope, receive, send_last)
        else:
            await self._app(scope, receive, send_last)


class BodyLimit:
    """Refuses bodies over the limit before anything is parsed; what is over it is read and thrown away, never kept.

    Starlette's own middleware answers without hearing the client out: many a client then meets a reset connection
    instead of the answer.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        # h11 has checked that the length is a number.
        announced = int(headers.get(b"content-length", b"0"))
        # A client that asks before it sends need not send at all.
        asks_first = headers.get(b"expect", b"").lower() == b"100-continue"
        received = 0

        async def receive_counted() -> Message:
            nonlocal received
            if announced > self._limit and asks_first:
                raise self._too_large()
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if max(received, announced) > self._limit:
                    if message.get("more_body"):
                        await discard(receive)
                    raise self._too_large()
            return message

        await self._app(scope, receive_counted, send)

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"the body is larger than {self._limit} bytes")


async def discard(receive: Receive) -> None:
    """Reads a body to its end; the receive deadline bounds how long that can take."""
    while (message := await receive())["type"] == "http.request" and message.get("more_body"):
        pass
