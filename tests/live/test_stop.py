"""SIGTERM in every state that a server can be in: it ends in time, and the next one makes good what it had accepted."""

import contextlib
import hashlib
import json
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from server import Live, serving

GRACE = 2.0
#: Seconds on top of the grace time that an end may take on a busy machine.
SLACK = 15.0
SHORT: dict[str, Any] = {"prompt": "a lake", "width": 64, "height": 64, "steps": 2, "reproducible": True}
LONG: dict[str, Any] = {"prompt": "a forest", "width": 256, "height": 256, "steps": 150, "reproducible": True}
#: Nearly all of it is decoding.
LARGE: dict[str, Any] = {"prompt": "a meadow", "width": 512, "height": 512, "steps": 1, "reproducible": True}

#: Puts a server into a state, keeps it there while the context lasts, and gives the jobs that it has promised.
State = Callable[[Live], "contextlib.AbstractContextManager[list[str]]"]


def _queue(live: Live, recipe: dict[str, Any], count: int = 1) -> list[str]:
    with live.ask() as client:
        answers = [client.post("/v1/jobs", json={**recipe, "seed": seed}) for seed in range(count)]
    return [answer.json()["id"] for answer in answers]


def _wait_for_step(live: Live, job_id: str, step: int) -> None:
    with live.ask() as client:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            job = client.get(f"/v1/jobs/{job_id}").json()
            if job["progress"]["step"] >= step or job["finished_at"] is not None:
                return
            time.sleep(0.01)
    raise AssertionError(job)


@contextlib.contextmanager
def idle(live: Live) -> Iterator[list[str]]:
    """Nothing to do."""
    live.wait_ready()
    yield []


@contextlib.contextmanager
def loading(live: Live) -> Iterator[list[str]]:
    """The model is still being read; a job waits for it."""
    yield _queue(live, SHORT)


@contextlib.contextmanager
def queued(live: Live) -> Iterator[list[str]]:
    """More jobs than can be begun."""
    live.wait_ready()
    yield _queue(live, SHORT, 40)


@contextlib.contextmanager
def beginning(live: Live) -> Iterator[list[str]]:
    """A job was accepted this moment."""
    live.wait_ready()
    yield _queue(live, SHORT)


@contextlib.contextmanager
def stepping(live: Live) -> Iterator[list[str]]:
    """Far from its end, and longer than the grace time."""
    live.wait_ready()
    ids = _queue(live, LONG)
    _wait_for_step(live, ids[0], 3)
    yield ids


@contextlib.contextmanager
def decoding(live: Live) -> Iterator[list[str]]:
    """All steps are made."""
    live.wait_ready()
    ids = _queue(live, LARGE)
    _wait_for_step(live, ids[0], 1)
    yield ids


@contextlib.contextmanager
def writing(live: Live) -> Iterator[list[str]]:
    """Pictures come by the dozen, so that some are being encoded and written."""
    live.wait_ready()
    ids = _queue(live, {**SHORT, "count": 8}, 3)
    _wait_for_step(live, ids[0], 15)
    yield ids


@contextlib.contextmanager
def waited_for(live: Live) -> Iterator[list[str]]:
    """A client waits on its connection for a job that fits into the grace time: it gets its picture."""
    live.wait_ready()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(httpx.post, f"{live.address}/generate", json=SHORT, timeout=60)
        live.wait_for(lambda health: health["queue"]["running"] + health["queue"]["size"] or answer.done())
        yield []
        assert answer.result().status_code == 200


@contextlib.contextmanager
def streaming(live: Live) -> Iterator[list[str]]:
    """A WebSocket follows its own job, which nobody promised: it is told the end."""
    live.wait_ready()
    with connect(f"ws://127.0.0.1:{live.port}/v1/stream") as stream:
        stream.send(json.dumps(LONG))
        while json.loads(stream.recv(timeout=30))["type"] != "progress":
            pass
        yield []
        last: dict[str, Any] = {}
        with contextlib.suppress(ConnectionClosed):
            while True:
                last = json.loads(stream.recv(timeout=30))
        assert last["type"] == "failed"
        assert last["error"]["code"] == "draining"


@contextlib.contextmanager
def detached(live: Live) -> Iterator[list[str]]:
    """A WebSocket follows a job that was promised: the socket is closed with the code that says to come back."""
    live.wait_ready()
    with connect(f"ws://127.0.0.1:{live.port}/v1/stream") as stream:
        stream.send(json.dumps({**LONG, "detach": True}))
        promised = json.loads(stream.recv(timeout=30))["job"]["id"]
        while json.loads(stream.recv(timeout=30))["type"] != "progress":
            pass
        yield [promised]
        with contextlib.suppress(ConnectionClosed):
            while json.loads(stream.recv(timeout=30))["type"] == "progress":
                pass
        assert stream.close_code == 1012


@contextlib.contextmanager
def followed(live: Live) -> Iterator[list[str]]:
    """Somebody follows by server-sent events a job that was promised."""
    live.wait_ready()
    ids = _queue(live, LONG)
    with live.ask() as client, client.stream("GET", f"/v1/jobs/{ids[0]}/events") as answer:
        lines = answer.iter_lines()
        while not next(lines).startswith("event: progress"):
            pass
        yield ids
        assert not any(line.startswith(("event: failed", "event: cancelled")) for line in lines)  # it goes on


@contextlib.contextmanager
def receiving(live: Live) -> Iterator[list[str]]:
    """Half of a request has come, and no more does."""
    live.wait_ready()
    with socket.create_connection(("127.0.0.1", live.port)) as raw:
        raw.sendall(b"POST /generate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n")
        raw.sendall(b'Content-Length: 100\r\n\r\n{"prompt": ')
        time.sleep(0.2)
        yield []


@contextlib.contextmanager
def cancelling(live: Live) -> Iterator[list[str]]:
    """A job is being called off: it stays called off."""
    live.wait_ready()
    ids = _queue(live, LONG)
    _wait_for_step(live, ids[0], 2)
    with live.ask() as client:
        assert client.delete(f"/v1/jobs/{ids[0]}").json() == {"cancelled": True}
    yield []


@contextlib.contextmanager
def unread(live: Live) -> Iterator[list[str]]:
    """A client has asked for a picture and does not read it."""
    live.wait_ready()
    with socket.create_connection(("127.0.0.1", live.port)) as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        body = json.dumps(SHORT).encode()
        head = "POST /generate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        raw.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        raw.recv(1)
        yield []


STATES: tuple[State, ...] = (
    idle, loading, queued, beginning, stepping, decoding, writing, waited_for, streaming, detached, followed,
    receiving, cancelling, unread,
)  # fmt: skip


def _stop_in(states: tuple[State, ...], folder: Path) -> None:
    """Each server makes good what the one before had promised, and is then stopped in a state of its own."""
    outputs, promised = folder / "outputs", list[str]()
    for state in (*states, idle):
        with serving(outputs, grace_timeout=str(GRACE), queue_limit="100") as live:
            _made_good(live, promised)
            with state(live) as promised:
                began = time.monotonic()
                assert live.stop() == 0, state.__name__
                assert time.monotonic() - began < GRACE + SLACK, state.__name__
    assert not [path for path in outputs.iterdir() if not path.name.endswith(".png")]


def _made_good(live: Live, promised: list[str]) -> None:
    """Every job succeeds, and its picture is the one that its recipe gives."""
    with live.ask() as client:
        for job_id in promised:
            _wait_for_step(live, job_id, 10**6)
            job = client.get(f"/v1/jobs/{job_id}").json()
            assert job["status"] == "succeeded", job
            assert job["attempts"] <= 2  # being stopped is not held against it
            picture = client.get(f"/v1/jobs/{job_id}/result").content
            assert hashlib.sha256(picture).hexdigest() == job["images"][0]["sha256"]
        if promised and job["recipe"]["steps"] < 10:
            recipe = {**SHORT, **{name: job["recipe"][name] for name in ("prompt", "width", "height", "steps", "seed")}}
            assert client.post("/generate", json=recipe).content == picture


def test_stopping_in_some_states(tmp_path: Path) -> None:
    """Those in which the most can be lost."""
    _stop_in((stepping, writing), tmp_path)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_stopping_in_every_state(tmp_path: Path) -> None:
    """One after the other, on the same folders."""
    _stop_in(STATES, tmp_path)


def test_who_asks_while_it_drains_is_told_so(tmp_path: Path) -> None:
    """The port is open until the last job has ended: a balancer reads 503 and goes elsewhere."""
    with serving(tmp_path / "outputs", grace_timeout="6") as live, live.ask() as client:
        live.wait_ready()
        _queue(live, LONG)
        live.wait_for(lambda health: health["queue"]["running"])
        live.process.send_signal(signal.SIGTERM)
        while (told := client.get("/readyz")).status_code == 200:
            time.sleep(0.02)
        for answer in (told, client.post("/v1/jobs", json=SHORT), client.post("/generate", json=SHORT)):
            assert (answer.status_code, answer.json()["code"]) == (503, "draining")
            assert int(answer.headers["retry-after"]) >= 1
        assert client.get("/ping").status_code == 200
        assert live.process.wait(40) == 0
