"""The ``openai`` package against a live server, unmodified; and what other clients of that API send."""

import base64
import io
import time
from datetime import datetime
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from numpy.typing import NDArray
from PIL import Image

from server import Live

SMALL: dict[str, Any] = {"steps": 4, "seed": 3}
RED: dict[str, Any] = {"steps": 12, "seed": 1, "guidance_scale": 5}


@pytest.fixture(scope="module")
def sdk(live: Live) -> openai.OpenAI:
    """The package's client, which tries each request once."""
    return openai.OpenAI(base_url=f"{live.address}/v1", api_key="unused", max_retries=0)


def _picture(b64: str | None) -> NDArray[np.uint8]:
    assert b64 is not None
    with Image.open(io.BytesIO(base64.b64decode(b64))) as image:
        return np.asarray(image.convert("RGB"))


def _png(colour: str, size: tuple[int, int] = (64, 64), mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, colour).save(file, "PNG")
    return file.getvalue()


def test_generate_paints_what_is_asked(sdk: openai.OpenAI) -> None:
    """In the size that is asked, with fields of ours beside theirs."""
    answer = sdk.images.generate(
        model="gpt-image-1",
        prompt="a red square on a white background",
        size="256x256",
        quality="high",
        user="ada",
        extra_body=RED,
    )
    (image,) = answer.data or ()
    picture = _picture(image.b64_json)
    assert picture.shape == (256, 256, 3)
    red, green, blue = (int(value) for value in picture[112:144, 112:144].mean((0, 1)))
    assert red > 150
    assert max(green, blue) < 100
    assert picture[:16, :16].mean() > 200
    assert (answer.size, answer.output_format) == ("256x256", "png")


def test_several_and_their_seeds(sdk: openai.OpenAI) -> None:
    """``n`` pictures, each with its seed, in the format that is asked."""
    answer = sdk.images.generate(prompt="a lake", n=2, size="64x64", output_format="jpeg", extra_body=SMALL)
    pictures = [image.b64_json for image in answer.data or ()]
    assert len(set(pictures)) == 2
    assert all(base64.b64decode(picture or "")[:2] == b"\xff\xd8" for picture in pictures)
    assert [image.model_extra for image in answer.data or ()] == [{"seed": 3}, {"seed": 4}]


def test_a_url_can_be_fetched(sdk: openai.OpenAI, client: httpx.Client) -> None:
    """With the content type of a picture, as Open WebUI wants it."""
    answer = sdk.images.generate(prompt="a lake", size="64x64", response_format="url", extra_body=SMALL)
    (image,) = answer.data or ()
    assert image.url is not None
    fetched = httpx.get(image.url, headers={"authorization": "Bearer unused"})
    assert fetched.headers["content-type"] == "image/png"
    native = client.post("/generate", json={"prompt": "a lake", "width": 64, "height": 64, **SMALL})
    assert fetched.content == native.content


def test_a_stream_ends_with_the_picture(sdk: openai.OpenAI) -> None:
    """The events are those that the package knows."""
    events = list(sdk.images.generate(prompt="a lake", size="64x64", stream=True, partial_images=0, extra_body=SMALL))
    assert [event.type for event in events] == ["image_generation.completed"]
    assert _picture(events[-1].b64_json).shape == (64, 64, 3)


def test_a_stream_shows_how_the_picture_comes_to_be(sdk: openai.OpenAI) -> None:
    """Each preview is nearer to the picture than the one before."""
    events = list(
        sdk.images.generate(
            prompt="a red circle on a blue background",
            size="128x128",
            stream=True,
            partial_images=2,
            extra_body={"steps": 9, "seed": 4},
        )
    )
    *previews, last = events
    assert [event.type for event in previews] == ["image_generation.partial_image"] * len(previews)
    assert [event.partial_image_index for event in previews] == list(range(len(previews)))
    assert 1 <= len(previews) <= 2
    assert last.type == "image_generation.completed"
    final = _picture(last.b64_json)
    distances = [_distance(_picture(event.b64_json), final) for event in previews]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 60


def _distance(preview: NDArray[np.uint8], final: NDArray[np.uint8]) -> float:
    """Mean difference of bytes, at the preview's size."""
    small = Image.fromarray(final).resize((preview.shape[1], preview.shape[0]))
    return float(np.abs(preview.astype(float) - np.asarray(small, dtype=float)).mean())


def test_previews_are_counted(sdk: openai.OpenAI) -> None:
    """As many as the API has, and no others."""
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.images.generate(prompt="a lake", stream=True, partial_images=4)
    assert caught.value.param == "partial_images"


def test_edit_starts_from_the_image(sdk: openai.OpenAI) -> None:
    """At little strength the picture stays what it was."""
    answer = sdk.images.edit(
        image=("start.png", _png("blue", (128, 128))),
        prompt="a blue square",
        extra_body={"steps": 10, "strength": 0.2, "seed": 1},
    )
    (image,) = answer.data or ()
    red, _, blue = _picture(image.b64_json).mean((0, 1))
    assert blue > 150
    assert red < 100


def test_edit_paints_where_the_mask_is_transparent(sdk: openai.OpenAI) -> None:
    """The rest is kept."""
    mask = Image.new("RGBA", (128, 128), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 128, 64))
    file = io.BytesIO()
    mask.save(file, "PNG")
    answer = sdk.images.edit(
        image=[("start.png", _png("white", (128, 128)))],
        mask=("mask.png", file.getvalue()),
        prompt="a black background",
        extra_body={"steps": 10, "strength": 1.0, "seed": 1},
    )
    picture = _picture((answer.data or ())[0].b64_json)
    assert picture[80:].mean() > 225
    assert picture[:48].mean() < picture[80:].mean() - 40


def test_variation(sdk: openai.OpenAI) -> None:
    """Other than the picture that was sent, of its size."""
    with pytest.warns(DeprecationWarning, match="deprecated"):
        answer = sdk.images.create_variation(image=("start.png", _png("green", (64, 64))), n=2)
    assert [_picture(image.b64_json).shape for image in answer.data or ()] == [(64, 64, 3)] * 2


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"n": 9}, "n"),
        ({"size": "63x64"}, "size"),
        ({"size": "large"}, "size"),
        ({"size": "4096x4096"}, "size"),
        ({"output_format": "gif"}, "output_format"),
        ({"response_format": "blob"}, "response_format"),
        ({"background": "transparent"}, "background"),
        ({"extra_body": {"steps": 0}}, "steps"),
        ({"extra_body": {"output_compression": "best"}}, "output_compression"),
    ],
)
def test_bad_fields_are_named(sdk: openai.OpenAI, fields: dict[str, Any], param: str) -> None:
    """As a BadRequestError, which the package does not try again."""
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.images.generate(**{"prompt": "a lake", "size": "64x64"} | fields)
    assert caught.value.param == param
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert caught.value.request_id


def test_an_unknown_model(sdk: openai.OpenAI) -> None:
    """Is not found, and the answer says which there are."""
    with pytest.raises(openai.NotFoundError, match="demo-xl") as caught:
        sdk.images.generate(prompt="a lake", model="nobodys")
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")


@pytest.mark.parametrize(
    ("files", "param"),
    [
        ({}, "image"),
        ({"image": b"no picture"}, "image"),
        ({"image": _png("blue"), "mask": _png("white")}, "mask"),
        ({"image": _png("blue"), "image[]": _png("blue")}, "image"),
    ],
)
def test_bad_uploads_are_named(client: httpx.Client, files: dict[str, bytes], param: str) -> None:
    """Never a 500."""
    parts = [(name, ("file.png", data)) for name, data in files.items()] or [("other", ("file", b""))]
    answer = client.post("/v1/images/edits", data={"prompt": "a lake"}, files=parts)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("multipart/form-data", b"", 400),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Dis", 400),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\n--x--", 400),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n\xff\r\n--x--',
            400,
        ),
        ("application/json", b"{}", 415),
        ("application/x-www-form-urlencoded", b"prompt=a", 415),
    ],
)
def test_broken_forms(client: httpx.Client, content_type: str, body: bytes, status: int) -> None:
    """Are told in the envelope that the package reads."""
    answer = client.post("/v1/images/edits", content=body, headers={"content-type": content_type})
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


def test_open_webui(client: httpx.Client) -> None:
    """The request that it sends: a model that it has built in, and keys of its own."""
    request = {"model": "gpt-image-1", "prompt": "a lake", "n": 1, "size": "64x64", "response_format": "b64_json"}
    answer = client.post("/v1/images/generations", json={**request, "steps": 2, "moderation": "low", "who": 1})
    assert answer.status_code == 200
    assert _picture(answer.json()["data"][0]["b64_json"]).shape == (64, 64, 3)


@pytest.mark.parametrize("name", ["image", "image[]"])
def test_open_webui_edits(client: httpx.Client, name: str) -> None:
    """The form that it sends, with either name of the picture; the address is of a picture that it may fetch."""
    fields = {"model": "gpt-image-1", "prompt": "a lake", "n": "1", "size": "64x64", "background": "auto"}
    files = [(name, ("image.png", _png("blue"), "image/png"))]
    form = {**fields, "response_format": "b64_json", "steps": "2"}
    (datum,) = client.post("/v1/images/edits", data=form, files=files).json()["data"]
    assert _picture(datum["b64_json"]).shape == (64, 64, 3)
    assert "url" not in datum


@pytest.mark.parametrize("is_edit", [False, True])
def test_a_retry_gets_the_job_that_is_under_way(live: Live, is_edit: bool) -> None:
    """The package's own: its timeout is shorter than the painting, so it asks again, and one job does for all tries."""
    prompt = f"a lake, {'edited' if is_edit else 'generated'}"
    fields: dict[str, Any] = {"steps": 70, "seed": 7, "width": 256, "height": 256}
    impatient = openai.OpenAI(base_url=f"{live.address}/v1", api_key="unused", max_retries=20, timeout=1.0)
    if is_edit:
        answer = impatient.images.edit(image=_png("blue"), prompt=prompt, extra_body={**fields, "strength": 1})
    else:
        answer = impatient.images.generate(prompt=prompt, extra_body=fields)
    assert answer.data
    with live.ask() as client:
        jobs = [job for job in client.get("/v1/jobs").json()["data"] if job["recipe"]["prompt"] == prompt]
    assert [(job["status"], job["attempts"]) for job in jobs] == [("succeeded", 1)]
    took = _moment(jobs[0]["finished_at"]) - _moment(jobs[0]["created_at"])
    assert took > 1  # else nothing had to be asked again


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def test_who_does_not_ask_again_has_given_up(live: Live) -> None:
    """After the time in which that client would have, its job is called off; the same asked anew is another job."""
    fields = {"prompt": "a lake that nobody waits for", "steps": 150, "size": "512x512", "seed": 1}
    with live.ask() as client:
        for _ in range(2):
            with pytest.raises(httpx.ReadTimeout):
                client.post("/v1/images/generations", json=fields, headers={"x-stainless-retry-count": "0"}, timeout=1)
        ends = time.monotonic() + 30
        while True:
            found = client.get("/v1/jobs").json()["data"]
            jobs = [job for job in found if job["recipe"]["prompt"] == fields["prompt"]]
            if all(job["finished_at"] for job in jobs):
                break
            assert time.monotonic() < ends
            time.sleep(0.2)
    assert [job["status"] for job in jobs] == ["cancelled"] * 2
