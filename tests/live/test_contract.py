"""What is promised of every answer, asked as somebody would who has read nothing but the contract."""

import base64
import io
import json
import re
import socket
import time
from typing import Any

import httpx
import pytest
from PIL import Image
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

from server import Live

SMALL: dict[str, Any] = {"prompt": "a lake", "width": 64, "height": 64, "steps": 2, "seed": 3}
MEMBERS = {"type": str, "title": str, "status": int, "detail": str, "code": str, "errors": list, "request_id": str}


def _is_problem(body: Any) -> bool:
    return {name: type(value) for name, value in body.items()} == MEMBERS


def _open(live: Live, path: str, **options: Any) -> ClientConnection:
    return connect(f"ws://127.0.0.1:{live.port}{path}", max_size=None, open_timeout=20, **options)


def _raw(live: Live, sent: bytes) -> tuple[str, httpx.Headers, bytes]:
    """The status line, headers and body that these bytes are answered with."""
    with socket.create_connection(("127.0.0.1", live.port), timeout=30) as raw:
        raw.sendall(sent)
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode("ascii").split("\r\n")
    return status, httpx.Headers([tuple(line.split(": ", 1)) for line in lines]), body  # type: ignore[misc]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/v1/jobs/nobodys", 404),
        ("GET", "/outputs/nobodys.png", 404),
        ("GET", "/download/nobodys.png", 404),
        ("GET", "/v1/images/nobodys/file", 404),
        ("GET", "/generate", 405),
        ("OPTIONS", "/generate", 405),
        ("POST", "/v1/models/load", 415),
        ("GET", "/v1/jobs?limit=0", 422),
    ],
)
def test_a_problem_has_all_of_its_members(client: httpx.Client, method: str, path: str, status: int) -> None:
    """``errors`` too where no field is wrong, so that nobody has to ask whether it is there."""
    answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert _is_problem(answer.json())
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/generate", "POST"),
        ("PUT", "/v1/jobs", "GET, HEAD, POST"),
        ("PATCH", "/v1/jobs/x", "DELETE, GET, HEAD"),
        ("DELETE", "/sdapi/v1/options", "GET, HEAD, POST"),
    ],
)
def test_a_refused_method_is_told_with_all_that_are_allowed(
    client: httpx.Client, method: str, path: str, allowed: str
) -> None:
    """Of every route of the path (RFC 9110, 10.2.1)."""
    answer = client.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


def test_dialects_tell_what_is_not_served_in_their_own_words(client: httpx.Client) -> None:
    """A client of theirs reads nothing else."""
    told = client.get("/v1/images/generations")
    assert (told.status_code, set(told.json()["error"])) == (405, {"message", "type", "param", "code"})
    for path, status in (("/sdapi/v1/txt2img", 405), ("/sdapi/v1/nothing", 404)):
        told = client.get(path)
        assert (told.status_code, set(told.json())) == (status, {"error", "detail", "body", "errors"})


def test_every_answer_of_a1111s_says_how_long_it_took(client: httpx.Client) -> None:
    """Lists as well."""
    for name in ("samplers", "sd-models", "options", "progress", "memory", "sd-modules", "cmd-flags"):
        assert re.fullmatch(r"\d+\.\d+", client.get(f"/sdapi/v1/{name}").headers["x-process-time"])


@pytest.mark.parametrize(("says", "is_shown"), [({}, False), ({"include_init_images": True}, True)])
def test_a1111s_echo_has_the_pictures_if_asked(client: httpx.Client, says: dict[str, Any], is_shown: bool) -> None:
    """Else they come back null."""
    fields = {"prompt": "a lake", "steps": 2, "width": 64, "height": 64, "init_images": [_blue()], **says}
    echo = client.post("/sdapi/v1/img2img", json=fields).json()["parameters"]
    assert echo["init_images"] == ([_blue()] if is_shown else None)


@pytest.mark.parametrize(
    "sent",
    [
        b"HELLO\r\n\r\n",
        b"GET /ping HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET /ping HTTP/1.1\r\nconnection: close\r\n\r\n",
        b"POST /generate HTTP/1.1\r\nhost: localhost\r\ncontent-length: x\r\n\r\n",
        (
            b"GET /v1/stream HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
            b"sec-websocket-version: 13\r\n\r\n"
        ),
    ],
)
def test_what_is_no_request_is_answered_like_one(live: Live, sent: bytes) -> None:
    """Below the application nothing is told otherwise than within it."""
    status, headers, body = _raw(live, sent)
    assert status == "HTTP/1.1 400 Bad Request"
    assert headers["content-type"] == "application/problem+json"
    problem = json.loads(body)
    assert _is_problem(problem)
    assert (problem["code"], problem["request_id"]) == ("malformed_request", headers["x-request-id"])


def test_sockets_have_request_ids_too(live: Live) -> None:
    """Those that are opened, and those that are turned away, with the answer that HTTP would have had."""
    with _open(live, "/v1/stream") as opened:
        assert opened.response is not None
        assert opened.response.headers["x-request-id"]
    with pytest.raises(InvalidStatus) as nowhere:
        _open(live, "/v1/nothing")
    with pytest.raises(InvalidStatus) as foreign:
        _open(live, "/v1/stream", origin="http://evil.example")
    with pytest.raises(InvalidStatus) as elsewhere:
        _open(live, "/v1/stream", additional_headers={"host": "evil.example"})
    for caught, status in ((nowhere, 404), (foreign, 403), (elsewhere, 400)):
        refused = caught.value.response
        assert refused.status_code == status
        assert refused.body is not None
        assert json.loads(refused.body)["request_id"] == refused.headers["x-request-id"]
    time.sleep(0.5)  # what is told of it would have been told by now
    assert not [line for line in live.log if "without completing handshake" in line]


@pytest.mark.parametrize("flag", ["binary", "detach"])
def test_flags_of_a_recipe_frame_are_true_or_false(live: Live, flag: str) -> None:
    """A number or a word is a bad first frame, not a no."""
    with _open(live, "/v1/stream") as opened:
        opened.send(json.dumps({**SMALL, flag: 1}))
        told = json.loads(opened.recv())
        assert (told["type"], [error["field"] for error in told["error"]["errors"]]) == ("failed", [flag])


@pytest.mark.parametrize(
    "fields",
    [
        {"num_inference_steps": None, "n": None, "sampler": None, "lora_path": None, "resolution": None},
        {"width": None, "height": None, "resolution": "64x64"},
    ],
)
def test_null_is_absent_under_every_name(client: httpx.Client, fields: dict[str, Any]) -> None:
    """Clients that write out all fields that they know say nothing twice."""
    assert client.post("/generate", json={**SMALL, **fields}).content == client.post("/generate", json=SMALL).content


def test_base64_may_have_lines(client: httpx.Client) -> None:
    """As ``base64`` in a shell and ``encodebytes`` write it."""
    broken = base64.encodebytes(base64.b64decode(_blue())).decode()
    fields = {"prompt": "a lake", "steps": 2, "seed": 1}
    one, other = (client.post("/generate", json={**fields, "image": image}) for image in (_blue(), broken))
    assert (one.status_code, one.content) == (200, other.content)


def test_the_header_tells_the_size(client: httpx.Client) -> None:
    """As one word beside the two numbers."""
    about = json.loads(client.post("/generate", json=SMALL).headers["x-generation-metadata"])
    assert (about["size"], about["width"], about["height"]) == ("64x64", 64, 64)


def test_each_mode_tells_its_defaults(client: httpx.Client) -> None:
    """They are what a recipe gets that names nothing."""
    told = client.get("/v1/capabilities").json()
    assert set(told["defaults"]) == set(told["modes"])
    assert {mode: default["strength"] for mode, default in told["defaults"].items()} == {
        "txt2img": None,
        "img2img": 0.75,
        "inpaint": 0.75,
    }
    whole = client.post("/v1/jobs", json={"prompt": "a lake"}).json()["recipe"]
    assert told["defaults"]["txt2img"].items() <= whole.items()


@pytest.mark.parametrize("strength", [0, 0.1])
def test_at_next_to_no_strength_the_picture_is_given_back(client: httpx.Client, strength: float) -> None:
    """Within the bounds there is no strength that cannot be painted, however few the steps are."""
    answer = client.post("/v1/img2img", json={"prompt": "a lake", "image": _blue(), "strength": strength, "steps": 4})
    assert answer.status_code == 200, answer.text
    red, green, blue = Image.open(io.BytesIO(answer.content)).convert("RGB").resize((1, 1)).getpixel((0, 0))  # type: ignore[misc]
    assert blue > 150 > max(red, green)


def _blue() -> str:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "blue").save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
