"""Reference images and textual inversions through HTTP: pictures with them, refusals, files that come and go."""

import base64
import json
import shutil
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import ipfiles
import numpy as np
import pytest
import tiny
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from PIL import Image

from server import Live, serving

SMALL: dict[str, Any] = {"prompt": "a red fox", "steps": 2, "seed": 1, "width": 64, "height": 64}
WIDTH = 32  # of the tiny text encoders


def picture(seed: int, size: tuple[int, int] = (48, 64), kind: str = "PNG") -> bytes:
    """A file with a random mosaic."""
    tiles = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    file = BytesIO()
    Image.fromarray(tiles).resize(size, Image.Resampling.NEAREST).save(file, kind)
    return file.getvalue()


def inline(seed: int, **options: Any) -> str:
    """The same as a recipe holds it."""
    return base64.b64encode(picture(seed, **options)).decode()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models, IP-Adapters for two of them, reference images and embeddings; and what is none of these."""
    folder = tmp_path_factory.mktemp("weights")
    tiny.write_all(folder)
    for name in set(tiny.BUILDERS) - {"sd15", "sdxl", "flux", "sd3"}:
        shutil.rmtree(folder / name)
    unet = UNet2DConditionModel.from_pretrained(folder / "sd15" / "unet")
    flux = FluxTransformer2DModel.from_pretrained(folder / "flux" / "transformer")
    adapters = folder / "ip-adapters"
    ipfiles.write(adapters / "face.safetensors", ipfiles.plain(unet))
    ipfiles.write(adapters / "face-plus.safetensors", ipfiles.plus(unet, seed=1))
    ipfiles.write(adapters / "flow.safetensors", ipfiles.plain(flux, seed=2))
    ipfiles.write(adapters / "blind.safetensors", ipfiles.plain(unet, encoder=77))
    (adapters / "pickle.safetensors").write_bytes(b"\x80\x04cposix\nsystem\n")
    ipfiles.write_encoder(adapters / "image_encoder")
    (folder / "references").mkdir()
    (folder / "references" / "cliff.png").write_bytes(picture(1))
    (folder / "references" / "default.jpg").write_bytes(picture(2, kind="JPEG"))
    (folder / "references" / "broken.webp").write_bytes(b"RIFF....WEBP")
    (folder / "catalog.toml").write_text('[ip_adapters.face]\nscale = 0.5\ndescription = "Faces."\n')
    random = torch.randn
    ipfiles.write(folder / "embeddings" / "sunnyhill.safetensors", {"emb_params": random(3, WIDTH)})
    ipfiles.write(
        folder / "embeddings" / "twofold.safetensors", {"clip_l": random(2, WIDTH), "clip_g": random(2, WIDTH)}
    )
    ipfiles.write(folder / "embeddings" / "wideone.safetensors", {"<x>": random(768)})
    (folder / "embeddings" / "tornword.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    return folder


@pytest.fixture(scope="module")
def live(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server of these weights."""
    with serving(
        tmp_path_factory.mktemp("outputs"), "--weights", str(weights), "--model", "sd15", threads="1"
    ) as server:
        server.wait_ready()
        yield server
        assert server.stop() == 0


@pytest.fixture
def ask(live: Live) -> Iterator[Callable[..., httpx.Response]]:
    """Asks for a picture."""
    with live.ask() as client:
        yield lambda **fields: client.post("/generate", json=SMALL | fields)


def pixels(answer: httpx.Response) -> np.ndarray[Any, Any]:
    """The picture that came."""
    assert answer.status_code == 200, answer.text
    return np.asarray(Image.open(BytesIO(answer.content)).convert("RGB")).astype(int)


def are_alike(one: httpx.Response, other: httpx.Response) -> bool:
    """Whether two answers are the same picture, to a level."""
    return bool(np.abs(pixels(one) - pixels(other)).max() <= 1)


def test_a_picture_with_a_reference(ask: Callable[..., httpx.Response]) -> None:
    """By its name, or inline; it acts by its scale; the header and the file tell of it."""
    bare = ask()
    named = ask(reference_images=[{"name": "cliff", "scale": 0.9}])
    assert not are_alike(bare, named)
    assert are_alike(named, ask(reference_images=[{"image": inline(1), "scale": 0.9}]))
    assert are_alike(named, ask(reference_images=[{"image": inline(1)}], ip_strength=0.9))
    assert not are_alike(named, ask(reference_images=[{"name": "cliff", "scale": 0.4}]))
    assert not are_alike(named, ask(reference_images=[{"image": inline(5), "scale": 0.9}]))
    assert are_alike(bare, ask(reference_images=[{"name": "cliff", "scale": 0}]))
    told = json.loads(named.headers["x-generation-metadata"])
    assert told["reference_images"] == [{"name": "cliff", "scale": 0.9}]
    assert told["ip_adapter"] == "face"
    recipe = json.loads(Image.open(BytesIO(named.content)).info["daguerre"])
    assert recipe["reference_images"] == [{"name": "cliff", "scale": 0.9}]
    assert recipe["ip_adapter"] == "face"


def test_defaults(ask: Callable[..., httpx.Response]) -> None:
    """The catalogue's scale; the first IP-Adapter that fits, or the one that is named; the server's own picture."""
    half = ask(reference_images=[{"name": "cliff"}])
    assert json.loads(half.headers["x-generation-metadata"])["reference_images"][0]["scale"] == 0.5
    other = ask(reference_images=[{"name": "cliff"}], ip_adapter="face-plus")
    assert json.loads(other.headers["x-generation-metadata"])["ip_adapter"] == "face-plus"
    assert not are_alike(half, other)
    own = ask(ip_strength=0.7)
    assert json.loads(own.headers["x-generation-metadata"])["reference_images"] == [{"name": "default", "scale": 0.7}]
    assert are_alike(own, ask(reference_images=[{"name": "default", "scale": 0.7}]))


def test_several_and_other_modes_and_families(ask: Callable[..., httpx.Response]) -> None:
    """Two references; image-to-image and inpainting; FLUX, by its own IP-Adapter."""
    two = [{"name": "cliff", "scale": 0.5}, {"image": inline(3), "scale": 0.8}]
    for fields in (
        {},
        {"image": inline(8), "strength": 0.9},
        {"image": inline(8), "mask": inline(9), "strength": 0.9},
        {"model": "flux"},
    ):
        assert not are_alike(ask(**fields), ask(**fields, reference_images=two))


def test_a_large_transparent_reference(ask: Callable[..., httpx.Response]) -> None:
    """It is made smaller, and what is transparent becomes white."""
    file = BytesIO()
    Image.new("RGBA", (2000, 3000), (255, 0, 0, 128)).save(file, "PNG")
    assert ask(reference_images=[{"image": base64.b64encode(file.getvalue()).decode()}]).status_code == 200


ONE = [{"name": "cliff"}]


@pytest.mark.parametrize(
    ("fields", "field", "told"),
    [
        ({"reference_images": [{"name": "nope"}]}, "reference_images[0]", "images: broken, cliff, default"),
        ({"reference_images": [{"name": "../cliff"}]}, "reference_images[0]", "there is no reference image"),
        ({"reference_images": [*ONE, {"name": "cliff.png"}]}, "reference_images[1]", "there is no reference image"),
        ({"reference_images": [{}]}, "reference_images[0]", "either an image or a name"),
        ({"reference_images": [{"name": "x", "image": "y"}]}, "reference_images[0]", "either an image or a name"),
        ({"reference_images": [{"image": "y!"}]}, "reference_images[0]", "not base64"),
        ({"reference_images": [{"image": "aGVsbG8="}]}, "reference_images[0]", "not a whole PNG"),
        ({"reference_images": [{"name": "cliff", "scale": 1.5}]}, "reference_images", "<= 1"),
        ({"reference_images": [{"name": "cliff", "path": "/etc"}]}, "reference_images", "unknown field"),
        ({"reference_images": ONE * 5}, "reference_images", "length <= 4"),
        ({"reference_images": ONE * 2, "ip_strength": 0.5}, "ip_strength", "one reference image"),
        ({"ip_strength": True}, "ip_strength", "expected"),
        ({"ip_adapter": "face"}, "ip_adapter", "needs reference_images"),
        ({"reference_images": ONE, "ip_adapter": "nope"}, "ip_adapter", "face (unknown), face-plus (unknown), flow"),
        ({"reference_images": ONE, "ip_adapter": "flow"}, "ip_adapter", "it is for flux"),
        ({"reference_images": ONE, "ip_adapter": "pickle"}, "ip_adapter", "no safetensors file"),
        ({"reference_images": ONE, "ip_adapter": "blind"}, "ip_adapter", "projection are 77 wide"),
        ({"reference_images": ONE, "model": "sdxl"}, "reference_images", "no IP-Adapter here fits 'sdxl'"),
        ({"reference_images": ONE, "model": "sd3"}, "reference_images", "no IP-Adapter here fits 'sd3'"),
        ({"reference_images": [{"name": "broken"}]}, "reference_images", "'broken' is not a whole PNG"),
        (
            {"prompt": "a wideone"},
            "prompt",
            "embedding 'wideone' has vectors of 768; 'sd15', which is sd, needs",
        ),
        ({"negative_prompt": "TwoFold"}, "negative_prompt", "embedding 'twofold' has vectors of 32 and 32"),
        ({"prompt": "a sunnyhill", "model": "sdxl"}, "prompt", "needs vectors of 32 and 32"),
        ({"prompt": "a sunnyhill", "model": "flux"}, "prompt", "which is flux, takes none"),
        ({"prompt": "a tornword"}, "prompt", "embedding 'tornword' cannot be used"),
    ],
)
def test_refusals(ask: Callable[..., httpx.Response], fields: dict[str, Any], field: str, told: str) -> None:
    """422, the field by its name, no path; and the service goes on."""
    answer = ask(**fields)
    assert answer.status_code == 422, answer.text
    (error,) = answer.json()["errors"]
    assert error["field"] == field
    assert told in error["message"], error["message"]
    assert "/ip-adapters/" not in answer.text
    assert "/references/" not in answer.text


def test_refused_from_the_header_before_any_load(live: Live, ask: Callable[..., httpx.Response]) -> None:
    """A model that is not there is not fetched to find out that nothing fits it."""
    with live.ask() as client:
        client.post("/v1/models/unload", json={"model_id": "sdxl"})
        assert ask(model="sdxl", reference_images=ONE).status_code == 422
        assert ask(model="sdxl", prompt="a sunnyhill").status_code == 422
        assert client.get("/v1/models/sdxl").json()["state"] == "disk"


def test_what_the_server_says_it_has(live: Live) -> None:
    """Names of pictures, IP-Adapters and embeddings; what is broken is in the log, with its reason."""
    with live.ask() as client:
        told = client.get("/v1/capabilities").json()
        lists = client.get("/sdapi/v1/embeddings").json()
    assert told["reference_images"] == ["broken", "cliff", "default"]
    assert told["limits"]["reference_images"] == 4
    assert [(one["name"], one["kind"], one["default_scale"]) for one in told["ip_adapters"]] == [
        ("face", "plain", 0.5),
        ("face-plus", "plus", 0.6),
        ("flow", "plain", 0.6),
    ]
    assert {one["name"]: one["vectors"] for one in told["embeddings"]} == {"sunnyhill": 3, "twofold": 2, "wideone": 1}
    about = {"step": None, "sd_checkpoint": None, "sd_checkpoint_name": None}
    assert lists["loaded"] == {"sunnyhill": about | {"shape": WIDTH, "vectors": 3}}
    assert lists["skipped"].keys() == {"twofold", "wideone"}
    log = "".join(live.log)
    for name in ("'pickle'", "'blind'", "'tornword'"):
        assert name in log


def test_embeddings_in_every_syntax(live: Live, ask: Callable[..., httpx.Response], weights: Path) -> None:
    """A word that stands for vectors paints another picture than the word without them; so does a negative one."""
    path = weights / "embeddings" / "sunnyhill.safetensors"
    syntaxes = ("compel", "a1111", "plain")
    known = [ask(prompt="a sunnyhill", prompt_syntax=syntax) for syntax in syntaxes]
    against = ask(negative_prompt="sunnyhill")
    with live.ask() as client:
        theirs = client.post("/sdapi/v1/txt2img", json=SMALL | {"prompt": "a sunnyhill"})
    content = path.read_bytes()
    path.unlink()
    try:
        for one, syntax in zip(known, syntaxes, strict=True):
            assert not are_alike(one, ask(prompt="a sunnyhill", prompt_syntax=syntax))
        assert not are_alike(against, ask(negative_prompt="sunnyhill"))
    finally:
        path.write_bytes(content)
    assert are_alike(known[0], ask(prompt="a sunnyhill"))
    drawn = Image.open(BytesIO(base64.b64decode(theirs.json()["images"][0]))).convert("RGB")
    assert np.abs(np.asarray(drawn).astype(int) - pixels(known[1])).max() <= 1
    assert ask(prompt="a twofold", model="sdxl").status_code == 200


def test_files_that_come_are_there_at_once(weights: Path, ask: Callable[..., httpx.Response]) -> None:
    """A picture, a changed picture, and an IP-Adapter for a model that had none: without a restart."""
    file = weights / "references" / "new.png"
    assert ask(reference_images=[{"name": "new"}]).status_code == 422
    file.write_bytes(picture(11))
    first = ask(reference_images=[{"name": "new"}])
    file.write_bytes(picture(12))
    assert not are_alike(first, ask(reference_images=[{"name": "new"}]))
    file.unlink()
    unet = UNet2DConditionModel.from_pretrained(weights / "sdxl" / "unet")
    path = ipfiles.write(weights / "ip-adapters" / "xl.safetensors", ipfiles.plain(unet))
    try:
        assert not are_alike(ask(model="sdxl"), ask(model="sdxl", reference_images=ONE))
    finally:
        path.unlink()


def test_queued_and_streamed(live: Live) -> None:
    """A job with an inline reference by the queue; and OpenAI's route takes the field, too."""
    with live.ask() as client:
        fields = SMALL | {"reference_images": [{"image": inline(1), "scale": 0.9}]}
        job = client.post("/v1/jobs", json=fields).json()
        assert job["recipe"]["reference_images"] == [{"name": None, "scale": 0.9}]
        while (answer := client.get(f"/v1/jobs/{job['id']}/result")).status_code == 202:
            pass
        expected = client.post("/generate", json=fields)
        assert are_alike(answer, expected)
        theirs = client.post("/v1/images/generations", json=fields)
        drawn = Image.open(BytesIO(base64.b64decode(theirs.json()["data"][0]["b64_json"]))).convert("RGB")
        assert np.abs(np.asarray(drawn).astype(int) - pixels(expected)).max() <= 1
