"""Files and repositories that are no models: each is a clear problem, nothing of it is loaded, and the service goes on.

After each of them the server paints a picture whose bytes are those of the picture that it painted at the beginning.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import badfiles
import httpx
import lorafiles
import original
import pytest
import tiny
import torch
from diffusers import UNet2DConditionModel
from hub import TestHub, serving_hub

from server import Live, serving

SMALL: dict[str, Any] = {"prompt": "a red fox", "steps": 1, "seed": 1, "width": 64, "height": 64}
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny models, one of them as a single file too, kept apart; and a LoRA."""
    weights = tmp_path_factory.mktemp("weights")
    tiny.write_all(weights)
    for name in set(tiny.BUILDERS) - {"sd15", "sdxl"}:
        shutil.rmtree(weights / name)
    torch.manual_seed(3)
    original.write_checkpoint(original.build(is_xl=False), weights / "single" / "good.safetensors")
    unet = UNet2DConditionModel.from_pretrained(weights / "sd15" / "unet")
    tensors = lorafiles.diffusers_lora({"unet": lorafiles.layers(unet, ("to_k", "to_q"))})
    lorafiles.write(weights / "loras" / "good.safetensors", tensors)
    return weights


@pytest.fixture(scope="module")
def hub() -> Iterator[TestHub]:
    """The tests' Hub."""
    with serving_hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def live(shelf: Path, hub: TestHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server of that folder that may pull."""
    settings = {"weights": str(shelf), "default_model": "sd15", "hub_endpoint": hub.address, "allow_pull": "true"}
    os.environ["HF_HUB_DOWNLOAD_TIMEOUT"] = "1"
    with serving(tmp_path_factory.mktemp("outputs"), **settings) as live:
        del os.environ["HF_HUB_DOWNLOAD_TIMEOUT"]
        live.wait_ready()
        yield live
        assert live.stop() == 0


@pytest.fixture(scope="module")
def client(live: Live) -> Iterator[httpx.Client]:
    """A client of it."""
    with live.ask() as client:
        yield client


@pytest.fixture(scope="module")
def before(client: httpx.Client) -> bytes:
    """A picture with a LoRA, painted before anything bad was there."""
    return _picture(client)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """What must not be there afterwards."""
    return tmp_path / "canary"


def _picture(client: httpx.Client) -> bytes:
    answer = client.post("/generate", json=SMALL | {"loras": [{"name": "good"}]})
    assert answer.status_code == 200, answer.text
    return answer.content


def _is_told(answer: httpx.Response, shelf: Path, *codes: tuple[int, str]) -> str:
    """A problem with one of these statuses and codes, which names no path of this machine."""
    problem = answer.json()
    assert (answer.status_code, problem["code"]) in codes, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert str(shelf) not in answer.text
    assert "Traceback" not in answer.text
    return str(problem["errors"] or problem["detail"])


def _states(client: httpx.Client, kind: str) -> dict[str, str]:
    return {entry.get("name") or entry["id"]: entry["state"] for entry in client.get(f"/v1/{kind}").json()["data"]}


def _as_lora(client: httpx.Client, shelf: Path, content: bytes) -> str:
    """Drops it among the LoRAs and asks for it; gives what is told."""
    path = shelf / "loras" / "bad.safetensors"
    path.write_bytes(content)
    try:
        told = _is_told(
            client.post("/generate", json=SMALL | {"loras": [{"name": "bad"}]}), shelf, BAD_RECIPE, BAD_LORA
        )
        assert _states(client, "loras").get("bad", "disk") == "disk"
        return told
    finally:
        path.unlink()


def _as_model(client: httpx.Client, shelf: Path, harm: Callable[[Path], object]) -> str:
    """Harms a copy of a model's folder and asks for it; gives what is told."""
    folder = shelf / "bad"
    shutil.copytree(shelf / "sd15", folder)
    harm(folder)
    try:
        told = _is_told(client.post("/generate", json=SMALL | {"model": "bad"}), shelf, BAD_MODEL)
        assert _states(client, "models").get("bad", "disk") == "disk"
        return told
    finally:
        shutil.rmtree(folder)


def _as_checkpoint(client: httpx.Client, shelf: Path, content: bytes) -> str:
    """Drops it among the models and asks for it; gives what is told."""
    path = shelf / "bad.safetensors"
    path.write_bytes(content)
    try:
        told = _is_told(client.post("/generate", json=SMALL | {"model": "bad"}), shelf, BAD_MODEL)
        assert _states(client, "models").get("bad", "disk") == "disk"
        return told
    finally:
        path.unlink()


BAD_RECIPE, BAD_LORA, BAD_MODEL = (422, "invalid_recipe"), (422, "lora_incompatible"), (500, "bad_catalog")
NO_MODEL, NO_LORA = (404, "model_not_found"), (404, "lora_not_found")


def test_there_are_forty_and_ten() -> None:
    """As many as the promise says."""
    assert len(badfiles.CORRUPT) >= 40
    assert len(badfiles.disguises(Path("canary"))) >= 10


@pytest.mark.parametrize("harm", badfiles.CORRUPT.values(), ids=badfiles.CORRUPT)
def test_corrupt_safetensors(client: httpx.Client, shelf: Path, before: bytes, harm: badfiles.Harm) -> None:
    """As a LoRA, as the UNet of a folder, as a checkpoint in a single file."""
    _as_lora(client, shelf, harm((shelf / "loras" / "good.safetensors").read_bytes()))
    unet = harm((shelf / "sd15" / UNET).read_bytes())
    _as_model(client, shelf, lambda folder: (folder / UNET).write_bytes(unet))
    _as_checkpoint(client, shelf, harm((shelf / "single" / "good.safetensors").read_bytes()))
    assert _picture(client) == before


def test_weights_of_another_model(client: httpx.Client, shelf: Path, before: bytes) -> None:
    """A LoRA for another model; another model's UNet; a LoRA in the place of a checkpoint, and the other way round."""
    unet = UNet2DConditionModel.from_pretrained(shelf / "sdxl" / "unet")
    tensors = lorafiles.diffusers_lora({"unet": lorafiles.layers(unet, ("to_k",))})
    lorafiles.write(shelf / "loras" / "other.safetensors", tensors)
    other = (shelf / "loras" / "other.safetensors").read_bytes()
    assert "fit" in _as_lora(client, shelf, other)
    checkpoint = (shelf / "single" / "good.safetensors").read_bytes()
    assert "belongs to no LoRA" in _as_lora(client, shelf, checkpoint)
    xl = (shelf / "sdxl" / UNET).read_bytes()
    _as_model(client, shelf, lambda folder: (folder / UNET).write_bytes(xl))
    assert "no whole" in _as_checkpoint(client, shelf, other)
    (shelf / "loras" / "other.safetensors").unlink()
    assert _picture(client) == before


@pytest.mark.parametrize("place", range(len(badfiles.disguises(Path()))), ids=badfiles.disguises(Path()))
def test_pickles_in_disguise(client: httpx.Client, shelf: Path, before: bytes, canary: Path, place: int) -> None:
    """As a LoRA, a UNet and a checkpoint: nobody opens it."""
    disguise = list(badfiles.disguises(canary).values())[place]
    _as_lora(client, shelf, disguise((shelf / "loras" / "good.safetensors").read_bytes()))
    unet = disguise((shelf / "sd15" / UNET).read_bytes())
    _as_model(client, shelf, lambda folder: (folder / UNET).write_bytes(unet))
    _as_checkpoint(client, shelf, disguise((shelf / "single" / "good.safetensors").read_bytes()))
    assert not canary.exists()
    assert _picture(client) == before


def _edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _part_of_a_module(folder: Path, code: str) -> None:
    """A part whose library is a module of the repository's."""
    (folder / "unet" / "my_unet.py").write_text(code)
    _edit(folder / "model_index.json", unet=["my_unet", "MyUNet"])


def _pipeline_of_a_module(folder: Path, code: str) -> None:
    """A pipeline class of the repository's."""
    (folder / "my_pipeline.py").write_text(code)
    _edit(folder / "model_index.json", _class_name=["my_pipeline", "MyPipeline"])


def _auto_map(folder: Path, code: str) -> None:
    """What transformers would take classes from."""
    (folder / "text_encoder" / "modeling_my.py").write_text(code)
    _edit(folder / "text_encoder" / "config.json", auto_map={"AutoModel": "modeling_my.MyModel"})


def _custom_pipeline(folder: Path, code: str) -> None:
    """Another repository's pipeline."""
    (folder / "pipeline.py").write_text(code)
    _edit(folder / "model_index.json", custom_pipeline="evil/pipeline")


CODES = [_part_of_a_module, _pipeline_of_a_module, _auto_map, _custom_pipeline]


@pytest.mark.parametrize("has_file", [True, False], ids=["with its file", "by its name alone"])
@pytest.mark.parametrize("ask_for", CODES)
def test_remote_code(
    client: httpx.Client,
    shelf: Path,
    hub: TestHub,
    before: bytes,
    canary: Path,
    tmp_path: Path,
    ask_for: Callable[[Path, str], None],
    has_file: bool,
) -> None:
    """Refused in a folder and in a repository of the Hub, of which no weights are fetched then; it never runs."""

    def harm(folder: Path) -> None:
        ask_for(folder, f"import os\nos.mkdir({str(canary)!r})\n")
        for code in () if has_file else folder.rglob("*.py"):
            code.unlink()

    told = _as_model(client, shelf, harm)
    assert "code" in told or "pipeline" in told
    repository = tmp_path / "repository"
    shutil.copytree(shelf / "sd15", repository)
    harm(repository)
    hub.sent = []
    assert "code" in (message := _pulled_badly(client, shelf, hub, repository)) or "pipeline" in message
    assert not any(name.endswith(".safetensors") for name, _ in hub.sent)
    assert not canary.exists()
    assert _picture(client) == before


@pytest.mark.parametrize("kind", [["diffusers", "StableDiffusionPipeline"], ["transformers", "AutoModel"]])
def test_parts_that_would_be_read_otherwise(
    client: httpx.Client, shelf: Path, before: bytes, canary: Path, kind: list[str]
) -> None:
    """A pipeline in a pipeline, a class that finds its own: what they read is not told to be safetensors."""
    pickled = badfiles.disguises(canary)["as torch saves"](b"")

    def harm(folder: Path) -> None:
        shutil.copytree(shelf / "sd15", folder / "inner")
        for path in [*(folder / "inner").rglob("*.safetensors")]:
            path.with_suffix(".bin").write_bytes(pickled)
            path.unlink()
        shutil.copy(shelf / "loras" / "good.safetensors", folder / "inner" / "model.fp16.safetensors")
        _edit(folder / "model_index.json", inner=kind)

    assert "class that is not known here" in _as_model(client, shelf, harm)
    assert not canary.exists()
    assert _picture(client) == before


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "pytorch_model.bin", "diffusion_pytorch_model.ckpt"])
def test_there_is_no_second_loader(client: httpx.Client, shelf: Path, before: bytes, canary: Path, name: str) -> None:
    """Torn weights beside pickled ones, and pickled ones in their place, end in a refusal."""
    pickled = badfiles.disguises(canary)["as torch saves"](b"")

    def torn(folder: Path) -> None:
        (folder / UNET).write_bytes((folder / UNET).read_bytes()[:-1])
        (folder / UNET).with_name(name).write_bytes(pickled)

    def gone(folder: Path) -> None:
        torn(folder)
        (folder / UNET).unlink()

    for harm in (torn, gone):
        _as_model(client, shelf, harm)
    assert not canary.exists()
    assert _picture(client) == before


@pytest.mark.parametrize(
    "shard", ["../vae/diffusion_pytorch_model.safetensors", "../../sdxl/" + UNET, "/etc/passwd", "..\\x.safetensors"]
)
def test_shards_elsewhere(client: httpx.Client, shelf: Path, before: bytes, shard: str) -> None:
    """An index names files beside it, or nothing is read."""

    def harm(folder: Path) -> None:
        (folder / UNET).rename((folder / UNET).with_name("diffusion_pytorch_model-00001-of-00001.safetensors"))
        index = {"metadata": {}, "weight_map": {"conv_in.weight": shard}}
        (folder / f"{UNET}.index.json").write_text(json.dumps(index))

    assert "outside its folder" in _as_model(client, shelf, harm)
    assert _picture(client) == before


@pytest.mark.parametrize("name", ["whole.ckpt", "whole.pt", "whole.bin", "whole.pth", "whole.pkl", "whole.gguf"])
def test_other_files_are_no_models(client: httpx.Client, shelf: Path, before: bytes, canary: Path, name: str) -> None:
    """Whatever lies in the folder of models, or among the LoRAs, under a name of another format is not there."""
    content = badfiles.disguises(canary)["as torch saves"](b"")
    for folder in (shelf, shelf / "loras"):
        (folder / name).write_bytes(content)
    _is_told(client.post("/generate", json=SMALL | {"model": "whole"}), shelf, NO_MODEL)
    answer = client.post("/generate", json=SMALL | {"loras": [{"name": "whole"}]})
    assert "there is no LoRA" in _is_told(answer, shelf, BAD_RECIPE)
    for folder in (shelf, shelf / "loras"):
        (folder / name).unlink()
    assert not canary.exists()
    assert _picture(client) == before


# The Hub


def _pulled_badly(client: httpx.Client, shelf: Path, hub: TestHub, repository: Path) -> str:
    """Has the server pull a repository that cannot be had; gives what is told. Nothing of it is a model afterwards."""
    name = f"far-{len(hub.repositories)}"
    hub.repositories[f"tests/{name}"] = repository
    with (shelf / "catalog.toml").open("a") as file:
        file.write(f'[models.{name}]\nrepo = "tests/{name}"\n')
    assert client.post("/v1/models/load", json={"model_id": name}).status_code == 202
    end = time.monotonic() + 60
    while "error" not in (model := client.get(f"/v1/models/{name}").json()):
        assert time.monotonic() < end, model
        time.sleep(0.05)
    assert model["state"] == "absent"
    assert not (shelf / name).exists()
    assert model["error"]["code"] in ("pull_failed", "bad_catalog")
    for secret in (hub.address, str(shelf), "Traceback"):
        assert secret not in str(model)
    return str(model["error"]["message"])


def _stall(hub: TestHub) -> None:
    hub.stalls = {UNET: [30.0] * 20}


def _promise_more(hub: TestHub) -> None:
    hub.lies = {UNET: 4096}


def _promise_less(hub: TestHub) -> None:
    hub.lies = {UNET: -4096}


def _flip(hub: TestHub) -> None:
    hub.flipped = {UNET}


def _cut(hub: TestHub) -> None:
    hub.cuts = {UNET: [1000] * 20}


@pytest.mark.parametrize("harm", [_stall, _promise_more, _promise_less, _flip, _cut])
def test_downloads_that_go_wrong(
    client: httpx.Client, shelf: Path, hub: TestHub, before: bytes, harm: Callable[[TestHub], None]
) -> None:
    """The server tells why, paints on while it waits, and what came is no model."""
    harm(hub)
    try:
        assert _pulled_badly(client, shelf, hub, shelf / "sd15")
    finally:
        hub.stalls, hub.lies, hub.flipped, hub.cuts = {}, {}, set(), {}
    assert _picture(client) == before


PATHS = [
    "../bad",
    "..",
    "/etc/passwd",
    "sd15/unet",
    "sd15/../sd15",
    "..\\sd15",
    ".pull",
    "C:sd15",
    "sd15\0",
    "~",
    "%2e%2e",
]


@pytest.mark.parametrize("name", PATHS)
def test_names_that_are_paths(client: httpx.Client, shelf: Path, before: bytes, name: str) -> None:
    """Of models and of LoRAs, in recipes, in routes and in the catalogue: a name is looked up and never opened."""
    _is_told(client.post("/generate", json=SMALL | {"model": name}), shelf, NO_MODEL, BAD_RECIPE)
    _is_told(client.post("/generate", json=SMALL | {"loras": [{"name": name}]}), shelf, BAD_RECIPE)
    for route, field, code in (("models", "model_id", NO_MODEL), ("loras", "name", NO_LORA)):
        for verb in ("load", "unload"):
            _is_told(client.post(f"/v1/{route}/{verb}", json={field: name}), shelf, code, BAD_RECIPE)
    catalog = shelf / "catalog.toml"
    own = catalog.read_text() if catalog.exists() else ""
    tables = f"[loras.away]\nfile = {json.dumps(name)}\n[models.away]\nrepo = 'tests/x'\nvae = {json.dumps(name)}\n"
    catalog.write_text(own + tables)
    _is_told(client.post("/generate", json=SMALL | {"loras": [{"name": "away"}]}), shelf, BAD_RECIPE, BAD_LORA)
    answer = client.post("/generate", json=SMALL | {"model": "away"})
    _is_told(answer, shelf, BAD_MODEL, NO_MODEL, (404, "model_not_pulled"))
    catalog.write_text(own)
    assert _picture(client) == before
