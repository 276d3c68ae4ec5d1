"""What comes out: bytes, headers, files and what they say of their making."""

import base64
import hashlib
import io
import json
import re
from typing import Any

import httpx
import pytest
from PIL import Image

from server import ROOT, Live

FIELDS: dict[str, Any] = {"prompt": "a red circle", "width": 64, "height": 64, "steps": 2, "seed": 11}


def test_a_picture_with_all_that_belongs_to_it(live: Live, client: httpx.Client) -> None:
    """The PNG decodes, carries its recipe, is in the outputs under its name, and the headers say how it was made."""
    response = client.post("/generate", json={**FIELDS, "negative_prompt": "blue, green"})
    assert response.headers["content-type"] == "image/png"
    with Image.open(io.BytesIO(response.content)) as image:
        assert image.size == (64, 64)
        text = dict(image.text)  # type: ignore[attr-defined]
    assert text["parameters"].startswith(
        "a red circle\nNegative prompt: blue, green\nSteps: 2, Sampler: Euler, CFG scale: 5,"
    )
    assert "Seed: 11, Size: 64x64, Model: demo-xl" in text["parameters"]
    assert json.loads(text["daguerre"])["seed"] == 11
    assert set(text) == {"parameters", "daguerre"}

    assert response.headers["x-seed"] == "11"
    about = json.loads(response.headers["x-generation-metadata"])
    assert (about["model"], about["steps"], about["width"]) == ("demo-xl", 2, 64)
    phases = re.findall(r"(\w+);dur=[\d.]+", response.headers["server-timing"])
    assert phases == ["queue", "encode", "denoise", "decode", "png"]

    short = response.headers["x-job-id"].replace("-", "")[-8:]
    (path,) = live.outputs.glob(f"*_{short}.png")
    assert re.fullmatch(rf"\d{{8}}_\d{{6}}_demo-xl_{short}\.png", path.name)
    assert path.read_bytes() == response.content
    assert client.get(f"/outputs/{path.name}").content == response.content
    for secret in (str(ROOT), str(live.outputs), "localhost", "127.0.0.1"):
        assert secret.encode() not in response.content


def test_thumbnails(live: Live, client: httpx.Client) -> None:
    """A job names them; they are small, and only of pictures that the server gave out."""
    fields = {**FIELDS, "width": 512, "height": 256, "count": 2, "format": "webp"}
    job = client.post("/generate", json=fields, headers={"accept": "application/json"}).json()
    for image in job["images"]:
        answers = [client.get(image["thumbnail_url"]) for _ in range(2)]
        assert [answer.headers["content-type"] for answer in answers] == ["image/webp"] * 2
        assert answers[0].content == answers[1].content
        with Image.open(io.BytesIO(answers[0].content)) as small:
            assert small.size == (256, 128)
        assert b"red circle" not in answers[0].content
        (live.outputs / image["filename"]).unlink()
        assert client.get(image["thumbnail_url"]).status_code == 404
    for name in ("missing.png", "..%2fa.png", ".thumbnails", "%2e%2e"):
        assert client.get(f"/outputs/{name}/thumbnail").status_code == 404


def test_same_seed_same_bytes_other_seed_other_bytes(client: httpx.Client) -> None:
    """The picture is a function of its recipe."""
    one, same, other = (client.post("/generate", json={**FIELDS, "seed": seed}).content for seed in (5, 5, 6))
    assert one == same
    assert one != other


@pytest.mark.parametrize("seed", [None, -1])
def test_a_random_seed_is_told_and_can_be_used_again(client: httpx.Client, seed: int | None) -> None:
    """Below 2**32, so that every tool can hold it."""
    first = client.post("/generate", json={**FIELDS, "seed": seed})
    told = int(first.headers["x-seed"])
    assert 0 <= told < 2**32
    assert client.post("/generate", json={**FIELDS, "seed": told}).content == first.content


def test_the_largest_seed_works(client: httpx.Client) -> None:
    """2**63 - 1 alone; with a second picture its seed would not exist."""
    assert client.post("/generate", json={**FIELDS, "seed": 2**63 - 1}).status_code == 200
    refused = client.post(
        "/generate", json={**FIELDS, "seed": 2**63 - 1, "count": 2}, headers={"accept": "application/json"}
    )
    assert refused.status_code == 422


def test_several_pictures_as_json(client: httpx.Client) -> None:
    """Picture i is the picture of seed + i; the job has all that the contract says."""
    request = {**FIELDS, "count": 3, "metadata": {"mine": [1, 2]}, "reproducible": True}
    job = client.post("/generate", json=request, headers={"accept": "application/json"}).json()
    assert job["id"] == job["request_id"]
    assert job["status"] == "succeeded"
    assert job["metadata"] == {"mine": [1, 2]}
    assert job["created_at"] <= job["started_at"] <= job["finished_at"]
    assert [image["seed"] for image in job["images"]] == [11, 12, 13]
    for image in job["images"]:
        data = base64.b64decode(image["b64"])
        assert hashlib.sha256(data).hexdigest() == image["sha256"]
        assert len(data) == image["bytes"]
        assert client.get(image["url"]).content == data
        alone = client.post("/generate", json={**FIELDS, "seed": image["seed"], "reproducible": True}).content
        with Image.open(io.BytesIO(alone)) as one, Image.open(io.BytesIO(data)) as other:
            assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize(
    ("asked", "accept", "got"),
    [
        (None, "*/*", "image/png"),
        (None, "image/*", "image/png"),
        (None, "image/webp", "image/webp"),
        (None, "image/webp;q=0.1, image/jpeg", "image/jpeg"),
        ("jpeg", "*/*", "image/jpeg"),
        ("webp", "text/html, image/*;q=0.5", "image/webp"),
        ("png", "application/json;q=0.1, image/png", "image/png"),
    ],
)
def test_the_format_follows_the_body_and_the_accept_header(
    client: httpx.Client, asked: str | None, accept: str, got: str
) -> None:
    """PNG unless one of them says otherwise."""
    response = client.post("/generate", json={**FIELDS, "format": asked}, headers={"accept": accept})
    assert response.headers["content-type"] == got
    with Image.open(io.BytesIO(response.content)) as image:
        assert f"image/{(image.format or '').lower()}" == got


def test_other_names_for_fields(client: httpx.Client) -> None:
    """What other tools call steps, size and scheduler."""
    plain = client.post("/generate", json={**FIELDS, "scheduler": "ddim"}).content
    named = {"prompt": "a red circle", "resolution": "64x64", "num_inference_steps": 2, "seed": 11, "sampler": "ddim"}
    assert client.post("/api/v1/generate/txt2img", json=named).content == plain


def test_from_an_image_and_into_one(client: httpx.Client) -> None:
    """Image-to-image keeps the size, inpainting keeps what the mask does not name, and the routes insist on theirs."""
    red = base64.b64encode(_png((200, 30, 30), (96, 64))).decode()
    right = Image.new("L", (96, 64), 0)
    right.paste(255, (48, 0, 96, 64))
    mask = base64.b64encode(_saved(right)).decode()
    fields = {"prompt": "a blue background", "steps": 6, "seed": 1, "image": f"data:image/png;base64,{red}"}

    near = _mean(client.post("/v1/img2img", json={**fields, "strength": 0.2}).content)
    far = _mean(client.post("/v1/img2img", json={**fields, "strength": 1.0}).content)
    assert near[0] > near[2]  # still red
    assert far[2] > near[2]  # on the way to blue

    painted = client.post("/v1/inpaint", json={**fields, "mask": mask, "strength": 1.0})
    with Image.open(io.BytesIO(painted.content)) as image:
        assert image.size == (96, 64)
        left = image.resize((2, 1), Image.Resampling.BOX).getpixel((0, 0))
    assert isinstance(left, tuple)
    assert left[0] > left[2]

    assert client.post("/v1/txt2img", json=fields).status_code == 422
    assert client.post("/v1/img2img", json={"prompt": "a"}).status_code == 422
    assert client.post("/v1/inpaint", json=fields).json()["errors"] == [
        {"field": "mask", "message": "is needed by inpaint"}
    ]


def test_a_picture_bomb_is_refused_by_its_header(live: Live, client: httpx.Client) -> None:
    """A small file of 13,000² pixels is refused before it is unpacked."""
    before = live.memory_peak()
    bomb = base64.b64encode(_png((0, 0, 0), (13_000, 13_000))).decode()
    response = client.post("/v1/img2img", json={"prompt": "a", "image": bomb})
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == "image"
    assert live.memory_peak() < before + 100 * 1024 * 1024


def _saved(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _png(colour: tuple[int, int, int], size: tuple[int, int]) -> bytes:
    return _saved(Image.new("RGB", size, colour))


def _mean(data: bytes) -> tuple[float, ...]:
    with Image.open(io.BytesIO(data)) as image:
        pixel = image.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return pixel
