"""Owns listening: uvicorn with a deadline for receiving requests, a bound on connections, and a clean way to stop."""

import asyncio
import contextlib
import errno
import logging
import math
import resource
import signal
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Generator
from http import HTTPStatus
from typing import Any, Protocol

import h11
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request

from daguerre.errors import DaguerreError, MalformedRequest, RequestTimeout
from daguerre.http import problems
from daguerre.job import new_id
from daguerre.settings import Settings

log = logging.getLogger(__name__)

#: Seconds in which a client must take something of what waits for it.
STUCK = 8.0
#: Bytes that the system holds for a connection at most.
SEND_BUFFER = 256 * 1024

#: Descriptors that connections leave to everything else: pictures, the database, models.
SPARE = 256
#: Seconds between two lines of the log that say that there are none left.
QUIET = 10.0

#: Seconds in which streams tell their last, once no job is left.
LAST_WORDS = 0.2

_RECEIVED = (h11.DONE, h11.MUST_CLOSE, h11.CLOSED, h11.ERROR, h11.SWITCHED_PROTOCOL)


class Config(uvicorn.Config):
    """uvicorn's configuration with what its protocol lacks."""

    def __init__(self, app: "Application", receive_timeout: float, connection_limit: int, **options: Any) -> None:
        super().__init__(app, http=DeadlineProtocol, **options)
        self.receive_timeout = receive_timeout
        self.connection_limit = connection_limit


class Patience:
    """Sees that a connection's client goes on reading: one that takes nothing for ``STUCK`` seconds is cut off.

    Closing would not do, since that waits for what has not been read. A slow client that does read is left alone.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport) -> None:
        self._loop = loop
        self._transport = transport
        self._looking: asyncio.TimerHandle | None = None
        # The system asks for more when a third of this has been read: with megabytes, slow would look like stuck.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)

    def begin(self) -> None:
        """More waits to be read than the transport likes to hold."""
        self.end()
        self._looking = self._loop.call_later(STUCK, self._look, self._transport.get_write_buffer_size())

    def end(self) -> None:
        """It has been read, or nobody is left to read it."""
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None

    def _look(self, before: int) -> None:
        if self._transport.get_write_buffer_size() < before:
            self.begin()
        else:
            # With a reset: else the system would go on offering what is in its buffers, for minutes, to nobody.
            connection = self._transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()


class StreamProtocol(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol with an end to its patience."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has asked for a WebSocket."""
        super().connection_made(transport)
        self._patience = Patience(self.loop, self.transport)

    def data_received(self, data: bytes) -> None:
        """Ends a handshake that cannot be read, as one with a line above 8 KB; uvicorn would leave it open for ever."""
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.handshake_initiated:
            self._refuse()

    def handle_connect(self, event: Request) -> None:
        """Answers a handshake that is none as every error is answered; uvicorn would, in words of its library."""
        if self.conn.accept(event).status_code == HTTPStatus.SWITCHING_PROTOCOLS:
            super().handle_connect(event)
        else:
            self.handshake_initiated = self.handshake_complete = self.close_sent = True
            self._refuse()

    def _refuse(self) -> None:
        self.transport.write(_answer(MalformedRequest("The handshake of the WebSocket cannot be read.")))
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """A client has gone."""
        self._patience.end()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client reads more slowly than is sent."""
        super().pause_writing()
        self._patience.begin()

    def resume_writing(self) -> None:
        """It has caught up."""
        self._patience.end()
        super().resume_writing()

    def shutdown(self) -> None:
        """The server is about to stop. A stream ends with its job, which may still be finished: see `end`."""
        if not self.handshake_complete:
            super().shutdown()

    def end(self) -> None:
        """Closes a stream that has nothing more to tell (1012: the server restarts)."""
        if not self.transport.is_closing():
            super().shutdown()


class DeadlineProtocol(H11Protocol):
    """uvicorn's HTTP protocol with a deadline: a request that has not arrived whole in time is answered 408.

    The time runs from the connection's first moment, or from the first byte of a later request.
    """

    config: Config
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        self._patience = Patience(self.loop, transport)
        if len(self.connections) > self.config.connection_limit:
            transport.abort()
            return
        self._start()

    def connection_lost(self, exc: Exception | None) -> None:
        """A client has gone."""
        self._stop()
        self._patience.end()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client reads more slowly than is sent."""
        super().pause_writing()
        self._patience.begin()

    def resume_writing(self) -> None:
        """It has caught up."""
        self._patience.end()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        """A client has sent something; the deadline stands until it is a whole request."""
        super().data_received(data)
        has_left = self.transport.get_protocol() is not self  # it has become a WebSocket
        if has_left or self.conn.their_state in _RECEIVED:
            self._stop()
        else:
            self._start()

    def on_response_complete(self) -> None:
        """A request has been answered; from here uvicorn's own keep-alive timer runs."""
        self._stop()
        super().on_response_complete()

    def _start(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(self.config.receive_timeout, self._too_slow)

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        self._deadline = None
        if not self.transport.is_closing():
            self._refuse(RequestTimeout())

    def send_400_response(self, _msg: str) -> None:
        """What came is not HTTP: told as every error is."""
        self._refuse(MalformedRequest())

    def _refuse(self, error: DaguerreError) -> None:
        cycle = self.cycle
        is_answering = cycle is not None and cycle.response_started and not cycle.response_complete
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        if not is_answering:
            self.transport.write(_answer(error))
        self.transport.close()


def _answer(error: DaguerreError) -> bytes:
    """The problem as it goes over the wire, where no application is there yet to send it."""
    request_id = new_id()
    response = problems.answer(error, request_id)
    head = [
        f"HTTP/1.1 {response.status_code} {HTTPStatus(response.status_code).phrase}",
        f"content-type: {problems.CONTENT_TYPE}",
        f"content-length: {len(response.body)}",
        f"x-request-id: {request_id}",
        "connection: close",
    ]
    return "\r\n".join([*head, "", ""]).encode() + bytes(response.body)


class Exhaustion:
    """Tells of connections for which no descriptor is left, but not each time: the loop may find thousands at once.

    They are not lost: the loop tries again every second. Everything else goes to the log as always.
    """

    def __init__(self) -> None:
        self._told_at = -QUIET

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """The loop's exception handler."""
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in (errno.EMFILE, errno.ENFILE):
            loop.default_exception_handler(context)
        elif time.monotonic() - self._told_at > QUIET:
            self._told_at = time.monotonic()
            log.error("connections wait: %s", error.strerror)


class Server(uvicorn.Server):
    """Stops by draining: jobs at hand get their answers, within the grace time, while connections are still open."""

    def __init__(self, config: uvicorn.Config, drain: Callable[[], Awaitable[None]]) -> None:
        super().__init__(config)
        self._drain = drain

    async def startup(self, sockets: list[Any] | None = None) -> None:
        """Opens the port and tells the address."""
        asyncio.get_running_loop().set_exception_handler(Exhaustion())
        await super().startup(sockets)
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        log.info("listening on %s", f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")

    async def shutdown(self, sockets: list[Any] | None = None) -> None:
        """Waits for the jobs, while who asks is still told that the server drains; then closes port and connections."""
        began = time.monotonic()
        await self._drain()
        for server in self.servers:
            server.close()
        await self._end_streams()
        left = (self.config.timeout_graceful_shutdown or 0) - (time.monotonic() - began)
        self.config.timeout_graceful_shutdown = max(1, math.ceil(left))
        await super().shutdown(sockets)

    async def _end_streams(self) -> None:
        await asyncio.sleep(LAST_WORDS)
        for connection in list(self.server_state.connections):
            if isinstance(connection, StreamProtocol):
                connection.end()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Like uvicorn's, but a stop that was asked for ends with exit code 0: it is not the signal that kills us."""
        handlers = {sig: signal.signal(sig, self.handle_exit) for sig in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for sig, handler in handlers.items():
                signal.signal(sig, handler)


class Application(Protocol):
    """An ASGI application that knows how to end what it has at hand."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection."""
        ...

    async def drain(self) -> None:
        """Takes no more work and sees the rest to its end."""


def room_for(connections: int) -> int:
    """Raises the limit on open descriptors for so many connections; gives how many there can be in any case."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + SPARE
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return connections if soft == resource.RLIM_INFINITY else max(1, min(connections, soft - SPARE))


def make_server(app: Application, settings: Settings) -> Server:
    """A server that has not begun to listen; ``run()`` returns when it has been told to stop and has drained."""
    connections = room_for(settings.connection_limit)
    if connections < settings.connection_limit:
        log.warning("the limit on open files (ulimit -n) leaves room for %d connections", connections)
    config = Config(
        app,
        settings.receive_timeout,
        connections,
        host=settings.host,
        port=settings.port,
        ws=StreamProtocol,
        ws_max_size=settings.body_limit,
        # Frames are small or pictures, which do not get smaller; a compressor would hold memory for every socket.
        ws_per_message_deflate=False,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        # The jobs' own grace ends before; the rest is for sending their last answers.
        timeout_graceful_shutdown=int(settings.grace_timeout) + 3,
    )
    return Server(config, app.drain)
