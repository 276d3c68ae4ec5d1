"""Owns the streams: a job followed as it happens, over a WebSocket or as server-sent events."""

import asyncio
import base64
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from daguerre.answers import Accepted, Cancelled, Completed, Event, Failed, Progressed, Queued, Started, Told
from daguerre.errors import DaguerreError, FieldError, InvalidRecipe, MalformedBody
from daguerre.http import wire
from daguerre.http.credentials import SUBPROTOCOL
from daguerre.http.exchange import LARGE_BODY, client_of, expect, is_urgent, read_inputs, read_pictures
from daguerre.http.state import State
from daguerre.job import Job, Status
from daguerre.jobs.hub import News
from daguerre.recipe import Draft, parse

#: Seconds without news after which a sign of life is sent to whoever follows by server-sent events.
QUIET = 15.0
#: Close codes of WebSockets (RFC 6455 and IANA's registry): all is said; what came was wrong; the server restarts.
NORMAL, POLICY, RESTART = 1000, 1008, 1012

#: What a recipe frame may say beside its recipe.
FRAME_FIELDS = ("binary", "detach")


async def paint(socket: WebSocket[State]) -> None:
    """``WS /stream/generate/txt2img``, ``/v1/stream``: the first frame is a recipe; then what becomes of it.

    ``binary`` has the picture in a frame of its own; with ``detach`` the job goes on when the socket is closed.
    """
    await _accept(socket)
    try:
        job, is_binary, is_detached = await _begin(socket)
    except DaguerreError as error:
        await _send(socket, Failed(None, _told(error)))
        await socket.close(POLICY)
        return
    except (WebSocketDisconnect, TimeoutError):
        return
    try:
        await _follow(socket, job, is_binary=is_binary)
    finally:
        if not is_detached:
            socket.state["service"].cancel(job.id)  # of a finished job this is nothing


async def follow(socket: WebSocket[State]) -> None:
    """``WS /v1/jobs/{id}/events``: a job that exists, from its present state on. Closing the socket changes nothing."""
    await _accept(socket)
    try:
        job = await expect(socket)
    except DaguerreError as error:
        await _send(socket, Failed(None, _told(error)))
        await socket.close(POLICY)
        return
    await _follow(socket, job, is_binary=False)


async def _accept(socket: WebSocket[State]) -> None:
    """Opens the socket; a browser that offers subprotocols is content with none but one of them."""
    await socket.accept(SUBPROTOCOL if SUBPROTOCOL in socket.scope["subprotocols"] else None)


async def _begin(socket: WebSocket[State]) -> tuple[Job, bool, bool]:
    """Submits the recipe in the first frame."""
    async with asyncio.timeout(socket.state["settings"].receive_timeout):
        message = await socket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect
    text = message.get("text")
    if text is None:
        raise MalformedBody("the first frame must be text: the recipe as JSON")
    codec, loop = socket.state["codec"], asyncio.get_running_loop()
    body = text.encode("utf-8", "surrogatepass")
    is_small = len(body) <= LARGE_BODY
    fields = wire.parse_object(body) if is_small else await loop.run_in_executor(codec, wire.parse_object, body)
    flags = _flags(fields)
    draft: Draft = parse(fields)
    inputs = await read_inputs(socket, draft)
    is_detached = flags["detach"]
    job = await socket.state["service"].submit(
        draft, inputs, client_of(socket), is_attached=not is_detached, is_urgent=is_urgent(socket)
    )
    await _send(socket, Accepted(wire.wire_job(job, [], socket.state["service"].place(job))))
    return job, flags["binary"], is_detached


def _flags(fields: dict[str, Any]) -> dict[str, bool]:
    """What stands beside the recipe, taken out of the frame.

    Raises:
        InvalidRecipe
    """
    flags = {name: fields.pop(name, None) for name in FRAME_FIELDS}
    wrong = [name for name, flag in flags.items() if not isinstance(flag, bool | None)]
    if wrong:
        raise InvalidRecipe([FieldError(name, "must be true or false") for name in wrong])
    return {name: flag is True for name, flag in flags.items()}


async def _follow(socket: WebSocket[State], job: Job, *, is_binary: bool) -> None:
    """Tells a job's states until the last one is told, the client has gone, or takes too long to read."""
    telling = asyncio.ensure_future(_tell(socket, job, is_binary=is_binary))
    listening = asyncio.ensure_future(_listen(socket, job))
    try:
        await asyncio.wait((telling, listening), return_when=asyncio.FIRST_COMPLETED)
        if telling.done() and telling.exception() is None:
            await socket.close(NORMAL if telling.result() else RESTART)
    except (RuntimeError, WebSocketDisconnect):
        pass  # closed from the other side meanwhile
    finally:
        for task in (telling, listening):
            task.cancel()
        await asyncio.gather(telling, listening, return_exceptions=True)


async def _tell(socket: WebSocket[State], job: Job, *, is_binary: bool) -> bool:
    """Whether the last state was told, and not left to another process."""
    service = socket.state["service"]
    shown: bytes | None = None
    is_final = False
    async with service.follow(service.find(job.id) or job) as states:
        async for news in from_start(states):
            is_final = news.job.status.is_final
            if news.job.status is Status.SUCCEEDED:
                await _complete(socket, news, is_binary=is_binary)
            else:
                await socket.send_text(await _text(socket, news, shown))
                shown = news.preview
    return is_final


async def from_start(states: AsyncGenerator[News, None]) -> AsyncGenerator[News, None]:
    """The same states; a job that waited is told to have started although its first steps came at once."""
    was_waiting = False
    async for news in states:
        if was_waiting and news.job.status in (Status.RUNNING, Status.SUCCEEDED) and news.job.step:
            yield News(msgspec.structs.replace(news.job, status=Status.RUNNING, step=0))
        was_waiting = news.job.status is Status.QUEUED
        yield news


async def _complete(socket: WebSocket[State], news: News, *, is_binary: bool) -> None:
    pictures = await news.once("pictures", lambda: read_pictures(socket, news.job))
    if not is_binary:
        await socket.send_text(await news.once("completed", lambda: _completed(socket, news.job, pictures)))
        return
    await socket.send_text(await _text(socket, news, None))
    for picture in pictures:
        await socket.send_bytes(picture)


async def _completed(socket: WebSocket[State], job: Job, pictures: list[bytes]) -> str:
    """The last frame with its pictures, which takes too long for the loop."""

    def made() -> str:
        encoded = [base64.b64encode(picture).decode() for picture in pictures]
        event = Completed(job.id, wire.wire_job(job, []), encoded[0] if encoded else None, encoded)
        return msgspec.json.encode(event).decode()

    return await asyncio.get_running_loop().run_in_executor(socket.state["codec"], made)


async def _listen(socket: WebSocket[State], job: Job) -> None:
    """Returns when the client has gone; a frame may call the job off."""
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            return
        try:
            frame = msgspec.json.decode((message.get("text") or "").encode("utf-8", "replace"), type=_Frame)
        except (msgspec.DecodeError, RecursionError):
            continue  # whatever it is, the job has nothing to do with it
        if frame.type == "cancel":
            socket.state["service"].cancel(job.id)


class _Frame(msgspec.Struct, frozen=True):
    """What a client may say after its first frame."""

    type: str


async def _send(socket: WebSocket[State], event: Event) -> None:
    """One message to one client alone."""
    await socket.send_text(msgspec.json.encode(event).decode())


async def _text(connection: "Request[State] | WebSocket[State]", news: News, shown: bytes | None) -> str:
    """News as JSON, made once for all who follow; with the preview for those who have not been shown it."""
    preview = None if news.preview is shown else news.preview

    async def made() -> str:
        return msgspec.json.encode(_event(connection, news.job, preview)).decode()

    return await news.once(("text", preview is not None), made)


def _kind(job: Job) -> str:
    """What an event that tells this state is called."""
    if job.status is Status.RUNNING:
        return "progress" if job.step else "started"
    return {Status.SUCCEEDED: "completed"}.get(job.status, job.status.value)


def _event(connection: "Request[State] | WebSocket[State]", job: Job, preview: bytes | None) -> Event:
    """A job's state as an event."""
    place = connection.state["service"].place
    match _kind(job):
        case "queued":
            position, eta = place(job)
            return Queued(job.id, position, round(eta, 1))
        case "started":
            return Started(job.id)
        case "progress":
            image = None if preview is None else base64.b64encode(preview).decode()
            return Progressed(job.id, job.step, job.steps, job.step / job.steps, round(place(job).eta, 1), image)
        case "completed":
            return Completed(job.id, wire.wire_job(job, []))
        case "cancelled":
            return Cancelled(job.id, _why(job))
        case _:
            return Failed(job.id, _why(job))


def _why(job: Job) -> Told:
    assert job.error is not None, job.status
    return Told(job.error.code, job.error.message)


def _told(error: DaguerreError) -> Told:
    errors = tuple(error.errors) if isinstance(error, InvalidRecipe) else ()
    return Told(error.code, error.message, errors)


async def events(request: Request[State]) -> Response:
    """``GET /v1/jobs/{id}/events``: the same as server-sent events, the pictures by their addresses.

    An event's id says how far the job was, so a client that comes back with ``Last-Event-ID`` is not told twice.
    """
    job = await expect(request)
    return StreamingResponse(
        _lines(request, job), media_type="text/event-stream", headers={"cache-control": "no-store", "x-job-id": job.id}
    )


async def _lines(request: Request[State], job: Job) -> AsyncIterator[bytes]:
    last = request.headers.get("last-event-id", request.query_params.get("since"))
    shown: bytes | None = None
    async with request.state["service"].follow(job) as states:
        coming = from_start(states)
        following = asyncio.ensure_future(anext(coming, None))
        try:
            while True:
                done, _ = await asyncio.wait((following,), timeout=QUIET)
                if not done:
                    yield b": still here\n\n"
                    continue
                news = following.result()
                if news is None:
                    return
                state = news.job
                name = f"{state.status.value}-{state.attempts}-{state.step}"
                if name != last:
                    data = await _text(request, news, shown)
                    shown = news.preview
                    yield f"id: {name}\nevent: {_kind(state)}\ndata: {data}\n\n".encode()
                following = asyncio.ensure_future(anext(coming, None))
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)


ROUTES: list[BaseRoute] = [
    WebSocketRoute("/stream/generate/txt2img", paint),
    *(
        route
        for root in ("/v1", "/api/v1")
        for route in (
            WebSocketRoute(f"{root}/stream", paint),
            WebSocketRoute(f"{root}/jobs/{{id}}/events", follow),
            Route(f"{root}/jobs/{{id}}/events", events),
        )
    ),
]
