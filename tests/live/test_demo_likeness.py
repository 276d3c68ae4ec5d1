"""The IP-Adapter that ships, on a fresh server: listed, and pictures take the hour of the reference by its strength."""

from io import BytesIO
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from server import ROOT

SMALL = {"prompt": "a landscape", "width": 128, "height": 128, "steps": 8}
SEEDS = (1, 2, 3)


def _pixels(png: bytes) -> np.ndarray:
    with Image.open(BytesIO(png)) as image:
        return np.asarray(image.convert("RGB")).astype(float)


def _painted(client: httpx.Client, seed: int, **fields: Any) -> np.ndarray:
    answer = client.post("/generate", json=SMALL | {"seed": seed} | fields)
    assert answer.status_code == 200, answer.text
    return _pixels(answer.content)


def _distance(picture: np.ndarray, name: str) -> float:
    """Of the mean colours of two by two quarters."""
    reference = _pixels((ROOT / "weights" / "references" / f"{name}.png").read_bytes())
    quarters = [image.reshape(2, len(image) // 2, 2, len(image) // 2, 3).mean((1, 3)) for image in (picture, reference)]
    return float(np.abs(quarters[0] - quarters[1]).mean())


def test_it_is_listed(client: httpx.Client) -> None:
    """With what it is, and with the pictures that it can be tried with."""
    told = client.get("/v1/capabilities").json()
    assert told["reference_images"] == ["default", "night"]
    (listed,) = told["ip_adapters"]
    assert (listed["name"], listed["family"], listed["kind"]) == ("likeness", "sdxl", "plain")
    assert listed["description"]
    assert listed["bytes"] < 1_000_000


def test_no_strength_is_no_adapter(client: httpx.Client) -> None:
    """To the bit."""
    bare = _painted(client, 5, reproducible=True)
    assert (_painted(client, 5, reproducible=True, ip_strength=0) == bare).all()
    assert (_painted(client, 5, reproducible=True, ip_strength=1) != bare).any()


@pytest.mark.parametrize(("name", "other"), [("default", "night"), ("night", "default")])
def test_pictures_take_the_colours_of_the_reference(client: httpx.Client, name: str, other: str) -> None:
    """They are nearer to it than to the other one, and nearer than they are without it, more so the stronger it is."""
    far: list[list[float]] = []
    for seed in SEEDS:
        strengths = [
            _painted(client, seed, reference_images=[{"name": name, "scale": scale}]) for scale in (0.0, 0.5, 1.0)
        ]
        assert _distance(strengths[-1], name) < _distance(strengths[-1], other)
        far.append([_distance(picture, name) for picture in strengths])
    bare, half, whole = np.mean(far, axis=0)
    assert whole < half < bare
    assert whole < 0.7 * bare
