"""Owns listening: uvicorn with a bound on connections, and a clean way to stop."""

import asyncio
import contextlib
import logging
import math
import resource
import signal
import time
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Protocol

import uvicorn
from starlette.types import Receive, Scope, Send

from daguerre import editions
from daguerre.errors import SettingsError, StorageFailed
from daguerre.http.connections import Config, StreamProtocol
from daguerre.settings import Settings

log = logging.getLogger(__name__)

#: Descriptors that connections leave to everything else: pictures, the database, models.
SPARE = 256
#: Seconds between two lines of the log that say that there are none left.
QUIET = 10.0

#: Seconds in which streams tell their last, once no job is left.
LAST_WORDS = 0.2


class Exhaustion:
    """Tells of connections for which no descriptor is left, but not each time: the loop may find thousands at once.

    They are not lost: the loop tries again every second. Everything else goes to the log as always.
    """

    def __init__(self) -> None:
        self._told_at = -QUIET

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """The loop's exception handler."""
        error = context.get("exception")
        if not isinstance(error, OSError) or not editions.is_exhausted(error):
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
        try:
            await super().startup(sockets)
        except SystemExit:  # the log says why
            if self.lifespan.should_exit:
                raise StorageFailed("the server could not be started; the log says why") from None
            raise SettingsError(_not_ours(self.config.host, self.config.port)) from None
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


def _not_ours(host: str, port: int) -> str:
    place = f"{host}, port {port}"
    return f"{place}: another program listens there, or that is no address of this machine; set port or host"


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
