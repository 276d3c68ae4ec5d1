"""Bad input: each row of what breaks servers gets its 4xx problem, never a 5xx and never a dropped connection."""

import base64
import io
import json
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from server import Live, serving

JSON = {"content-type": "application/json"}
SMALL: dict[str, Any] = {
    "prompt": "a red circle",
    "width": 64,
    "height": 64,
    "steps": 1,
    "guidance_scale": 1,
    "seed": 1,
}


def _problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text[:300]
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-request-id"]
    problem: dict[str, Any] = response.json()
    assert problem["code"] == code
    assert problem["status"] == status
    assert "Traceback" not in response.text
    assert "/home" not in response.text
    assert "0x" not in response.text
    return problem


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("seed", str(2**63)),
        ("seed", str(2**64)),
        ("seed", "-2"),
        ("seed", "9" * 5000),
        ("seed", "1.5"),
        ("seed", '"7"'),
        ("seed", "true"),
        ("steps", "0"),
        ("steps", "151"),
        ("steps", "20.0"),
        ("steps", "true"),
        ("steps", '"20"'),
        ("guidance_scale", "1e400"),
        ("guidance_scale", "NaN"),
        ("guidance_scale", "Infinity"),
        ("steps", "-Infinity"),
        ("seed", "NaN"),
        ("prompt", "NaN"),
        ("metadata", '{"a": [NaN]}'),
        ("guidance_scale", "-0.1"),
        ("guidance_scale", "30.5"),
        ("guidance_scale", '"7"'),
        ("guidance_scale", "false"),
        ("width", "63"),
        ("width", "100"),
        ("height", "4096"),
        ("count", "0"),
        ("count", "9"),
        ("n", "9"),
        ("format", '"gif"'),
        ("quality", "101"),
        ("scheduler", '"nope"'),
        ("style", '"nope"'),
        ("prompt", "7"),
        ("prompt", "null"),
        ("prompt", '""'),
        ("prompt", json.dumps("x" * 10_001)),
        ("prompt", r'"\ud800"'),
        ("negative_prompt", r'"\udfff"'),
        ("metadata", json.dumps({"a": "x" * 5000})),
        ("metadata", "[]"),
        ("reproducible", "1"),
        ("prompt_syntax", '"wild"'),
        ("clip_skip", "5"),
        ("mask", '"aGVsbG8="'),
        ("strength", "0.5"),
        ("image", '"aGVsbG8="'),
        ("image", '"not base64!"'),
        ("resolution", '"big"'),
        ("unknown", "1"),
    ],
)
def test_a_wrong_value_is_refused_by_its_field(client: httpx.Client, field: str, text: str) -> None:
    """422, and ``errors`` names the field as the client spelled it."""
    others = {name: value for name, value in SMALL.items() if name != field}
    body = json.dumps(others)[:-1] + f', "{field}": {text}}}'
    problem = _problem(client.post("/generate", content=body, headers=JSON), 422, "invalid_recipe")
    assert field in [error["field"] for error in problem["errors"]]


def test_all_wrong_fields_are_named_at_once(client: httpx.Client) -> None:
    """A person mends a recipe in one go."""
    response = client.post("/generate", json={**SMALL, "steps": 0, "seed": -5, "nope": 1})
    problem = _problem(response, 422, "invalid_recipe")
    assert {error["field"] for error in problem["errors"]} == {"steps", "seed", "nope"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"null",
        b'{"prompt": "a", "prompt": "b"}',
        b'{"prompt": "\xff"}',
        b'\xef\xbb\xbf{"prompt": "a"}',
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    ],
    ids=lambda body: repr(body[:20]),
)
def test_what_is_no_json_object_is_refused(client: httpx.Client, body: bytes) -> None:
    """400 for everything that is not one JSON object in UTF-8 with each key once."""
    _problem(client.post("/generate", content=body, headers=JSON), 400, "malformed_body")


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""]
)
def test_only_json_is_read(client: httpx.Client, content_type: str) -> None:
    """415 for what a web page of somebody else could send without asking; with its Origin it is 403 before that."""
    headers, body = {"content-type": content_type}, json.dumps(SMALL)
    _problem(client.post("/generate", content=body, headers=headers), 415, "unsupported_media_type")
    headers["origin"] = "https://evil.example"
    _problem(client.post("/generate", content=body, headers=headers), 403, "origin_not_allowed")


def test_an_unknown_model_is_told_with_the_known_ones(client: httpx.Client) -> None:
    """404 with the names that would work."""
    problem = _problem(client.post("/generate", json={**SMALL, "model": "../../etc"}), 404, "model_not_found")
    assert "demo-xl" in problem["detail"]


def test_a_field_under_two_names_is_refused(client: httpx.Client) -> None:
    """Neither of ``steps`` and ``num_inference_steps`` wins silently."""
    _problem(client.post("/generate", json={**SMALL, "num_inference_steps": 2}), 422, "invalid_recipe")


@pytest.mark.parametrize("has_length", [True, False])
def test_a_body_of_300_megabytes_is_refused_and_not_kept(live: Live, has_length: bool) -> None:
    """413 arrives at the client, and the server's memory stays where it was."""
    before = live.memory_peak()
    chunk = b"x" * (1 << 20)

    def body() -> Any:
        for _ in range(300):
            yield chunk

    headers = {**JSON, **({"content-length": str(300 << 20)} if has_length else {})}
    with live.ask() as client:
        _problem(client.post("/generate", content=body(), headers=headers), 413, "body_too_large")
    assert live.memory_peak() < before + 64 * 1024 * 1024


def test_a_client_that_asks_before_it_sends_need_not_send(live: Live) -> None:
    """``Expect: 100-continue`` with too long a body is answered at once."""
    with socket.create_connection(("127.0.0.1", live.port), timeout=5) as raw:
        raw.sendall(
            b"POST /generate HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            b"content-length: 999999999\r\nexpect: 100-continue\r\n\r\n"
        )
        assert raw.recv(65536).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("accept", ["text/html", "image/gif", "application/xml;q=1", "*/*;q=0", "image/png;q=x"])
def test_what_nobody_can_make_is_not_acceptable(client: httpx.Client, accept: str) -> None:
    """406 before anything is painted."""
    _problem(client.post("/generate", json=SMALL, headers={"accept": accept}), 406, "not_acceptable")


def test_several_pictures_need_json(client: httpx.Client) -> None:
    """A picture is one picture."""
    _problem(client.post("/generate", json={**SMALL, "count": 2}), 406, "not_acceptable")


@pytest.mark.parametrize(
    "prompt",
    ["🌅 sunset", "line\r\nX-Evil: 1", "nul\0nul", "\x1b[31mred\x1b[0m", "\u202egnp.exe", "山の夕日", "é" * 10_000],
    ids=["emoji", "crlf", "nul", "ansi", "bidi", "kanji", "long"],
)
def test_any_prompt_is_painted(live: Live, client: httpx.Client, prompt: str) -> None:
    """Whatever the text, the answer is a picture with sane headers, and no line of the log is forged."""
    said = len(live.log)
    response = client.post("/generate", json={**SMALL, "prompt": prompt, "prompt_syntax": "plain"})
    assert response.status_code == 200, response.text
    assert response.content.startswith(b"\x89PNG")
    assert "x-evil" not in response.headers
    assert len(response.headers["x-generation-metadata"]) <= 4096
    assert json.loads(response.headers["x-generation-metadata"])["model"] == "demo-xl"
    assert not any("\x1b" in line or line.startswith("X-Evil") for line in live.log[said:])


@pytest.mark.parametrize("host", ["evil.example", "x/#@localhost", "localhost.evil.example", "a b", "localhost@evil"])
def test_other_host_names_are_not_ours(live: Live, host: str) -> None:
    """A page cannot rebind a name of its own to this server."""
    with socket.create_connection(("127.0.0.1", live.port), timeout=5) as raw:
        raw.sendall(f"GET /ping HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode())
        assert raw.recv(65536).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1", "[::1]:80", "192.168.1.9:8000"])
def test_our_own_names_are(client: httpx.Client, host: str) -> None:
    """localhost and any address, with or without a port."""
    assert client.get("/ping", headers={"host": host}).status_code == 200


def test_request_ids_are_kept_if_they_can_be_logged(client: httpx.Client) -> None:
    """A sane one is echoed, another replaced."""
    assert client.get("/ping", headers={"x-request-id": "abc-1.2_3"}).headers["x-request-id"] == "abc-1.2_3"
    for bad in ("x" * 65, "a b", "a;b", ""):
        assert client.get("/ping", headers={"x-request-id": bad}).headers["x-request-id"] != bad


def test_wrong_routes_and_methods(client: httpx.Client) -> None:
    """404 and 405 are problems too, and 405 says what would be allowed."""
    _problem(client.get("/nope"), 404, "not_found")
    _problem(client.get("/ping/"), 404, "not_found")
    response = client.get("/generate")
    _problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize(
    "name",
    [
        "%2e%2e",
        "..%2f..%2fetc%2fpasswd",
        "..%5c..%5cwindows",
        "a%00b",
        "x" * 300,
        "C:",
        "link",
        "folder",
        "CON",
        ".",
    ],
)
@pytest.mark.parametrize("path", ["/outputs/{}", "/download/{}", "/v1/images/{}/file"])
def test_no_name_leads_out_of_the_outputs(live: Live, client: httpx.Client, path: str, name: str) -> None:
    """Only names that the server gave out are files; a link and a folder of the right place are not."""
    (live.outputs / "folder").mkdir(exist_ok=True)
    if not (live.outputs / "link").exists():
        (live.outputs / "link").symlink_to("/etc/passwd")
    _problem(client.get(path.format(name)), 404, "not_found")


@pytest.mark.parametrize(
    "ranges",
    [
        "bytes=0-9",
        "bytes=" + ",".join(f"{i}-{i}" for i in range(2000)),
        "bytes=-1",
        "bytes=9" + "9" * 3000 + "-",
        "lines=1",
    ],
    ids=["plain", "many", "suffix", "huge", "unit"],
)
def test_ranges_break_nothing(client: httpx.Client, ranges: str) -> None:
    """Range headers are answered below 500."""
    client.post("/generate", json=SMALL)
    job = client.post("/generate", json=SMALL, headers={"accept": "application/json"}).json()
    assert client.get(job["images"][0]["url"], headers={"range": ranges}).status_code < 500


@pytest.mark.parametrize("prompt", ["(" * 5000, "(" * 5000 + "a" + ")" * 5000, "word\x0b", "a\x0c(b)1.2"])
def test_prompts_that_compel_cannot_read(client: httpx.Client, prompt: str) -> None:
    """Some were a failure of the model, with a traceback in the log: here they are painted, or wrong by their field."""
    response = client.post("/generate", json={**SMALL, "prompt": prompt})
    if response.status_code != 200:
        problem = _problem(response, 422, "invalid_recipe")
        assert [error["field"] for error in problem["errors"]] == ["prompt"]


@pytest.mark.parametrize("path", ["/generate", "/v1/models/load", "/v1/loras/load", "/v1/images/generations"])
@pytest.mark.parametrize("key", [r"\ud800", r"a\udfff"])
def test_a_key_that_is_half_a_character(client: httpx.Client, path: str, key: str) -> None:
    """Could not be told again: such a key was a 500 where keys are named in the answer."""
    response = client.post(path, content=f'{{"prompt": "a", "{key}": 1}}', headers=JSON)
    assert response.status_code == 400, response.text
    assert "malformed_body" in response.text


@pytest.mark.parametrize("value", ["1e400", "-1e400", '"\\ud800"', '{"a": [1e400]}', '{"a": "\\udfff"}', "9" * 5000])
def test_what_automatic1111_would_tell_again(client: httpx.Client, value: str) -> None:
    """Its answers repeat the request: what JSON cannot spell was a 500 after the picture had been painted."""
    body = f'{{"prompt": "a", "width": 64, "height": 64, "steps": 1, "unknown": {value}}}'
    response = client.post("/sdapi/v1/txt2img", content=body, headers=JSON)
    assert response.status_code == 422, response.text
    assert "unknown" in response.json()["detail"]


def test_uploads_of_jobs_that_wait_take_little_memory(tmp_path: Path) -> None:
    """A small file can be a large picture, and a queue is long: what a job holds is no larger than what it paints."""
    file = io.BytesIO()
    Image.new("L", (4096, 4096), 90).save(file, "PNG")
    fields = {**SMALL, "image": base64.b64encode(file.getvalue()).decode(), "strength": 1.0}
    with serving(tmp_path / "outputs", max_runs="1") as live, live.ask() as client:
        live.wait_ready()
        client.post("/generate", json=fields).raise_for_status()
        client.post("/v1/jobs", json={"prompt": "a forest", "steps": 150}).raise_for_status()
        before = live.memory_peak()
        for _ in range(5):  # 64 MB each, and as much for the mask
            client.post("/v1/jobs", json={**fields, "mask": fields["image"]}).raise_for_status()
        assert client.get("/queue/status").json()["size"] >= 5
        assert live.memory_peak() < before + 256 * 1024 * 1024


_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=30),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
)
_NAMES = st.sampled_from(
    [
        "prompt",
        "negative_prompt",
        "model",
        "seed",
        "guidance_scale",
        "count",
        "scheduler",
        "format",
        "quality",
        "style",
        "resolution",
        "sampler",
        "n",
        "metadata",
        "reproducible",
        "clip_skip",
        "prompt_syntax",
        "image",
        "mask",
        "x",
    ]
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fields=st.dictionaries(_NAMES, _VALUES, max_size=4))
def test_random_recipes_are_painted_or_refused(client: httpx.Client, fields: dict[str, Any]) -> None:
    """Whatever the fields: a picture, or a problem that says what is wrong."""
    response = client.post("/generate", json={**SMALL, **fields})
    if response.status_code != 200:
        assert response.status_code in (400, 404, 406, 422), response.text
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["request_id"] == response.headers["x-request-id"]
