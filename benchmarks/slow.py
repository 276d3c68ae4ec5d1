"""Measures a server with 2,000 connections that never become a request, or whose answers nobody reads.

Good clients ask meanwhile, first alone and then among the slow ones, in one run. Who drives is a process of its own.
"""

import asyncio
import base64
import multiprocessing
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from benchmarks.goals import Goal
from benchmarks.server import daguerre

SLOW, GOOD = 2_000, 50
#: Seconds in which the slow ones come; then all are there at once.
COMING = 5.0
#: Seconds for which the good clients ask alone, and among the slow ones; each asks so often in a second.
SECONDS, RATE = 20.0, 2.0
#: The server's own bound on a request's arrival, below the ten seconds within which all is to be over.
SETTINGS = {"receive_timeout": "9"}
#: Seconds after which a connection that has not ended is counted as one that never does.
PATIENCE = 60.0

HEAD = b"POST /generate HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
UPGRADE = b"GET /v1/stream HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
KEY = b"sec-websocket-version: 13\r\nsec-websocket-key: " + base64.b64encode(b"0123456789abcdef") + b"\r\n"

GOALS = (
    Goal("seconds until the last slow connection was ended", ("longest_s",), 10.0),
    Goal("slow connections that were not ended", ("not_ended",), 0.0),
    Goal("the good clients' p99 among them, against alone", ("p99_ratio",), 2.0),
    Goal("good requests that failed", ("failed",), 0.0),
)

Writer = asyncio.StreamWriter


def run() -> dict[str, Any]:
    """Both sides of one server."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 20_000), hard))
    with daguerre(**SETTINGS) as server:
        server.wait_until("/readyz")
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:
            return other.submit(drive, server.port).result()


def drive(port: int) -> dict[str, Any]:
    """Everything that is asked of the server, on the loop of one process."""
    return asyncio.run(_driven(port))


async def _driven(port: int) -> dict[str, Any]:
    await _asked(port, 2.0)  # what is learned once is learned
    alone = await _asked(port, SECONDS)
    slow = [asyncio.create_task(_endured(port, kind, number)) for number, kind in _kinds()]
    among = await _asked(port, SECONDS)
    ends = await asyncio.gather(*slow)
    ended = sorted(seconds for seconds in ends if seconds is not None)
    by_kind = {kind.__name__.strip("_"): round(_last(ends[at :: len(KINDS)]), 2) for at, kind in enumerate(KINDS)}
    p99 = [_p99(alone), _p99(among)]
    return {
        "longest_s": round(ended[-1], 2),
        "longest_s_by_kind": by_kind,
        "not_ended": len(ends) - len(ended),
        "p99_ms": [round(1000 * seconds, 1) for seconds in p99],
        "p99_ratio": round(p99[1] / p99[0], 2),
        "median_ms": [round(1000 * sorted(times)[len(times) // 2], 1) for times in (alone, among)],
        "asked": [len(alone), len(among)],
        "failed": sum(seconds == float("inf") for seconds in (*alone, *among)),
        "slow_connections": SLOW,
        "good_clients": GOOD,
    }


def _kinds() -> list[tuple[int, "Kind"]]:
    return [(number, KINDS[number % len(KINDS)]) for number in range(SLOW)]


def _p99(seconds: list[float]) -> float:
    return sorted(seconds)[int(0.99 * (len(seconds) - 1))]


def _last(ends: list[float | None]) -> float:
    return max((seconds for seconds in ends if seconds is not None), default=0.0)


async def _asked(port: int, seconds: float) -> list[float]:
    """The seconds of each answer that the good clients got; infinitely many where there was none."""
    end = time.perf_counter() + seconds
    return [one for each in await asyncio.gather(*(_good(port, end, n) for n in range(GOOD))) for one in each]


async def _good(port: int, end: float, number: int) -> list[float]:
    """Asks on connections of its own, each new, at a steady rate and not at the others' moments."""
    seen: list[float] = []
    due = time.perf_counter() + number / GOOD / RATE
    while due < end:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        seen.append(await _answered(port))
        due += 1 / RATE
    return seen


async def _answered(port: int) -> float:
    began = time.perf_counter()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /v1/models HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n")
        answer = await reader.read(-1)
        writer.close()
    except OSError:
        return float("inf")
    return time.perf_counter() - began if answer.startswith(b"HTTP/1.1 200") else float("inf")


async def _endured(port: int, kind: "Kind", number: int) -> float | None:
    """Seconds from a slow connection's first moment to its end by the server, if there is one."""
    await asyncio.sleep(COMING * number / SLOW)
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    try:
        async with asyncio.timeout(PATIENCE):
            await kind(reader, writer)
    except TimeoutError:
        return None
    except OSError:
        pass  # reset: that is an end, too
    finally:
        writer.transport.abort()
    return time.perf_counter() - began


async def _until_end(reader: asyncio.StreamReader) -> None:
    while await reader.read(1024):
        pass


# The kinds of slow connections. Each returns, or raises an OSError, when the server has ended it.


async def _nothing(reader: asyncio.StreamReader, _writer: Writer) -> None:
    """Connects and says nothing."""
    await _until_end(reader)


async def _part_of_a_header(reader: asyncio.StreamReader, writer: Writer) -> None:
    writer.write(HEAD)
    await _until_end(reader)


async def _part_of_a_body(reader: asyncio.StreamReader, writer: Writer) -> None:
    writer.write(HEAD + b"content-length: 1000\r\n\r\n{")
    await _until_end(reader)


async def _a_byte_a_second(reader: asyncio.StreamReader, writer: Writer) -> None:
    reading = asyncio.create_task(_until_end(reader))
    for byte in HEAD + b"content-length: 1000\r\n\r\n" + b" " * 1000:
        writer.write(bytes([byte]))
        if (await asyncio.wait((reading,), timeout=1.0))[0]:
            return await reading
    return None


async def _part_of_a_handshake(reader: asyncio.StreamReader, writer: Writer) -> None:
    writer.write(UPGRADE)
    await _until_end(reader)


async def _a_socket_without_a_frame(reader: asyncio.StreamReader, writer: Writer) -> None:
    writer.write(UPGRADE + KEY + b"\r\n")
    await _until_end(reader)


async def _never_reads(_reader: asyncio.StreamReader, writer: Writer) -> None:
    """Asks for more than the system holds, and takes none of it."""
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(b"GET /openapi.json HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n" * 100)
    socket = writer.get_extra_info("socket")
    while socket.getsockopt(6, 11, 1)[0] not in (7, 8):  # noqa: ASYNC110 - TCP_INFO: closed, by us or by the server
        await asyncio.sleep(0.05)


Kind = Callable[[asyncio.StreamReader, Writer], Any]
KINDS: tuple[Kind, ...] = (
    _nothing,
    _part_of_a_header,
    _part_of_a_body,
    _a_byte_a_second,
    _part_of_a_handshake,
    _a_socket_without_a_frame,
    _never_reads,
)
