"""Owns a naive server that paints: it believes what comes in, as servers of this kind have done."""

import asyncio
import base64
import binascii
import io
import json
import logging
import os
import pickle
import socket
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
from PIL import Image, PngImagePlugin
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp
from starlette.websockets import WebSocket

log = logging.getLogger("naive")


class Count(BaseHTTPMiddleware):
    """A series of metrics for each path that anybody asks for (and disconnects are not seen behind this class)."""

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        """Counts a request."""
        request.app.state.counts[request.method, request.url.path] += 1
        return await call_next(request)


async def generate(request: Request) -> Response:
    """Whatever the content type, the size, the numbers; the picture says all of its making, secrets as well."""
    if "pickle" in request.headers.get("content-type", ""):
        fields = pickle.loads(await request.body())  # noqa: S301 - the mistake
    else:
        fields = await request.json()
    if not isinstance(fields, dict):
        fields = {"prompt": str(fields)}
    picture = await _picture(fields)
    told = PngImagePlugin.PngInfo()
    told.add_text("parameters", str(fields.get("prompt")))
    told.add_text("request", json.dumps({"headers": dict(request.headers), "folder": str(request.app.state.folder)}))
    file = io.BytesIO()
    picture.save(file, "PNG", pnginfo=told)
    if "save_path" in fields:
        await asyncio.to_thread(Path(fields["save_path"]).write_bytes, file.getvalue())
    return Response(file.getvalue(), headers={"x-prompt": str(fields.get("prompt"))}, media_type="image/png")


async def _picture(fields: dict[str, Any]) -> Image.Image:
    """As large as it is asked to be, or of the shape of an upload, of any format, from anywhere."""
    given = fields.get("image")
    if given is None:
        return Image.new("RGB", (fields.get("width", 64), fields.get("height", 64)))
    if given.startswith("http"):
        async with httpx.AsyncClient() as client:
            data = (await client.get(given)).content
    else:
        try:
            data = base64.b64decode(given)
        except binascii.Error:
            data = b""
    image = Image.open(io.BytesIO(data))
    return image.convert("RGB").resize((64, 64 * image.height // image.width))


async def edits(request: Request) -> Response:
    """A form, read in small pieces, with a copy of all so far at each (as in CVE-2024-53981 and its successors)."""
    kind, body = request.headers["content-type"], await request.body()
    boundary = kind.partition("boundary=")[2].encode()
    parts, part = 0, b""
    for place in range(0, len(body), 64):
        part += body[place : place + 64]
        if (b"--" + boundary) in part:
            parts, part = parts + 1, b""
    return JSONResponse({"parts": parts})


async def output(request: Request) -> Response:
    """A file by whatever path is asked for, in pieces by whatever ranges."""
    path = os.path.join(request.app.state.folder, request.path_params["filename"])  # noqa: PTH118 - the mistake
    if "range" not in request.headers:
        return FileResponse(path)
    data, merged = await asyncio.to_thread(Path(path).read_bytes), list[tuple[int, int]]()
    for text in request.headers["range"].removeprefix("bytes=").split(","):
        first, _, last = text.partition("-")
        place = int(first or 0), int(last or len(data))
        merged = [each for each in merged if each != place] + [place]  # in time that grows with the square
    return Response(b"".join(data[begin : end + 1] for begin, end in merged), 206)


async def metrics(request: Request) -> Response:
    """All that was counted."""
    lines = [f'requests_total{{method="{m}",path="{p}"}} {n}' for (m, p), n in request.app.state.counts.items()]
    return PlainTextResponse("\n".join(lines))


async def stream(client: WebSocket) -> None:
    """A socket for everybody, whatever they send."""
    await client.accept()
    await client.send_text(str(len(await client.receive_text())))
    await asyncio.sleep(0)
    await client.close()


def painting(folder: Path) -> ASGIApp:
    """The server, which serves the files of a folder."""
    app = Starlette(
        routes=[
            Route("/generate", generate, methods=["POST"]),
            Route("/v1/images/edits", edits, methods=["POST"]),
            Route("/outputs/{filename:path}", output),
            Route("/metrics", metrics),
            Route("/ping", metrics),
            WebSocketRoute("/v1/stream", stream),
        ],
        middleware=[Middleware(Count)],
    )
    app.state.folder, app.state.counts = folder, Counter()
    return app


class Listener:
    """Counts who connects to it."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/a.png"
        self.met = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.met += 1
            connection.close()

    def close(self) -> None:
        """Ends it."""
        self._socket.close()
