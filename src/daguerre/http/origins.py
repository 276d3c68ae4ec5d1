"""Owns origins: which web pages may use this server from a browser."""

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from daguerre.errors import OriginNotAllowed
from daguerre.http import problems

#: Methods that change nothing, so that it does not matter whose page sends them.
SAFE = ("GET", "HEAD", "OPTIONS")

#: What pages of other origins may send, and what they may read.
SENT = ("authorization", "x-api-key", "idempotency-key", "prefer", "daguerre-priority", "last-event-id", "x-request-id")
READ = (
    "x-request-id",
    "x-job-id",
    "x-seed",
    "x-generation-metadata",
    "server-timing",
    "location",
    "preference-applied",
    "retry-after",
    "ratelimit",
    "ratelimit-policy",
)


def cross_origin(allowed: tuple[str, ...]) -> list[Middleware]:
    """The layer that lets pages of these origins read answers (CORS); none if there are no such origins.

    Cookies are never used, so credentials are what the page itself sends.
    """
    if not allowed:
        return []
    methods = ("GET", "POST", "DELETE")
    layer = Middleware(
        CORSMiddleware, allow_origins=allowed, allow_methods=methods, allow_headers=SENT, expose_headers=READ
    )
    return [layer]


class OriginCheck:
    """Refuses what pages of other sites send: browsers let any page post forms, and open sockets, to anywhere.

    A client that is no browser sends no Origin, and is not concerned. ``null`` is no origin of ours.
    """

    def __init__(self, app: ASGIApp, allowed: tuple[str, ...]) -> None:
        self._app = app
        self._allowed = frozenset(allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection."""
        if scope["type"] not in ("http", "websocket") or scope.get("method") in SAFE or self._is_ours(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await problems.deny(send, problems.answer(OriginNotAllowed(), scope["request_id"]))
        else:
            await problems.answer(OriginNotAllowed(), scope["request_id"])(scope, receive, send)

    def _is_ours(self, scope: Scope) -> bool:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        origin = headers.get(b"origin")
        if origin is None or "*" in self._allowed or origin.decode("latin-1") in self._allowed:
            return True
        return origin.split(b"://")[-1] == headers.get(b"host")
