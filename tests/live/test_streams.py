"""Jobs followed as they happen: by a plain ``websockets`` script and by server-sent events."""

import base64
import contextlib
import io
import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from server import Live, serving

SMALL: dict[str, Any] = {"prompt": "a lake", "width": 64, "height": 64, "steps": 4, "seed": 3}
LONG: dict[str, Any] = {"prompt": "a forest", "width": 256, "height": 256, "steps": 150, "seed": 1}


def _open(live: Live, path: str = "/v1/stream", **options: Any) -> ClientConnection:
    return connect(f"ws://127.0.0.1:{live.port}{path}", max_size=None, open_timeout=20, **options)


def _rest(socket: ClientConnection) -> list[Any]:
    """Every frame up to the end, JSON decoded."""
    frames: list[Any] = []
    try:
        while True:
            frame = socket.recv(timeout=30)
            frames.append(json.loads(frame) if isinstance(frame, str) else frame)
    except ConnectionClosed:
        return frames


@pytest.mark.parametrize("path", ["/stream/generate/txt2img", "/v1/stream", "/api/v1/stream"])
def test_a_picture_with_its_progress(live: Live, client: httpx.Client, path: str) -> None:
    """Accepted, then forward step by step, then the picture, which is that of the synchronous route."""
    with _open(live, path) as socket:
        socket.send(json.dumps(SMALL))
        frames = _rest(socket)
        assert socket.close_code == 1000
    types = [frame["type"] for frame in frames]
    assert types[0] == "accepted"
    assert types[-1] == "completed"
    assert set(types) <= {"accepted", "queued", "started", "progress", "completed"}
    steps = [frame["step"] for frame in frames if frame["type"] == "progress"]
    assert steps == sorted(set(steps))
    assert all(0 < frame["fraction"] <= 1 and frame["eta_s"] >= 0 for frame in frames if frame["type"] == "progress")
    picture = base64.b64decode(frames[-1]["image"])
    assert picture == client.post("/generate", json=SMALL).content
    assert frames[-1]["job"]["status"] == "succeeded"


def test_binary_frames(live: Live, client: httpx.Client) -> None:
    """Each picture in a frame of its own, behind the one that announces them."""
    same = {**SMALL, "reproducible": True}
    with _open(live) as socket:
        socket.send(json.dumps({**same, "count": 2, "binary": True}))
        *_, told, first, second = _rest(socket)
    assert told["type"] == "completed"
    assert "image" not in told
    assert first == client.post("/generate", json=same).content
    assert second == client.post("/generate", json={**same, "seed": 4}).content


def test_cancel_by_a_frame(live: Live, client: httpx.Client) -> None:
    """Frames that mean nothing change nothing; one that calls the job off ends it."""
    with _open(live) as socket:
        socket.send(json.dumps(LONG))
        job_id = json.loads(socket.recv())["job"]["id"]
        for noise in ("", "[]", "{", '{"type": 3}', '{"type": "else"}', "[" * 100_000):
            socket.send(noise)
        socket.send(b"\0\1")
        while json.loads(socket.recv(timeout=30))["type"] != "progress":
            pass
        socket.send(json.dumps({"type": "cancel"}))
        assert _rest(socket)[-1] == {
            "type": "cancelled",
            "id": job_id,
            "error": {"code": "cancelled", "message": "The job was cancelled."},
        }
    assert client.get(f"/v1/jobs/{job_id}").json()["status"] == "cancelled"


@pytest.mark.parametrize("is_detached", [False, True])
def test_closing_the_socket(live: Live, client: httpx.Client, is_detached: bool) -> None:
    """Calls the job off, unless it was detached."""
    fields = {**LONG, "steps": 12} if is_detached else LONG
    with _open(live) as socket:
        socket.send(json.dumps({**fields, "detach": is_detached}))
        job_id = json.loads(socket.recv())["job"]["id"]
    end = time.monotonic() + 40
    while (job := client.get(f"/v1/jobs/{job_id}").json())["finished_at"] is None:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert job["status"] == ("succeeded" if is_detached else "cancelled")


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ("", "malformed_body"),
        ("no json", "malformed_body"),
        ("[1]", "malformed_body"),
        ("[" * 100_000, "malformed_body"),
        (b"\0\1", "malformed_body"),
        ('{"prompt": "a", "prompt": "b"}', "malformed_body"),
        ('{"prompt": "a", "steps": NaN}', "invalid_recipe"),
        ("{}", "invalid_recipe"),
        ('{"prompt": "a", "steps": 0}', "invalid_recipe"),
        ('{"prompt": "a", "unknown": 0}', "invalid_recipe"),
        ('{"prompt": "\\ud800"}', "invalid_recipe"),
        ('{"prompt": "a", "model": "nobodys"}', "model_not_found"),
        ('{"prompt": "a", "image": "…"}', "invalid_recipe"),
    ],
)
def test_a_bad_first_frame(live: Live, frame: str | bytes, code: str) -> None:
    """Is told what is wrong with it, with close code 1008."""
    with _open(live) as socket:
        socket.send(frame)
        (failed,) = _rest(socket)
        assert (failed["type"], failed["error"]["code"]) == ("failed", code)
        assert socket.close_code == 1008


def test_pages_of_other_sites_are_turned_away(live: Live) -> None:
    """Browsers send where a page comes from; scripts send nothing."""
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1"):
        with pytest.raises(InvalidStatus) as caught:
            _open(live, origin=origin)  # type: ignore[arg-type]
        assert caught.value.response.status_code == 403
    with _open(live, origin=f"http://127.0.0.1:{live.port}") as socket:  # type: ignore[arg-type]
        socket.send("{}")
        assert len(_rest(socket)) == 1


def test_whoever_sends_nothing_is_closed(live: Live) -> None:
    """After the time in which a request has to arrive."""
    with _open(live) as socket:
        began = time.monotonic()
        assert _rest(socket) == []
        assert time.monotonic() - began < 15


def test_a_job_followed_by_many(live: Live, client: httpx.Client) -> None:
    """Over sockets and by server-sent events, early and late: each is told the end."""
    job_id = client.post("/v1/jobs", json={**LONG, "steps": 12}).json()["id"]
    last: list[str] = []

    def by_socket() -> None:
        with _open(live, f"/v1/jobs/{job_id}/events") as socket:
            last.append(_rest(socket)[-1]["type"])

    def by_events() -> None:
        last.append(_events(client, job_id)[-1]["type"])

    threads = [threading.Thread(target=each) for each in (by_socket, by_events) * 5]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join(40)
    by_socket()
    by_events()
    assert last == ["completed"] * 12


def _events(client: httpx.Client, job_id: str, **headers: str) -> list[dict[str, Any]]:
    with client.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = list(answer.iter_lines())
    return [
        {**json.loads(line.removeprefix("data: ")), "event": lines[at - 1], "name": lines[at - 2].removeprefix("id: ")}
        for at, line in enumerate(lines)
        if line.startswith("data: ")
    ]


def test_events_are_not_told_twice(client: httpx.Client) -> None:
    """A client that comes back says what it heard last."""
    job_id = client.post("/v1/jobs", json=SMALL).json()["id"]
    events = _events(client, job_id)
    assert events[-1]["event"] == "event: completed"
    assert len({event["name"] for event in events}) == len(events)
    assert _events(client, job_id, **{"last-event-id": events[-1]["name"]}) == []
    (again,) = _events(client, job_id, **{"last-event-id": "whatever"})
    assert again["job"]["id"] == job_id


def test_a_follower_that_leaves_changes_nothing(live: Live, client: httpx.Client) -> None:
    """The job goes on."""
    job_id = client.post("/v1/jobs", json={**LONG, "steps": 10}).json()["id"]
    with _open(live, f"/v1/jobs/{job_id}/events") as socket:
        socket.recv()
    assert _events(client, job_id)[-1]["type"] == "completed"


@pytest.mark.parametrize("job_id", ["00000000-0000-7000-8000-000000000000", "x"])
def test_following_nobody(live: Live, client: httpx.Client, job_id: str) -> None:
    """Is told so."""
    with _open(live, f"/v1/jobs/{job_id}/events") as socket:
        (failed,) = _rest(socket)
        assert failed["error"]["code"] == "job_not_found"
    assert client.get(f"/v1/jobs/{job_id}/events").status_code == 404


def test_stopping_while_sockets_are_open(tmp_path: Any) -> None:
    """Each hears of its job's end, and the server ends in its time."""
    with serving(tmp_path / "outputs", grace_timeout="1") as live, contextlib.ExitStack() as stack:
        live.wait_ready()
        sockets = [stack.enter_context(_open(live)) for _ in range(3)]
        for socket in sockets:
            socket.send(json.dumps(LONG))
            assert json.loads(socket.recv())["type"] == "accepted"
        assert live.stop() == 0
        for socket in sockets:
            _rest(socket)
            assert socket.close_code in (1000, 1012)


def test_previews_on_request(live: Live, client: httpx.Client) -> None:
    """Small JPEGs at the steps asked for, over a socket as by server-sent events; the picture is the same."""
    fields = {**SMALL, "width": 128, "height": 128, "steps": 12}
    with _open(live) as socket:
        socket.send(json.dumps({**fields, "preview_every": 4}))
        frames = _rest(socket)
    shown = [frame for frame in frames if frame["type"] == "progress" and "image" in frame]
    assert 1 <= len(shown) <= 2  # at the steps 4 and 8; a slow reader may be told of both at once
    for frame in shown:
        with Image.open(io.BytesIO(base64.b64decode(frame["image"]))) as preview:
            assert (preview.format, preview.size) == ("JPEG", (16, 16))
    assert base64.b64decode(frames[-1]["image"]) == client.post("/generate", json=fields).content
    job_id = client.post("/v1/jobs", json={**fields, "steps": 40, "preview_every": 1}).json()["id"]
    events = _events(client, job_id)
    assert any("image" in event for event in events if event["type"] == "progress")
    assert "image" not in events[-1]


def test_what_was_heard_by_an_address(client: httpx.Client) -> None:
    """Browsers' EventSource cannot send the header when it first connects."""
    job_id = client.post("/v1/jobs", json=SMALL).json()["id"]
    last = _events(client, job_id)[-1]
    answer = client.get(f"/v1/jobs/{job_id}/events", params={"since": last["name"]})
    assert (answer.status_code, answer.text) == (200, "")


def test_whoever_stops_reading_is_cut_off(live: Live, client: httpx.Client) -> None:
    """After eight seconds in which nothing was taken; everybody else is served meanwhile, and slow is not stuck."""
    # Noise, since that is what makes a picture's file large: more than is held for a connection.
    noise = io.BytesIO()
    Image.effect_noise((512, 512), 250).convert("RGB").save(noise, "PNG", compress_level=1)
    fields = {
        "prompt": "sand",
        "image": base64.b64encode(noise.getvalue()).decode(),
        "strength": 0.5,
        "steps": 2,
    }
    job_id = client.post("/v1/jobs", json=fields).json()["id"]
    assert _events(client, job_id)[-1]["type"] == "completed"
    (image,) = client.get(f"/v1/jobs/{job_id}").json()["images"]
    size = 2 * image["bytes"] * 4 // 3  # the last frame has it twice, in base64
    assert size > 1_000_000
    with (
        _raw_socket(live, f"/v1/jobs/{job_id}/events") as stuck,
        _raw_socket(live, f"/v1/jobs/{job_id}/events") as slow,
    ):
        began, taken = time.monotonic(), 0
        while time.monotonic() - began < 13:
            assert client.get("/ping").status_code == 200
            taken += len(slow.recv(20_000))
            time.sleep(0.1)
        # What the system had taken over is still delivered, and then nothing more comes.
        assert 0 < _read(stuck) < size < taken + _read(slow, size)


def _read(raw: socket.socket, most: int = 1 << 30) -> int:
    """How many bytes come until the end, or until there are so many. Who is cut off is told so by a reset."""
    taken = 0
    with contextlib.suppress(ConnectionResetError):
        while taken < most and (part := raw.recv(1 << 20)):
            taken += len(part)
    return taken


def _raw_socket(live: Live, path: str) -> socket.socket:
    """A WebSocket of which nothing is read unless the test does so."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.settimeout(30)
    raw.connect(("127.0.0.1", live.port))
    key = base64.b64encode(b"0123456789abcdef").decode()
    raw.sendall(
        f"GET {path} HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
        f"sec-websocket-version: 13\r\nsec-websocket-key: {key}\r\n\r\n".encode()
    )
    return raw


def test_a_stream_may_last_longer_than_a_request_may_take_to_come(tmp_path: Path) -> None:
    """The deadline for receiving ends with the handshake."""
    with serving(tmp_path / "outputs", receive_timeout="1") as live:
        live.wait_ready()
        with _open(live) as socket:
            socket.send(json.dumps(LONG))
            end = time.monotonic() + 3
            while time.monotonic() < end:
                assert json.loads(socket.recv(timeout=30))["type"] != "failed"
