"""Measures how soon the engine is free: 1,000 jobs called off, or left by their clients, at random moments.

The engine has one place, so a short job that waits begins when the long one has left it: the server tells how long it
was in the queue. To the moment at which the client sent it, all that a picture alone takes outside of the server's
phases is added, so that the figure is rather too long. A step of the long job is the bound that is promised.
"""

import json
import random
import socket
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from websockets.sync.client import connect

from benchmarks.goals import Goal
from benchmarks.server import Answer, Running, daguerre, phases

TIMES = 1_000
LONG = {"prompt": "a forest", "width": 256, "height": 256, "steps": 150, "prompt_syntax": "plain"}
SHORT = {"prompt": "a lake", "width": 64, "height": 64, "steps": 1, "guidance_scale": 1.0, "prompt_syntax": "plain"}

GOALS = (
    Goal("steps of the long job until the engine is free, median", ("median_steps",), 1.0),
    Goal("the same, p99", ("p99_steps",), 1.0),
    Goal("jobs that went on all the same", ("went_on",), 0.0),
)


def run() -> dict[str, Any]:
    """Seconds to be free, in steps of the job that is called off."""
    chance = random.Random(7)
    with daguerre(max_runs="1") as server, ThreadPoolExecutor(1) as pool:
        server.wait_until("/readyz")
        step = phases(server.paint({**LONG, "steps": 50}))["denoise"] / 1000 / 50
        overhead = statistics.median(_outside(server.paint({**SHORT, "seed": seed})) for seed in range(50))
        waits = []
        for turn in range(TIMES):
            leave = chance.choice((_delete, _hang_up, _close_socket))
            end = leave(server, turn)
            time.sleep(chance.uniform(0.0, 0.3))
            sent = time.perf_counter()
            waiting = pool.submit(server.paint, {**SHORT, "seed": turn})
            time.sleep(0.02)  # it is in the queue
            began = time.perf_counter()
            end()
            waits.append(max(0.0, sent + overhead + phases(waiting.result())["queue"] / 1000 - began))
        running = json.loads(server.ask("GET", "/health").body)["queue"]["running"]
    waits.sort()
    return {
        "step_ms": round(1000 * step, 1),
        "outside_ms": round(1000 * overhead, 1),
        "median_steps": round(waits[len(waits) // 2] / step, 2),
        "p99_steps": round(waits[int(0.99 * (len(waits) - 1))] / step, 2),
        "longest_steps": round(waits[-1] / step, 2),
        "went_on": running,
    }


def _outside(answer: Answer) -> float:
    """Seconds of a picture in none of the server's phases."""
    return answer.seconds - sum(phases(answer).values()) / 1000


def _delete(server: Running, seed: int) -> Any:
    """A job that is queued, and called off by its id."""
    job_id = json.loads(server.ask("POST", "/v1/jobs", {**LONG, "seed": seed}).body)["id"]
    return lambda: server.ask("DELETE", f"/v1/jobs/{job_id}")


def _hang_up(server: Running, seed: int) -> Any:
    """A client that waits for its picture, and goes."""
    raw = socket.create_connection(("127.0.0.1", server.port))
    body = json.dumps({**LONG, "seed": seed}).encode()
    head = "POST /generate HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    raw.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    return raw.close


def _close_socket(server: Running, seed: int) -> Any:
    """A WebSocket that is closed."""
    stream = connect(f"ws://127.0.0.1:{server.port}/v1/stream")
    stream.send(json.dumps({**LONG, "seed": seed}))
    stream.recv()
    return stream.close
