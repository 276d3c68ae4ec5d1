"""Moderation from outside: a prompt that matches a rule is refused in every dialect, before anything is queued."""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from websockets.sync.client import connect

from server import Live, serving

RULES = "[gore]\nwords = ['gore']\npatterns = ['behead(ed|ing)?']\n"
FIELDS: dict[str, Any] = {"width": 64, "height": 64, "steps": 2}
REFUSED = "a castle, much g0re"


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of rules, which a test may break and must mend."""
    path = tmp_path_factory.mktemp("rules") / "rules.toml"
    path.write_text(RULES)
    return path


@pytest.fixture(scope="module")
def moderated(tmp_path_factory: pytest.TempPathFactory, rules: Path) -> Iterator[Live]:
    """A server with these rules."""
    with serving(tmp_path_factory.mktemp("moderated") / "outputs", moderation_rules=str(rules)) as live:
        live.wait_ready()
        yield live
        assert live.stop() == 0


@pytest.mark.parametrize("path", ["/generate", "/v1/txt2img", "/v1/jobs", "/generate/queue"])
def test_native_routes_refuse(moderated: Live, path: str) -> None:
    """422 with the category, and no job."""
    before = httpx.get(f"{moderated.address}/v1/jobs").json()["data"]
    answer = httpx.post(moderated.address + path, json={**FIELDS, "prompt": REFUSED})
    assert (answer.status_code, answer.json()["code"]) == (422, "prompt_refused")
    assert "gore" in answer.json()["detail"]
    assert httpx.get(f"{moderated.address}/v1/jobs").json()["data"] == before


def test_dialects_refuse(moderated: Live) -> None:
    """In their own words."""
    answer = httpx.post(f"{moderated.address}/v1/images/generations", json={"prompt": REFUSED, "size": "64x64"})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "content_policy_violation"
    assert "gore" in answer.json()["error"]["message"]
    assert answer.json()["error"]["type"] == "invalid_request_error"
    answer = httpx.post(f"{moderated.address}/sdapi/v1/txt2img", json={**FIELDS, "prompt": "(g(o)re:1.2)"})
    assert answer.status_code == 422
    assert "gore" in answer.text


def test_streams_refuse(moderated: Live) -> None:
    """A failed frame, and the end."""
    with connect(moderated.address.replace("http", "ws") + "/v1/stream") as socket:
        socket.send(json.dumps({**FIELDS, "prompt": REFUSED}))
        assert json.loads(socket.recv())["error"]["code"] == "prompt_refused"


def test_others_are_painted_and_say_so(moderated: Live, client: httpx.Client) -> None:
    """What must not be in the picture may be named; without rules a job says nothing."""
    fields = {**FIELDS, "prompt": "a lake", "negative_prompt": "gore"}
    headers = {"accept": "application/json"}
    job = httpx.post(f"{moderated.address}/generate", json=fields, headers=headers, timeout=60).json()
    assert (job["status"], job["safety_filter_result"]) == ("succeeded", "passed")
    with Image.open(io.BytesIO(base64.b64decode(job["images"][0]["b64"]))) as picture:
        assert json.loads(picture.text["daguerre"])["safety_filter_result"] == "passed"  # type: ignore[attr-defined]
    job = client.post("/generate", json=fields, headers=headers).json()
    assert (job["status"], job["safety_filter_result"]) == ("succeeded", None)


def test_a_file_that_breaks_closes(moderated: Live, rules: Path) -> None:
    """Until it is mended; nothing of it is told to clients."""
    fields = {**FIELDS, "prompt": "a lake"}
    rules.write_text("canary [")
    try:
        answer = httpx.post(f"{moderated.address}/v1/jobs", json=fields)
        assert (answer.status_code, answer.json()["code"]) == (503, "moderation_failed")
        assert answer.headers["retry-after"]
        assert "canary" not in answer.text
        assert str(rules.parent) not in answer.text
    finally:
        rules.write_text(RULES)
    assert httpx.post(f"{moderated.address}/v1/jobs", json=fields).status_code == 202
