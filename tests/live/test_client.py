"""The Python client against a real server: painting, following, calling off, and what it does when things break."""

import asyncio
import io
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

import daguerre
from daguerre import AsyncClient, Client, Draft
from daguerre.answers import Accepted, Completed, Event, Failed, Progressed
from daguerre.client import (
    BadAddress,
    Busy,
    Conflict,
    InvalidRequest,
    JobCancelled,
    NotThere,
    Refused,
    Unfinished,
    Unreachable,
)
from daguerre.job import Status
from server import Live, serving

SMALL: dict[str, Any] = {"width": 64, "height": 64, "steps": 2, "seed": 3}
LONG: dict[str, Any] = {"width": 256, "height": 256, "steps": 150, "seed": 1}


@pytest.fixture
def ours(live: Live) -> Iterator[Client]:
    """Our client of the shared server."""
    with Client(live.address) as ours:
        yield ours


def _until(ours: Client, job_id: str, *wanted: Status) -> None:
    end = time.monotonic() + 30
    while ours.job(job_id).status not in wanted:
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_picture_with_its_progress(live: Live, ours: Client, client: httpx.Client) -> None:
    """The bytes are those of the synchronous route; what is told of them and on the way is typed."""
    heard: list[Event] = []
    painting = ours.generate("a lake", on_progress=heard.append, **{**SMALL, "steps": 20})
    assert painting.data == client.post("/generate", json={"prompt": "a lake", **SMALL, "steps": 20}).content
    assert (painting.pictures[0].seed, painting.pictures[0].media_type) == (3, "image/png")
    assert (painting.metadata["model"], painting.metadata["steps"]) == ("demo-xl", 20)
    assert painting.job.status is Status.SUCCEEDED
    assert isinstance(heard[-1], Completed)
    assert any(isinstance(event, Progressed) for event in heard)


def test_a_draft_and_several_pictures(ours: Client) -> None:
    """A typed recipe; all of its pictures come."""
    painting = ours.generate(Draft(prompt="a lake", width=64, height=64, steps=1, seed=5, count=2, format="jpeg"))
    assert [picture.seed for picture in painting.pictures] == [5, 6]
    assert {picture.media_type for picture in painting.pictures} == {"image/jpeg"}


@pytest.mark.parametrize("is_path", [True, False])
def test_from_a_picture(ours: Client, tmp_path: Path, is_path: bool) -> None:
    """By its path or its bytes."""
    file = tmp_path / "blue.png"
    Image.new("RGB", (64, 64), "blue").save(file)
    image = file if is_path else file.read_bytes()
    painting = ours.generate("a lake", image=image, mask=image, strength=0.6, steps=2, seed=1)
    assert painting.job.recipe.mode == "inpaint"
    with Image.open(io.BytesIO(painting.data)) as picture:
        assert picture.size == (64, 64)


def test_submit_then_fetch(ours: Client) -> None:
    """Step by step; the same key is the same job."""
    job = ours.submit("a lake", key="client-1", **SMALL)
    assert ours.submit("a lake", key="client-1", **SMALL).id == job.id
    assert ours.wait(job.id).images == ours.job(job.id).images
    assert ours.result(job.id).data.startswith(b"\x89PNG")
    assert ours.cancel(job.id) is False
    with pytest.raises(NotThere) as caught:
        ours.result(job.id, index=1)
    assert caught.value.code == "not_found"


def test_lists(ours: Client) -> None:
    """Models and LoRAs, typed."""
    assert [model.id for model in ours.models() if model.default] == ["demo-xl"]
    assert isinstance(ours.loras(), list)


def test_calling_off(ours: Client) -> None:
    """Who waits is told; there is no picture before or after."""
    job = ours.submit("a forest", **LONG)
    with pytest.raises(Unfinished):
        ours.result(job.id)
    later = threading.Timer(0.3, ours.cancel, [job.id])
    later.start()
    with pytest.raises(JobCancelled) as caught:
        ours.wait(job.id)
    later.join()
    assert (caught.value.code, caught.value.job_id) == ("cancelled", job.id)
    with pytest.raises(Conflict):
        ours.result(job.id)


def test_closing_a_stream_calls_its_job_off(ours: Client) -> None:
    """As closing a WebSocket does; one that is heard to its end is left alone."""
    stream = ours.stream("a forest", **LONG)
    first = next(stream)
    assert isinstance(first, Accepted)
    stream.close()
    _until(ours, first.job.id, Status.CANCELLED)
    whole = list(ours.stream("a lake", **SMALL))
    assert isinstance(whole[0], Accepted)
    assert isinstance(whole[-1], Completed)


def test_interrupting_generate_calls_the_job_off(live: Live) -> None:
    """A person who presses Ctrl-C does not leave the server painting."""

    class Pressed(Exception):
        pass

    def press(event: Event) -> None:
        assert not isinstance(event, Accepted | Failed)
        seen.append(event.id)
        raise Pressed

    seen: list[str] = []
    with Client(live.address) as ours:
        with pytest.raises(Pressed):
            ours.generate("a forest", on_progress=press, **LONG)
        _until(ours, seen[0], Status.CANCELLED)


@pytest.mark.parametrize(
    ("fields", "kind", "code"),
    [
        ({"steps": 0, "nope": 1}, InvalidRequest, "invalid_recipe"),
        ({"model": "nobodys"}, NotThere, "model_not_found"),
        ({"key": "x" * 256}, InvalidRequest, "malformed_body"),
    ],
)
def test_refusals_carry_the_problem(ours: Client, fields: dict[str, Any], kind: type[Exception], code: str) -> None:
    """Its code, the fields that are wrong, and the name under which the server's log has it."""
    with pytest.raises(kind) as caught:
        ours.generate("a lake", **fields)
    error = caught.value
    assert isinstance(error, Refused)
    assert error.code == code
    assert error.request_id
    assert {each.field for each in error.errors} == ({"steps", "nope"} if "steps" in fields else set())


def test_asynchronous(live: Live) -> None:
    """The same, awaited; many at once; cancelling the task calls the job off."""

    async def main() -> None:
        async with AsyncClient(live.address) as ours:
            heard: list[Event] = []
            paintings = await asyncio.gather(
                *(ours.generate("a lake", on_progress=heard.append, **{**SMALL, "seed": seed}) for seed in range(4))
            )
            assert [painting.pictures[0].seed for painting in paintings] == [0, 1, 2, 3]
            assert sum(isinstance(event, Completed) for event in heard) == 4
            events = [event async for event in ours.stream("a lake", **SMALL)]
            assert isinstance(events[-1], Completed)
            assert [model.id for model in await ours.models() if model.default] == ["demo-xl"]
            assert isinstance(await ours.loras(), list)
            with pytest.raises(NotThere):
                await ours.result("nobodys")
            begun: asyncio.Queue[Event] = asyncio.Queue()
            task = asyncio.create_task(ours.generate("a forest", on_progress=begun.put_nowait, **LONG))
            first = await begun.get()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not isinstance(first, Accepted | Failed)
            job = await ours.job(first.id)
            assert job.status is Status.CANCELLED
            assert await ours.cancel(job.id) is False

    asyncio.run(main())


class Cutting:
    """A way to the server on which answers are lost: the first connections are cut when the server answers."""

    def __init__(self, port: int, times: int) -> None:
        self.left = times
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._port))
            threading.Thread(target=self._pass, args=(near, far, False), daemon=True).start()
            threading.Thread(target=self._pass, args=(far, near, True), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, is_answer: bool) -> None:
        with source, target:
            try:
                while data := source.recv(65536):
                    if is_answer and self.left > 0:
                        self.left -= 1
                        break
                    target.sendall(data)
                target.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self) -> None:
        """Takes no more connections."""
        self._listener.close()


def test_answers_that_are_lost(live: Live, ours: Client, client: httpx.Client) -> None:
    """The job was accepted, but nobody heard: it is asked for again, and painted once."""
    before = len(client.get("/v1/jobs", params={"limit": 200}).json()["data"])
    way = Cutting(live.port, times=2)
    try:
        with Client(way.address) as cut:
            assert cut.generate("a lake", **SMALL).data.startswith(b"\x89PNG")
    finally:
        way.close()
    assert way.left == 0
    assert len(client.get("/v1/jobs", params={"limit": 200}).json()["data"]) == before + 1


def test_nobody_there() -> None:
    """Is told in one error of the client's own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with Client(f"http://127.0.0.1:{port}", retries=1) as ours, pytest.raises(Unreachable):
        ours.models()
    for address in ("localhost:8000", "ftp://localhost", "http://", "http://a:b", ""):
        with pytest.raises(BadAddress):
            Client(address)


def test_a_full_queue_is_waited_for(tmp_path: Path) -> None:
    """A 503 is asked again after the time that it tells; who does not want to wait is told so."""
    with serving(tmp_path / "outputs", queue_limit="1", max_runs="1") as live, Client(live.address) as ours:
        live.wait_ready()
        jobs = [ours.submit("a forest", **LONG)]
        _until(ours, jobs[0].id, Status.RUNNING)
        jobs.append(ours.submit("a forest", **LONG))
        with Client(live.address, retries=0) as hasty, pytest.raises(Busy) as caught:
            hasty.submit("a lake", **SMALL)
        assert (caught.value.code, caught.value.retry_after >= 1) == ("queue_full", True)
        later = threading.Timer(1.0, lambda: [ours.cancel(job.id) for job in jobs])
        later.start()
        assert ours.generate("a lake", **SMALL).job.status is Status.SUCCEEDED
        later.join()


def test_a_server_that_is_killed_and_comes_back(tmp_path: Path) -> None:
    """Whoever waits goes on waiting: the job survives, and so does the wait."""
    outputs = tmp_path / "outputs"
    done: list[Any] = []
    with serving(outputs) as live:
        live.wait_ready()
        ours = Client(live.address, retries=7)
        job = ours.submit("a forest", **{**LONG, "steps": 40})
        waiting = threading.Thread(target=lambda: done.append(ours.wait(job.id)))
        waiting.start()
        _until(ours, job.id, Status.RUNNING)
        live.process.kill()
        live.process.wait()
    with serving(outputs, "--port", str(live.port)):
        waiting.join(90)
    ours.close()
    assert [job.status for job in done] == [Status.SUCCEEDED]


def test_importing_it_is_cheap() -> None:
    """The package's own import loads nothing of it, and the client loads nothing of the server."""
    for code, unwanted in (
        ("import daguerre", {"httpx", "msgspec"}),
        ("from daguerre import Client", {"torch", "numpy", "PIL", "starlette", "daguerre.http"}),
    ):
        command = [sys.executable, "-c", f"import sys; {code}; print(*sys.modules)"]
        loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        assert not unwanted & set(loaded), code
    assert daguerre.Client is Client
