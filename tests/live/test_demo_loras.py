"""The LoRAs that ship, on a fresh server: listed, and painted with in a recipe and in AUTOMATIC1111's prompt."""

import base64
import json
from io import BytesIO

import httpx
import numpy as np
from PIL import Image

SMALL = {"width": 128, "height": 128, "steps": 8, "seed": 5}


def _pixels(png: bytes) -> np.ndarray:
    with Image.open(BytesIO(png)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_they_are_listed(client: httpx.Client) -> None:
    """With what they are and which words call them up."""
    listed = {lora["name"]: lora for lora in client.get("/v1/loras").json()["data"]}
    assert listed.keys() == {"balloon", "blueprint"}
    assert all(lora["description"] and lora["family"] == "sdxl" and lora["rank"] == 4 for lora in listed.values())
    assert {lora["name"]: lora["trigger_words"] for lora in listed.values()} == {
        "balloon": ["hot air balloon"],
        "blueprint": ["blueprint"],
    }
    assert all(lora["bytes"] < 700_000 for lora in listed.values())


def test_a_style_in_a_recipe_and_in_a_prompt(client: httpx.Client) -> None:
    """The same picture by ``loras`` and by ``<lora:blueprint:0.8>``, told in its metadata, and bluer than without."""
    recipe = SMALL | {"prompt": "a lonely castle, sunset", "prompt_syntax": "a1111"}
    bare = client.post("/generate", json=recipe)
    ours = client.post("/generate", json=recipe | {"loras": [{"name": "blueprint", "weight": 0.8}]})
    assert ours.status_code == 200, ours.text
    told = json.loads(ours.headers["x-generation-metadata"])
    assert told["loras"] == [{"name": "blueprint", "weight": 0.8}]
    prompt = "a lonely castle, sunset <lora:blueprint:0.8>"
    theirs = client.post("/sdapi/v1/txt2img", json=SMALL | {"prompt": prompt, "sampler_name": "Euler"})
    picture = base64.b64decode(theirs.json()["images"][0])
    assert np.abs(_pixels(picture) - _pixels(ours.content)).max() <= 1
    red, _, blue = _pixels(ours.content).mean((0, 1))
    bare_red, _, bare_blue = _pixels(bare.content).mean((0, 1))
    assert blue - red > 60 > 40 > bare_blue - bare_red
