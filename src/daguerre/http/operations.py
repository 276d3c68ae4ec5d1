"""Owns the routes by which a server is run: alive, ready, healthy."""

import resource
import sys

from starlette.requests import Request
from starlette.responses import Response

from daguerre.answers import Alive, Health, Memory, QueueLoad
from daguerre.errors import DaguerreError, NotReady
from daguerre.http.exchange import as_json
from daguerre.http.state import State
from daguerre.version import __version__


async def ping(_request: Request[State]) -> Response:
    """``GET /ping``."""
    return as_json(Alive("ok"))


async def livez(_request: Request[State]) -> Response:
    """``GET /livez``: the event loop turns."""
    return as_json(Alive("ok"))


async def readyz(request: Request[State]) -> Response:
    """``GET /readyz``: a picture asked for now would be painted."""
    error = unready(request.state)
    if error is not None:
        raise error
    return as_json(Alive("ready"))


async def health(request: Request[State]) -> Response:
    """``GET /health``: what a person wants to know; always 200, ``status`` tells."""
    state = request.state
    error = unready(state)
    engine, service = state["dispatch"].state, state["service"]
    return as_json(
        Health(
            status="ok" if error is None else error.code,
            detail="" if error is None else error.message,
            version=__version__,
            model=state["settings"].default_model,
            device=engine.ready.device if engine.ready else None,
            dtype=engine.ready.dtype if engine.ready else None,
            memory=Memory(_peak_memory()),
            queue=QueueLoad(service.waiting, service.running, service.limits.queue),
        )
    )


def unready(state: State) -> DaguerreError | None:
    """Why the server cannot paint now, if it cannot."""
    refusal = state["service"].refusal
    engine = state["dispatch"].state
    if refusal is not None:
        return refusal
    if engine.error is not None:
        return NotReady(engine.error.message)
    if engine.ready is None:
        return NotReady(f"loading: {engine.stage}")
    return None


def _peak_memory() -> int:
    """The most memory that this process has held, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
