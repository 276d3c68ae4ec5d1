"""Measures a server with much to do: 10,000 jobs wait, 2,000 WebSockets listen, 100 more jobs come each second."""

import asyncio
import contextlib
import http.client
import json
import multiprocessing
import re
import resource
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from websockets.asyncio.client import connect

from benchmarks.goals import Goal
from benchmarks.server import Running, daguerre

JOBS, LISTENERS, POSTERS = 10_000, 2_000, 16
RATE, SECONDS = 100, 60
#: Seconds for the jobs that somebody listens to, once the minute is over.
PATIENCE = 900.0
RECIPE = {"prompt": "a lake", "width": 64, "height": 64, "steps": 1, "guidance_scale": 1.0, "prompt_syntax": "plain"}
SETTINGS = {
    "queue_limit": "100000",
    "connection_limit": "5000",
    "wait_timeout": "86400",
    "job_timeout": "86400",
}

GOALS = (
    Goal("jobs accepted a second, each durable", ("accepted_per_second",), 500.0, is_least=True),
    Goal("milliseconds to accept a job at full speed, p95", ("burst_p95_ms",), 100.0),
    Goal("milliseconds to accept a job at 100 a second, p95", ("post_p95_ms",), 100.0),
    Goal("milliseconds of /livez, p99", ("livez_p99_ms",), 50.0),
    Goal("milliseconds of /livez, longest", ("livez_max_ms",), 100.0),
    Goal("final frames that did not come", ("lost",), 0.0),
    Goal("megabytes more than before", ("more_mb",), 200.0),
)


def run() -> dict[str, Any]:
    """Everything in one server; what is measured is measured by processes of their own."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 20_000), hard))
    with daguerre(**SETTINGS) as server:
        server.wait_until("/readyz")
        server.paint(RECIPE)
        return asyncio.run(_measured(server))


async def _measured(server: Running) -> dict[str, Any]:
    before = _memory(server)
    began = time.perf_counter()
    accepted = await asyncio.gather(*(_post(server, JOBS // POSTERS, 0.0) for _ in range(POSTERS)))
    seconds = time.perf_counter() - began
    burst = sorted(latency for one in accepted for _, latency in one)
    ids = sorted(job_id for one in accepted for job_id, _ in one)
    ready = asyncio.Semaphore(0)
    listening = [asyncio.ensure_future(_listen(server, job_id, ready)) for job_id in ids[:LISTENERS]]
    for _ in listening:
        await ready.acquire()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn) as other:
        polling = asyncio.get_running_loop().run_in_executor(other, poll, server.port, SECONDS)
        each = POSTERS / RATE
        more = await asyncio.gather(*(_post(server, SECONDS * RATE // POSTERS, each) for _ in range(POSTERS)))
        pings = await polling
    posts = sorted(latency for one in more for _, latency in one)
    more_memory = _memory(server) - before
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*listening, return_exceptions=True)
    ends = [_end(task) for task in listening]
    return {
        "accepted_per_second": round(JOBS / seconds),
        "burst_p95_ms": _ms(burst, 0.95),
        "post_p95_ms": _ms(posts, 0.95),
        "livez_p99_ms": _ms(pings, 0.99),
        "livez_max_ms": _ms(pings, 1.0),
        "lost": sum(end != "completed" for end in ends),
        "ends": dict(Counter(ends)),
        "more_mb": round(more_memory / 1e6, 1),
    }


def _end(task: "asyncio.Future[str]") -> str:
    """The type of the last frame that a listener heard, or why it heard none."""
    if not task.done():
        return "waits"
    error = task.exception()
    return task.result() if error is None else type(error).__name__


def _ms(seconds: list[float], share: float) -> float:
    return round(1000 * sorted(seconds)[int(share * (len(seconds) - 1))], 1)


def _memory(server: Running) -> int:
    """Bytes that the server's process holds."""
    status = Path(f"/proc/{server.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


async def _post(server: Running, count: int, every: float) -> list[tuple[str, float]]:
    """Jobs over one connection, one after the other or one in so many seconds: their ids, and the seconds of each."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    made, due = [], time.perf_counter()
    for seed in range(count):
        due += every
        await asyncio.sleep(max(0.0, due - time.perf_counter()) if every else 0)
        body = json.dumps({**RECIPE, "seed": seed}).encode()
        began = time.perf_counter()
        head = f"POST /v1/jobs HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(body)}\r\n"
        writer.write(f"{head}content-type: application/json\r\n\r\n".encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", answer)
        assert length is not None
        assert answer.startswith(b"HTTP/1.1 202"), answer
        job = json.loads(await reader.readexactly(int(length[1])))
        made.append((job["id"], time.perf_counter() - began))
    writer.close()
    return made


async def _listen(server: Running, job_id: str, ready: asyncio.Semaphore) -> str:
    """Follows a job up to the end of its stream: the type of the last frame."""
    kind = "none"
    try:
        # The client's own deadlines are for servers far away; a handshake waits here for two thousand others.
        address = f"ws://127.0.0.1:{server.port}/v1/jobs/{job_id}/events"
        async with connect(address, max_size=None, open_timeout=PATIENCE, ping_interval=None) as stream:
            ready.release()
            async for frame in stream:
                kind = json.loads(frame)["type"]
    except BaseException:
        ready.release()
        raise
    return kind


def poll(port: int, seconds: float) -> list[float]:
    """The seconds of each ``/livez``, a hundred times a second, over one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    seen, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        connection.request("GET", "/livez")
        connection.getresponse().read()
        seen.append(time.perf_counter() - began)
        time.sleep(0.01)
    return seen
