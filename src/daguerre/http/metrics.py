"""Owns the routes by which use is measured: the metrics of the server, the totals of a client."""

import asyncio
from datetime import UTC, datetime

import msgspec
from prometheus_client import CONTENT_TYPE_PLAIN_1_0_0
from starlette.requests import Request
from starlette.responses import Response

from daguerre.answers import Totals
from daguerre.http.exchange import as_json, client_of
from daguerre.http.operations import unready
from daguerre.http.state import State


async def metrics(request: Request[State]) -> Response:
    """``GET /metrics``: for Prometheus."""
    state = request.state
    state["watch"].look(is_ready=unready(state) is None)
    # Hundreds of lines: not on the event loop.
    text = await asyncio.get_running_loop().run_in_executor(state["codec"], state["metrics"].text)
    return Response(text, media_type=CONTENT_TYPE_PLAIN_1_0_0, headers={"cache-control": "no-store"})


async def usage(request: Request[State]) -> Response:
    """``GET /v1/usage``: what the caller's pictures have taken so far."""
    client = client_of(request)
    found = msgspec.structs.asdict(await request.state["service"].usage(client))
    since = found.pop("since")
    began = None if since is None else datetime.fromtimestamp(since, UTC).isoformat(timespec="seconds")
    body = Totals(client=client, since=began, **found)
    return as_json(body)
