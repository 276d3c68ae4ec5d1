"""LoRAs through HTTP: pictures with them, refusals from their headers, reading them ahead and letting go of them."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import lorafiles
import pytest
import tiny
import torch
from diffusers import UNet2DConditionModel
from PIL import Image

from server import Live, serving

SMALL: dict[str, Any] = {"prompt": "a red fox", "steps": 2, "seed": 1, "width": 64, "height": 64}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny models, and LoRAs for the first."""
    folder = tmp_path_factory.mktemp("weights")
    tiny.write_all(folder)
    for name in set(tiny.BUILDERS) - {"sd15", "sdxl"}:
        shutil.rmtree(folder / name)
    unet = UNet2DConditionModel.from_pretrained(folder / "sd15" / "unet")
    layers = lorafiles.layers(unet, lorafiles.ATTENTION)
    for i in range(3):
        tensors = lorafiles.diffusers_lora({"unet": layers}, seed=i)
        lorafiles.write(folder / "loras" / f"style-{i}.safetensors", tensors, {"modelspec.trigger_phrase": f"ohwx{i}"})
    next(iter(tensors.values()))[0, 0] = float("nan")
    lorafiles.write(folder / "loras" / "nan.safetensors", tensors)
    (folder / "loras" / "pickle.safetensors").write_bytes(b"\x80\x04cposix\nsystem\n")
    (folder / "catalog.toml").write_text('[loras.style-1]\nweight = 0.4\ndescription = "Loud."\n')
    return folder


@pytest.fixture(scope="module")
def live(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server of these weights."""
    with serving(tmp_path_factory.mktemp("outputs"), "--weights", str(weights), "--model", "sd15") as server:
        server.wait_ready()
        yield server
        assert server.stop() == 0


@pytest.fixture
def ask(live: Live) -> Iterator[Callable[..., httpx.Response]]:
    """Asks for a picture."""
    with live.ask() as client:
        yield lambda **fields: client.post("/generate", json=SMALL | fields)


def test_a_picture_with_a_lora(ask: Callable[..., httpx.Response]) -> None:
    """Another than without; its header and its file say which, at which weight; trigger words are there once."""
    bare, with_one = ask(), ask(loras=[{"name": "style-1"}])
    assert with_one.status_code == 200
    assert bare.content != with_one.content
    assert json.loads(with_one.headers["x-generation-metadata"])["loras"] == [{"name": "style-1", "weight": 0.4}]
    text = Image.open(BytesIO(with_one.content)).info
    assert text["parameters"].startswith("a red fox, ohwx1 <lora:style-1:0.4>\n")
    assert json.loads(text["daguerre"])["loras"] == [{"name": "style-1", "weight": 0.4}]
    again = ask(prompt="a red fox, OHWX1", lora_path="style-1", lora_scale=0.4)
    assert Image.open(BytesIO(again.content)).info["parameters"].startswith("a red fox, OHWX1 <lora:style-1:0.4>\n")


@pytest.mark.parametrize(
    ("fields", "field", "told"),
    [
        ({"loras": [{"name": "nope"}]}, "loras[0]", "known LoRAs: nan, style-0, style-1, style-2"),
        ({"loras": [{"name": "style-0"}, {"name": "../style-1"}]}, "loras[1]", "there is no LoRA"),
        ({"loras": [{"name": "style-0"}, {"name": "style-0"}]}, "loras[1]", "named twice"),
        ({"loras": [{"name": "pickle"}]}, "loras[0]", "no safetensors file"),
        ({"loras": [{"name": "style-0"}], "model": "sdxl"}, "loras[0]", "does not fit 'sdxl'"),
        ({"loras": [{"name": "nan"}]}, "loras", "not finite"),
        ({"loras": [{"name": "x"}] * 5}, "loras", "length <= 4"),
    ],
)
def test_refusals(ask: Callable[..., httpx.Response], fields: dict[str, Any], field: str, told: str) -> None:
    """422, the field by its name, no path; and the service goes on."""
    answer = ask(**fields)
    assert answer.status_code == 422, answer.text
    (error,) = answer.json()["errors"]
    assert error["field"] == field
    assert told in error["message"]
    misfits = ("does not fit", "no safetensors file")
    assert answer.json()["code"] == ("lora_incompatible" if told.startswith(misfits) else "invalid_recipe")
    assert "/loras/" not in answer.text
    assert ask().status_code == 200


def test_loading_and_unloading(live: Live) -> None:
    """The list says where each is; unknown names are 404, what fits no model 422."""
    with live.ask() as client:
        client.post("/v1/loras/unload", json={"name": "style-2"})
        listed = {lora["name"]: lora for lora in client.get("/v1/loras").json()["data"]}
        assert listed.keys() == {"style-0", "style-1", "style-2", "nan"}
        one = listed["style-1"]
        assert (one["rank"], one["default_weight"], one["trigger_words"]) == (4, 0.4, ["ohwx1"])
        assert one["description"] == "Loud."
        assert listed["style-2"]["state"] == "disk"
        assert client.post("/v1/loras/load", json={"name": "style-2"}).status_code == 202
        end = time.monotonic() + 20
        while client.post("/v1/loras/load", json={"name": "style-2"}).status_code != 200:
            assert time.monotonic() < end
            time.sleep(0.05)
        assert client.post("/v1/loras/unload", json={"name": "style-2"}).json()["state"] == "disk"
        assert client.post("/v1/loras/load", json={"name": "nope"}).json()["code"] == "lora_not_found"
        assert client.post("/v1/loras/load", json={"name": "pickle"}).json()["code"] == "lora_incompatible"
        assert client.post("/v1/loras/load", json={"title": "x"}).status_code == 422
        assert client.get("/loras").json() == client.get("/v1/loras/list").json()


def test_one_that_is_dropped_in_joins(live: Live, weights: Path, ask: Callable[..., httpx.Response]) -> None:
    """Without a restart."""
    assert ask(loras=[{"name": "new"}]).status_code == 422
    layer = torch.nn.Linear(32, 32, bias=False)
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    lorafiles.write(weights / "loras" / "new.safetensors", lorafiles.flat_lora({name: layer}))
    assert ask(loras=[{"name": "new", "weight": -0.5}]).status_code == 200
