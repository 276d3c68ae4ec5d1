"""Owns connections: uvicorn's protocols, with a deadline for a request to arrive and an end to waiting for readers."""

import asyncio
import socket
import struct
from http import HTTPStatus
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request

from daguerre.errors import DaguerreError, MalformedRequest, RequestTimeout
from daguerre.http import problems
from daguerre.job import new_id

#: Seconds in which a client must take something of what waits for it.
STUCK = 8.0
#: Bytes that the system holds for a connection at most.
SEND_BUFFER = 256 * 1024

_RECEIVED = (h11.DONE, h11.MUST_CLOSE, h11.CLOSED, h11.ERROR, h11.SWITCHED_PROTOCOL)


class Config(uvicorn.Config):
    """uvicorn's configuration with what its protocol lacks."""

    def __init__(self, app: ASGIApp, receive_timeout: float, connection_limit: int, **options: Any) -> None:
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


class Patient(asyncio.Protocol):
    """A protocol that does not wait for ever for its client to read."""

    _patience: Patience

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        super().connection_made(transport)
        assert isinstance(transport, asyncio.Transport)
        self._patience = Patience(asyncio.get_running_loop(), transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        self._patience.end()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """It reads more slowly than is sent."""
        super().pause_writing()
        self._patience.begin()

    def resume_writing(self) -> None:
        """It has caught up."""
        self._patience.end()
        super().resume_writing()


class StreamProtocol(Patient, WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol, which waits neither for ever nor for what cannot be read."""

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

    async def send(self, message: ASGISendEvent) -> None:
        """An answer instead of a WebSocket ends the handshake, too; uvicorn would log it as a mistake."""
        await super().send(message)
        if self.close_sent and self.initial_response is not None:
            self.handshake_complete = True

    def _refuse(self) -> None:
        self.transport.write(_answer(MalformedRequest("The handshake of the WebSocket cannot be read.")))
        self.transport.close()

    def shutdown(self) -> None:
        """The server is about to stop. A stream ends with its job, which may still be finished: see `end`."""
        if not self.handshake_complete:
            super().shutdown()

    def end(self) -> None:
        """Closes a stream that has nothing more to tell (1012: the server restarts)."""
        if not self.transport.is_closing():
            super().shutdown()


class DeadlineProtocol(Patient, H11Protocol):
    """uvicorn's HTTP protocol with a deadline: a request that has not arrived whole in time is answered 408.

    The time runs from the connection's first moment, or from the first byte of a later request.
    """

    config: Config
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        if len(self.connections) > self.config.connection_limit:
            transport.abort()
            return
        self._start()

    def connection_lost(self, exc: Exception | None) -> None:
        """A client has gone."""
        self._stop()
        super().connection_lost(exc)

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
