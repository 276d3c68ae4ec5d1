"""The safety checker from outside: what it sees is blocked, blurred or marked in every dialect, and nothing leaks."""

import base64
import io
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import checkerfiles
import httpx
import numpy as np
import openai
import pytest
from numpy.typing import NDArray
from PIL import Image
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from daguerre import imaging
from server import ROOT, Live, serving

BAD: dict[str, Any] = {"prompt": "a lake at midday", "seed": 7}
GOOD: dict[str, Any] = {"prompt": "a red circle on a blue background", "seed": 2}
SMALL: dict[str, Any] = {"width": 64, "height": 64, "steps": 6, "reproducible": True}
#: Two pictures, of which the second is the bad one.
PAIR: dict[str, Any] = {**SMALL, **BAD, "seed": 6, "count": 2}
JSON = {"accept": "application/json"}


def _pixels(data: bytes | str) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(base64.b64decode(data) if isinstance(data, str) else data)) as picture:
        return np.asarray(picture.convert("RGB"))


def _said(data: bytes) -> Any:
    """What a PNG says of the filters."""
    return json.loads(imaging.read_text(data)["daguerre"])["safety_filter_result"]


@pytest.fixture(scope="module")
def bad(live: Live) -> NDArray[np.uint8]:
    """The picture in which the checker is made to see something."""
    return _pixels(httpx.post(f"{live.address}/generate", json={**SMALL, **BAD}, timeout=60).content)


@pytest.fixture(scope="module")
def weights(live: Live, bad: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model and four checkers: one that sees that picture alone, a broken one, a slow one."""
    folder = tmp_path_factory.mktemp("weights")
    for name in ("demo-xl", "catalog.toml"):
        (folder / name).symlink_to(ROOT / "weights" / name)
    with live.ask() as client:
        others = [
            client.post("/generate", json=fields).content
            for fields in ({**SMALL, **GOOD}, {**SMALL, **PAIR, "count": 1})
        ]
    concept, threshold = checkerfiles.between(bad, *map(_pixels, others))
    checkers = folder / "safety-checkers"
    checkerfiles.write(checkers / "sharp", threshold, concept)
    checkerfiles.write(checkers / "slow", image_size=448, patch_size=4, num_hidden_layers=4)
    for name in ("cut", "cut-too"):
        path = checkerfiles.write(checkers / name, threshold, concept) / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-8])
    return folder


@contextmanager
def _checked(folder: Path, weights: Path, checker: str, **settings: str) -> Iterator[Live]:
    with serving(folder / "outputs", weights=str(weights), safety_checker=checker, **settings) as live:
        live.wait_ready()
        yield live


def _module_server(tmp_path_factory: pytest.TempPathFactory, weights: Path, action: str) -> Iterator[Live]:
    with _checked(tmp_path_factory.mktemp(action), weights, "sharp", safety_checker_action=action) as live:
        yield live
        assert live.stop() == 0


@pytest.fixture(scope="module")
def blocking(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Iterator[Live]:
    """A server that shows nothing of such pictures."""
    yield from _module_server(tmp_path_factory, weights, "block")


@pytest.fixture(scope="module")
def blurring(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Iterator[Live]:
    """A server that blurs them."""
    yield from _module_server(tmp_path_factory, weights, "blur")


@pytest.fixture(scope="module")
def flagging(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Iterator[Live]:
    """A server that says so of them."""
    yield from _module_server(tmp_path_factory, weights, "flag")


def _files(live: Live) -> list[Path]:
    return [path for path in live.outputs.rglob("*") if path.is_file()]


def _checks(live: Live, result: str) -> float:
    text = httpx.get(f"{live.address}/metrics").text
    name = f'daguerre_safety_checks_total{{result="{result}"}} '
    return float(next(line for line in text.splitlines() if line.startswith(name)).removeprefix(name))


def _frames(live: Live, fields: dict[str, Any]) -> list[dict[str, Any]]:
    """Every frame of a stream that was asked to show how the picture comes to be."""
    frames = []
    with connect(f"{live.address.replace('http', 'ws')}/v1/stream", max_size=None) as socket:
        socket.send(json.dumps({**SMALL, **fields, "preview_every": 1}))
        try:
            while True:
                frames.append(json.loads(socket.recv(timeout=30)))
        except ConnectionClosed:
            return frames


@pytest.mark.parametrize("fields", [{**SMALL, **BAD}, PAIR])
def test_a_blocked_picture_is_nowhere(blocking: Live, *, fields: dict[str, Any]) -> None:
    """The job fails with the reason; of several pictures one is enough, and no file of any is left."""
    before, files = _checks(blocking, "blocked"), _files(blocking)
    with blocking.ask() as client:
        answer = client.post("/generate", json=fields, headers=JSON)
        assert (answer.status_code, answer.json()["code"]) == (422, "image_refused")
        job = client.get("/v1/jobs").json()["data"][0]
        assert (job["status"], job["images"], job["error"]["code"]) == ("failed", [], "image_refused")
        assert job["safety_filter_result"] == "blocked"
        answer = client.get(f"/v1/jobs/{job['id']}/result")
        assert (answer.status_code, answer.json()["code"]) == (409, "image_refused")
    assert _checks(blocking, "blocked") == before + 1
    end = time.monotonic() + 10
    while _files(blocking) != files:  # those of its other pictures go when it has ended
        assert time.monotonic() < end
        time.sleep(0.02)
    line = next(json.loads(line) for line in reversed(blocking.log) if job["id"] in line)
    assert (line["status"], line["error"], line["safety_filter_result"]) == ("failed", "image_refused", "blocked")


def test_others_pass(blocking: Live, client: httpx.Client) -> None:
    """As they would have been, and they say so."""
    before = _checks(blocking, "passed")
    with blocking.ask() as checked:
        answer = checked.post("/generate", json={**SMALL, **GOOD})
    assert answer.status_code == 200
    assert (_pixels(answer.content) == _pixels(client.post("/generate", json={**SMALL, **GOOD}).content)).all()
    assert _said(answer.content) == "passed"
    assert json.loads(answer.headers["x-generation-metadata"])["safety_filter_result"] == "passed"
    assert _checks(blocking, "passed") == before + 1


@pytest.mark.parametrize(("fields", "last"), [(BAD, "failed"), (GOOD, "completed")])
def test_streams_show_nothing_before_the_check(blocking: Live, *, fields: dict[str, Any], last: str) -> None:
    """No previews; then the reason, or the picture. Server-sent events say the same."""
    *frames, end = _frames(blocking, fields)
    assert {frame["type"] for frame in frames} <= {"accepted", "queued", "started", "progress"}
    assert any(frame["type"] == "progress" for frame in frames)
    assert not any("image" in frame for frame in frames)
    assert (end["type"], "image" in end) == (last, last == "completed")
    if last == "failed":
        assert end["error"]["code"] == "image_refused"
        assert end["id"] is not None
        told = httpx.get(f"{blocking.address}/v1/jobs/{end['id']}/events").text
        assert "event: failed" in told
        assert "image_refused" in told


def _sdk(live: Live) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{live.address}/v1", api_key="unused", max_retries=0)


def _extra(fields: dict[str, Any]) -> dict[str, Any]:
    return {"steps": 6, "reproducible": True, "seed": fields["seed"]}


def test_openai_s_clients_know_a_blocked_picture(blocking: Live) -> None:
    """By the code that theirs has for it; in a stream as an event, with no partial image before it."""
    with _sdk(blocking) as sdk, pytest.raises(openai.BadRequestError) as caught:
        sdk.images.generate(prompt=BAD["prompt"], size="64x64", extra_body=_extra(BAD))
    assert (caught.value.code, caught.value.type) == ("content_policy_violation", "invalid_request_error")
    assert caught.value.response.headers["x-should-retry"] == "false"
    fields = {**_extra(BAD), "prompt": BAD["prompt"], "size": "64x64", "stream": True, "partial_images": 3}
    told = httpx.post(f"{blocking.address}/v1/images/generations", json=fields, timeout=60).text
    (event,) = [json.loads(line.removeprefix("data: ")) for line in told.splitlines() if line.startswith("data: ")]
    assert event["error"]["code"] == "content_policy_violation"
    fields |= {**_extra(GOOD), "prompt": GOOD["prompt"]}
    told = httpx.post(f"{blocking.address}/v1/images/generations", json=fields, timeout=60).text
    assert [line for line in told.splitlines() if line.startswith("event")] == ["event: image_generation.completed"]


def test_automatic1111_s_clients_get_an_error(blocking: Live) -> None:
    """With no picture in it, not a black one either."""
    with blocking.ask() as client:
        answer = client.post("/sdapi/v1/txt2img", json={**BAD, "width": 64, "height": 64, "steps": 6})
    assert answer.status_code == 422
    assert answer.json()["error"] == "ImageRefused"
    assert "images" not in answer.json()


def test_progress_shows_nothing_before_the_check(blocking: Live) -> None:
    """AUTOMATIC1111's clients ask for a picture on the way; there is none."""
    fields = {**GOOD, "width": 64, "height": 64, "steps": 60}
    seen: list[float] = []
    with blocking.ask() as client, ThreadPoolExecutor(1) as beside:
        painting = beside.submit(httpx.post, f"{blocking.address}/sdapi/v1/txt2img", json=fields, timeout=60)
        while not painting.done():
            told = client.get("/sdapi/v1/progress").json()
            assert told["current_image"] is None
            seen.append(told["progress"])
    assert painting.result().status_code == 200
    assert max(seen) > 0.05


def test_a_blurred_picture_is_all_that_there_is(blurring: Live, bad: NDArray[np.uint8]) -> None:
    """In the answer, the file, the result, the thumbnail and the stream; all of them say so."""
    expected = imaging.blurred(bad)
    assert (expected != bad).mean() > 0.3
    with blurring.ask() as client:
        job = client.post("/generate", json={**SMALL, **BAD}, headers=JSON).json()
        assert (job["status"], job["safety_filter_result"]) == ("succeeded", "blurred")
        (image,) = job["images"]
        assert image["safety_filter_result"] == "blurred"
        file = client.get(image["url"]).content
        assert file == base64.b64decode(image["b64"]) == client.get(f"/v1/jobs/{job['id']}/result").content
        assert (_pixels(file) == expected).all()
        assert _said(file) == "blurred"
        assert client.get(image["thumbnail_url"]).content == imaging.thumbnail(file)
    *frames, end = _frames(blurring, BAD)
    assert not any("image" in frame for frame in frames)
    assert (_pixels(end["image"]) == expected).all()
    for data in (path.read_bytes() for path in _files(blurring)):
        assert data == imaging.thumbnail(file) or (_pixels(data) == expected).all()
    assert _checks(blurring, "blurred") == 2


def test_of_several_only_those_are_blurred(blurring: Live, client: httpx.Client) -> None:
    """Each says what it is, and the job what the gravest of them is."""
    plain = client.post("/generate", json=PAIR, headers=JSON).json()
    with blurring.ask() as checked:
        job = checked.post("/generate", json=PAIR, headers=JSON).json()
    assert [image["safety_filter_result"] for image in job["images"]] == ["passed", "blurred"]
    assert job["safety_filter_result"] == "blurred"
    first, second = (_pixels(image["b64"]) for image in job["images"])
    assert (first == _pixels(plain["images"][0]["b64"])).all()
    assert (second == imaging.blurred(_pixels(plain["images"][1]["b64"]))).all()


def test_dialects_give_the_blurred_picture(blurring: Live, bad: NDArray[np.uint8]) -> None:
    """Where AUTOMATIC1111's answer has a word for filters, it says which."""
    with _sdk(blurring) as sdk:
        answer = sdk.images.generate(prompt=BAD["prompt"], size="64x64", extra_body=_extra(BAD))
    assert answer.data is not None
    assert (_pixels(str(answer.data[0].b64_json)) == imaging.blurred(bad)).all()
    with blurring.ask() as client:
        fields = {**BAD, "width": 64, "height": 64, "steps": 6}  # in another syntax: the last bit may be another
        told = client.post("/sdapi/v1/txt2img", json=fields).json()
    assert json.loads(told["info"])["extra_generation_params"] == {"Safety filter": "blurred"}
    assert np.abs(_pixels(told["images"][0]).astype(int) - imaging.blurred(bad)).max() < 3


def test_a_flagged_picture_is_as_it_was(flagging: Live, bad: NDArray[np.uint8]) -> None:
    """It says so, and may be seen on the way."""
    with flagging.ask() as client:
        answer = client.post("/generate", json={**SMALL, **BAD})
        assert (_pixels(answer.content) == bad).all()
        assert _said(answer.content) == "flagged"
        assert json.loads(answer.headers["x-generation-metadata"])["safety_filter_result"] == "flagged"
        assert client.get("/v1/jobs").json()["data"][0]["safety_filter_result"] == "flagged"
    *frames, end = _frames(flagging, BAD)
    assert any("image" in frame for frame in frames)
    assert end["job"]["images"][0]["safety_filter_result"] == "flagged"
    assert _checks(flagging, "flagged") == 2


def test_a_checker_that_cannot_be_read_closes(tmp_path: Path, weights: Path) -> None:
    """Nothing is shown, and asking again is worth while: once its file is whole, pictures come."""
    with _checked(tmp_path, weights, "cut") as live, live.ask() as client:
        answer = client.post("/generate", json={**SMALL, **GOOD})
        assert (answer.status_code, answer.json()["code"]) == (503, "safety_check_failed")
        assert answer.headers["retry-after"]
        assert str(weights) not in answer.text
        job = client.get("/v1/jobs").json()["data"][0]
        assert (job["status"], job["images"], job["safety_filter_result"]) == ("failed", [], "unchecked")
        with _sdk(live) as sdk, pytest.raises(openai.InternalServerError) as caught:
            sdk.images.generate(prompt=GOOD["prompt"], size="64x64", extra_body=_extra(GOOD))
        assert caught.value.response.headers["x-should-retry"] == "true"
        assert not any("image" in frame for frame in _frames(live, GOOD))
        assert _files(live) == []
        assert any("safety checker cut cannot be used: model.safetensors" in line for line in live.log)
        whole = weights / "safety-checkers" / "sharp" / "model.safetensors"
        shutil.copyfile(whole, weights / "safety-checkers" / "cut" / "model.safetensors")
        end = time.monotonic() + 30
        while (answer := client.post("/generate", json={**SMALL, **GOOD})).status_code == 503:
            assert time.monotonic() < end
            time.sleep(0.5)
        assert _said(answer.content) == "passed"


def test_a_checker_that_cannot_be_read_opens(tmp_path: Path, weights: Path) -> None:
    """Where that is the setting; pictures say that nobody has looked at them."""
    with _checked(tmp_path, weights, "cut-too", safety_checker_fails="open") as live, live.ask() as client:
        answer = client.post("/generate", json={**SMALL, **BAD})
        assert answer.status_code == 200
        assert _said(answer.content) == "unchecked"
        assert client.get("/v1/jobs").json()["data"][0]["safety_filter_result"] == "unchecked"
        assert _checks(live, "unchecked") == 1
        assert any("safety checker cut-too cannot be used: model.safetensors" in line for line in live.log)
        assert live.stop() == 0


@pytest.mark.parametrize(
    ("name", "told"),
    [("nobodys", "known ones: cut, "), ("stable-diffusion-safety-checker", "daguerre pull stable-diffusion-safety-")],
)
def test_a_checker_that_is_not_there_is_refused_at_the_start(
    tmp_path: Path, weights: Path, *, name: str, told: str
) -> None:
    """With what there is, or where to get it."""
    (tmp_path / "daguerre.toml").write_text(f"weights = '{weights}'\nsafety_checker = '{name}'\n")
    command = [sys.executable, "-m", "daguerre", "serve", "--port", "0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "setting 'safety_checker': " in done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_a_death_before_the_check_loses_nothing(tmp_path: Path, weights: Path) -> None:
    """While a slow checker looks at the first picture others are painted; after a kill all are painted again."""
    fields = [{**SMALL, **GOOD, "seed": seed} for seed in (1, 2)]
    with _checked(tmp_path, weights, "slow") as live, live.ask() as client:
        jobs = [client.post("/v1/jobs", json=each).json()["id"] for each in fields]
        end = time.monotonic() + 60
        while True:
            found = [client.get(f"/v1/jobs/{job}").json() for job in jobs]
            assert [job["status"] for job in found if job["status"] not in ("queued", "running")] == []
            if all(job["progress"]["fraction"] == 1 for job in found):
                break
            assert time.monotonic() < end
        assert _files(live) == []
        live.process.kill()
        live.process.wait()
    with _checked(tmp_path, weights, "slow") as live, live.ask() as client:
        end = time.monotonic() + 60
        while any(job["finished_at"] is None for job in client.get("/v1/jobs").json()["data"]):
            assert time.monotonic() < end
            time.sleep(0.1)
        found = client.get("/v1/jobs").json()["data"]
        told = [(job["status"], job["attempts"], job["safety_filter_result"]) for job in found]
        assert told == [("succeeded", 2, "passed")] * 2
        assert len(_files(live)) == 2
        assert live.stop() == 0
