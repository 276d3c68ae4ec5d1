"""Owns the reference: the server that is written first. One lock, the pipeline in a thread, Pillow's PNG, base64."""

import asyncio
import base64
import io
import socket
import sys
import time
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from benchmarks.bare import arguments, load


def make_app(pipe: Any) -> Starlette:
    """``POST /generate`` with the wire's fields, all of them required; gives the picture and its pipeline seconds."""
    lock = asyncio.Lock()

    async def generate(request: Request) -> JSONResponse:
        given = arguments(await request.json())
        async with lock:
            start = time.perf_counter()
            output = await asyncio.to_thread(pipe, **given, output_type="pil")
            pipe_seconds = time.perf_counter() - start
        buffer = io.BytesIO()
        output.images[0].save(buffer, "PNG")
        return JSONResponse({"image": base64.b64encode(buffer.getvalue()).decode(), "pipe_s": pipe_seconds})

    return Starlette(routes=[Route("/generate", generate, methods=["POST"])])


def main() -> None:
    """Loads, then listens on a free port and tells it."""
    app = make_app(load())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}", file=sys.stderr, flush=True)
        uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False)).run([listener])


if __name__ == "__main__":
    main()
