"""Owns the meter: how many requests each route has answered, and how long that took."""

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from daguerre.telemetry.metrics import METHODS, OTHER, Metrics


class Meter:
    """Counts answers under the route's own pattern: what clients write into a path, or for a method, is no label."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0

        async def send_seen(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "websocket.accept":
                status = 101
            elif message["type"] == "websocket.close":
                status = status or 403  # as uvicorn answers a socket that is not accepted
            await send(message)

        try:
            await self._app(scope, receive, send_seen)
        finally:
            self._count(scope, status, time.perf_counter() - began)

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        method = scope.get("method", "WEBSOCKET")
        route = getattr(scope.get("route"), "path", OTHER)
        labels = (method if method in METHODS else OTHER, route, str(status) if status else OTHER)
        self._metrics.answers.labels(*labels).inc()
        self._metrics.answer_seconds.labels(route).observe(seconds)
