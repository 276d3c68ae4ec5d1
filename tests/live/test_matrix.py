"""Every way in against every way to follow, call off and fetch a job: however it came, it is a job."""

import base64
import io
import json
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from PIL import Image
from websockets.sync.client import connect

from server import Live

Answer = tuple[int, bytes]  # a status, and the picture or what is told in its place
Submit = Callable[[Live, dict[str, Any]], Answer | None]


def _native(live: Live, fields: dict[str, Any]) -> Answer:
    with live.ask() as client:
        answer = client.post("/generate", json=fields)
    return answer.status_code, answer.content


def _queued(live: Live, fields: dict[str, Any]) -> None:
    with live.ask() as client:
        assert client.post("/v1/jobs", json=fields).status_code == 202


def _older(live: Live, fields: dict[str, Any]) -> None:
    with live.ask() as client:
        assert client.post("/generate/queue", json=fields).status_code == 202


def _socket(live: Live, fields: dict[str, Any]) -> Answer:
    with connect(f"{live.address.replace('http', 'ws', 1)}/v1/stream", max_size=None) as socket:
        socket.send(json.dumps(fields))
        told = [json.loads(frame) for frame in socket]
    last = told[-1]
    if last["type"] == "completed":
        return 200, base64.b64decode(last["image"])
    return 409, json.dumps(last).encode()


def _openai(live: Live, fields: dict[str, Any]) -> Answer:
    with live.ask() as client:
        answer = client.post("/v1/images/generations", json=fields)
    if answer.status_code != 200:
        return answer.status_code, answer.content
    return 200, base64.b64decode(answer.json()["data"][0]["b64_json"])


def _openai_stream(live: Live, fields: dict[str, Any]) -> Answer:
    with live.ask() as client:
        answer = client.post("/v1/images/generations", json={**fields, "stream": True})
    last = json.loads(answer.text.strip().rsplit("data: ", 1)[1])
    if "error" in last:
        return 409, json.dumps(last).encode()
    return 200, base64.b64decode(last["b64_json"])


def _a1111(live: Live, fields: dict[str, Any]) -> Answer:
    with live.ask() as client:
        answer = client.post("/sdapi/v1/txt2img", json=fields)
    images = answer.json()["images"]
    return (200, base64.b64decode(images[0])) if images else (409, answer.content)


#: Each sends the same recipe. Those that wait give what they were told at the end.
SUBMITS: dict[str, Submit] = {
    "native": _native,
    "queued": _queued,
    "older queue": _older,
    "stream": _socket,
    "OpenAI": _openai,
    "OpenAI stream": _openai_stream,
    "AUTOMATIC1111": _a1111,
}
STEPS = 24
#: Seconds between two looks of those who poll.
PAUSE = 0.02


@dataclass(frozen=True, slots=True)
class Going:
    """A job that was submitted in some way, and what that way will have told at the end."""

    live: Live
    client: httpx.Client
    id: str
    told: "Future[Answer | None]"

    def socket_of(self) -> Any:
        """A WebSocket that follows it."""
        address = self.live.address.replace("http", "ws", 1)
        return connect(f"{address}/v1/jobs/{self.id}/events", max_size=None)


def _begin(live: Live, client: httpx.Client, threads: ThreadPoolExecutor, way: str, steps: int) -> Going:
    """Submits a job that is being painted when this returns."""
    prompt = f"a lake, {way} {time.monotonic_ns()}"
    told = threads.submit(
        SUBMITS[way], live, {"prompt": prompt, "width": 128, "height": 128, "steps": steps, "seed": 5}
    )
    end = time.monotonic() + 30
    while time.monotonic() < end:
        for job in client.get("/v1/jobs", params={"limit": 3}).json()["data"]:
            if job["recipe"]["prompt"] == prompt and job["progress"]["step"]:
                return Going(live, client, job["id"], told)
    raise AssertionError(f"{way}: the job is not among the caller's")


def _by_polling(going: Going) -> list[str]:
    found = []
    while not found or found[-1] in ("queued", "running"):
        found.append(going.client.get(f"/v1/jobs/{going.id}").json()["status"])
        assert going.client.get(f"/queue/status/{going.id}").json()["id"] == going.id
        time.sleep(PAUSE)
    return found


def _by_the_older_task_api(going: Going) -> list[str]:
    found = []
    while not found or found[-1] in ("PENDING", "PROGRESS"):
        found.append(going.client.get(f"/status/{going.id}").json()["state"])
        time.sleep(PAUSE)
    return found


def _by_events(going: Going) -> list[str]:
    with going.client.stream("GET", f"/v1/jobs/{going.id}/events") as events:
        return [json.loads(line[6:])["type"] for line in events.iter_lines() if line.startswith("data: ")]


def _by_a_socket(going: Going) -> list[str]:
    with going.socket_of() as socket:
        return [json.loads(frame)["type"] for frame in socket]


def _by_automatic1111(going: Going) -> list[str]:
    found = []
    while (told := going.client.get("/sdapi/v1/progress").json())["state"]["job"] == going.id:
        found.append("progress" if told["progress"] > 0.01 else "started")
        time.sleep(PAUSE)
    return [*found, "completed"]


@pytest.mark.parametrize("way", SUBMITS)
def test_followed_and_fetched_everywhere(live: Live, client: httpx.Client, way: str) -> None:
    """All who follow it see it go forward to its end; the picture is one, to the byte, wherever it is fetched."""
    follows = (_by_polling, _by_the_older_task_api, _by_events, _by_a_socket, _by_automatic1111)
    with ThreadPoolExecutor(len(follows) + 1) as threads:
        going = _begin(live, client, threads, way, STEPS)
        assert going.id in {job["id"] for job in client.get("/queue/status").json()["jobs"]}
        stories = [story.result(60) for story in [threads.submit(follow, going) for follow in follows]]
        told = going.told.result(60)
    for story in stories:
        assert story[0] in ("running", "PROGRESS", "progress", "started"), story
        assert story[-1] in ("succeeded", "SUCCESS", "completed"), story
    (filename,) = (image["filename"] for image in client.get(f"/v1/jobs/{going.id}").json()["images"])
    (address,) = client.get(f"/status/{going.id}").json()["result"]["images"]
    places = (
        f"/v1/jobs/{going.id}/result",
        f"/result/{going.id}",
        f"/image/{going.id}",
        f"/outputs/{filename}",
        address,
    )
    pictures = {client.get(place).content for place in places}
    assert told is None or told[0] == 200
    assert len(pictures | ({told[1]} if told else set())) == 1
    with Image.open(io.BytesIO(pictures.pop())) as picture:
        assert picture.size == (128, 128)
    assert client.get(f"/outputs/{filename}/thumbnail").status_code == 200


def _by_deleting(going: Going) -> None:
    assert going.client.delete(f"/v1/jobs/{going.id}").json() == {"cancelled": True}


def _by_posting(going: Going) -> None:
    assert going.client.post(f"/v1/jobs/{going.id}/cancel").json() == {"cancelled": True}


def _by_a_frame(going: Going) -> None:
    with going.socket_of() as socket:
        socket.send('{"type": "cancel"}')
        assert [json.loads(frame)["type"] for frame in socket][-1] == "cancelled"


def _by_interrupting(going: Going) -> None:
    assert going.client.post("/sdapi/v1/interrupt").json() == {}


def _by_skipping(going: Going) -> None:
    assert going.client.post("/sdapi/v1/skip").json() is None


@pytest.mark.parametrize("cancel", [_by_deleting, _by_posting, _by_a_frame, _by_interrupting, _by_skipping])
@pytest.mark.parametrize("way", SUBMITS)
def test_called_off_everywhere(live: Live, client: httpx.Client, way: str, cancel: Callable[[Going], None]) -> None:
    """Within a step; who waited is told so in the form of the API that was spoken, and so is who asks later."""
    with ThreadPoolExecutor(1) as threads:
        going = _begin(live, client, threads, way, steps=150)
        cancel(going)
        told = going.told.result(30)
    if told is not None:
        assert told[0] == 409
        assert b"cancelled" in told[1] or json.loads(told[1])["images"] == []
    assert client.get(f"/v1/jobs/{going.id}").json()["status"] == "cancelled"
    assert client.get(f"/status/{going.id}").json()["state"] == "FAILURE"
    assert client.get(f"/result/{going.id}").json()["code"] == "cancelled"
    assert _by_events(going) == ["cancelled"]
    assert client.get("/sdapi/v1/progress").json()["state"]["job_count"] == 0


def test_the_ways_in_are_all(live: Live, client: httpx.Client) -> None:
    """One recipe of all: the pictures are the same, but for what they say of their prompts' syntax."""
    fields = {"prompt": "a red circle", "width": 64, "height": 64, "steps": 3, "seed": 9}
    found: dict[str, bytes] = {}
    for way, submit in SUBMITS.items():
        told = submit(live, fields)
        if told is None:
            job = client.get("/v1/jobs", params={"limit": 1}).json()["data"][0]
            while (answer := client.get(job["links"]["result"])).status_code == 202:
                time.sleep(0.02)
            told = answer.status_code, answer.content
        with Image.open(io.BytesIO(told[1])) as picture:
            found[way] = picture.convert("RGB").tobytes()
    assert len(set(found.values())) == 1, found.keys()
