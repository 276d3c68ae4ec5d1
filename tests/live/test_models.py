"""Models through HTTP: every family, from folders and single files; a Hub of the tests' own; files that are none."""

import contextlib
import io
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import checkerfiles
import httpx
import original
import original_flow
import pytest
import tiny
import tiny_language
import torch
from hub import TestHub, serving_hub
from PIL import Image
from safetensors.torch import load_file, save_file

from server import ROOT, Live, serving

SMALL: dict[str, Any] = {"prompt": "a bridge", "steps": 2, "seed": 1, "width": 64, "height": 64}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights folder with a tiny model of every family, two of them as single files too."""
    weights = tmp_path_factory.mktemp("weights")
    tiny.write_all(weights)
    tiny.write_all(weights, tiny_language.BUILDERS)
    builders: dict[str, tuple[Any, Any]] = {
        "sd": (original, original.build(False)),
        "sd2": (original, original.build_sd2()),
        "xl": (original, original.build(True)),
        "sd3": (original_flow, original_flow.build_sd3()),
        "flux": (original_flow, original_flow.build_flux()),
    }
    for name, (layout, pipe) in builders.items():
        layout.write_checkpoint(pipe, weights / f"file-{name}.safetensors")
    return weights


@pytest.fixture(scope="module")
def hub() -> Iterator[TestHub]:
    """The tests' Hub; each test asks for repositories of its own."""
    with serving_hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def many(shelf: Path, hub: TestHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server of that folder that may pull."""
    settings = {"weights": str(shelf), "default_model": "sd15", "hub_endpoint": hub.address, "allow_pull": "true"}
    with serving(tmp_path_factory.mktemp("outputs"), **settings) as live:
        live.wait_ready()
        yield live
        # Stopping breaks a pull off and leaves no process behind.
        _entry(shelf, hub, "unfinished")
        hub.speed = 100_000
        assert httpx.post(f"{live.address}/v1/models/load", json={"model_id": "unfinished"}).status_code == 202
        hub.wait_for("tests/unfinished")
        assert live.stop() == 0
        assert not _commands_with("unfinished")


def _commands_with(word: str) -> list[str]:
    """Commands of this machine's processes that have that word."""
    commands = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            commands.append(path.read_text().replace("\0", " "))
    return [command for command in commands if f"pull {word} " in command]


@pytest.fixture
def ask(many: Live) -> Iterator[httpx.Client]:
    """A client of that server."""
    with many.ask() as client:
        yield client


FAMILIES = ("sd15", "sd21", "sdxl", "flux", "sd3", "auraflow", "flux2", "qwen", "z-image")
FILES = ("file-sd", "file-sd2", "file-xl", "file-sd3", "file-flux")


@pytest.mark.parametrize("name", [*FAMILIES, *FILES])
def test_every_family_paints(ask: httpx.Client, name: str) -> None:
    """The model that a request names, told in the answer."""
    answer = ask.post("/generate", json=SMALL | {"model": name})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    assert ask.get(f"/v1/models/{name}").json()["state"] == "device"


@pytest.mark.parametrize("name", ["sd21", "flux", "sd3"])
def test_weights_are_heard(ask: httpx.Client, name: str) -> None:
    """In Compel's syntax; the same words without weights make another picture."""
    pixels = []
    for prompt in ("a bridge by night", "a (bridge)1.6 by night", '("a bridge", "night").blend(0.5, 0.5)'):
        answer = ask.post("/generate", json=SMALL | {"model": name, "prompt": prompt})
        assert answer.status_code == 200, answer.text
        pixels.append(Image.open(io.BytesIO(answer.content)).tobytes())
    assert len(set(pixels)) == 3


WISHES = [
    ("qwen", {"prompt": "a (bridge)1.6"}, "prompt"),
    ("z-image", {"prompt": "(a bridge:1.2)", "prompt_syntax": "a1111"}, "prompt"),
    ("qwen", {"negative_prompt": "mud++"}, "negative_prompt"),
    ("flux2", {"prompt": '("a", "b").blend(1, 1)'}, "prompt"),
    ("flux", {"clip_skip": 1}, "clip_skip"),
    ("sd3", {"prompt": "(a bridge:1.2)", "prompt_syntax": "a1111"}, "prompt"),
    ("sd15", {"prompt": "a bridge.swap(tower)"}, "prompt"),
]


@pytest.mark.parametrize(("name", "wish", "field"), WISHES)
def test_what_a_family_cannot_do_is_said(ask: httpx.Client, name: str, wish: dict[str, Any], field: str) -> None:
    """422 with the field and the way out, never a picture of something else."""
    answer = ask.post("/generate", json=SMALL | {"model": name} | wish)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_recipe"), answer.text
    assert [error["field"] for error in answer.json()["errors"]] == [field]


def test_the_list(ask: httpx.Client) -> None:
    """What is here and what could be pulled, with what a client needs to fill a form."""
    listed = {model["id"]: model for model in ask.get("/v1/models").json()["data"]}
    assert ask.get("/models").json().keys() == ask.get("/api/v1/models").json().keys() == {"object", "data"}
    assert listed["file-xl"]["family"] == "sdxl"
    assert listed["sd15"]["default"]
    assert not listed["sdxl"]["default"]
    absent = listed["sdxl-base"]
    assert (absent["state"], absent["defaults"]["steps"], absent["native_size"]) == ("absent", 30, [1024, 1024])
    assert ask.get("/v1/models/sd-xl-base").json()["id"] == "sdxl-base"
    assert listed["sdxl"]["bytes"] > 100_000


def test_the_schedulers(ask: httpx.Client) -> None:
    """Each name with the families that can use it; another one is refused with the list."""
    known = {entry["id"]: entry for entry in ask.get("/v1/schedulers").json()["data"]}
    assert known["dpmpp_2m_karras"]["families"] == ["sd", "sdxl"]
    assert "flux" in known["euler_exponential"]["families"]
    wrong = ask.post("/generate", json=SMALL | {"model": "flux", "scheduler": "ddim"})
    assert wrong.status_code == 422
    assert "euler_karras" in wrong.json()["errors"][0]["message"]
    for name in ("euler_karras", "euler_exponential"):
        assert ask.post("/generate", json=SMALL | {"model": "flux", "scheduler": name}).status_code == 200


def _wait_state(ask: httpx.Client, name: str, *states: str, seconds: float = 60) -> dict[str, Any]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        model: dict[str, Any] = ask.get(f"/v1/models/{name}").json()
        if model.get("state") in states or "error" in model:
            return model
        time.sleep(0.05)
    raise AssertionError(model)


def test_load_and_unload(ask: httpx.Client, shelf: Path) -> None:
    """202 while it is on its way, 200 when it is there; 409 while it is painted with."""
    shutil.copytree(shelf / "sdxl", shelf / "loaded")
    first = ask.post("/v1/models/load", json={"model_id": "loaded"})
    assert (first.status_code, first.headers["location"]) == (202, "/v1/models/loaded")
    assert _wait_state(ask, "loaded", "device")["state"] == "device"
    assert ask.post("/v1/models/load", json={"model_id": "loaded"}).status_code == 200
    assert ask.post("/v1/models/unload", json={"model_id": "loaded"}).json()["state"] == "disk"
    assert ask.post("/generate", json=SMALL | {"model": "loaded"}).status_code == 200


def test_a_model_that_is_painted_with_is_not_unloaded(many: Live) -> None:
    """The job goes on, and the client is told."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool, many.ask() as client:
        picture = pool.submit(client.post, "/generate", json=SMALL | {"steps": 150, "model": "sd15"})
        many.wait_for(lambda health: health["queue"]["running"] == 1)
        answer = httpx.post(f"{many.address}/v1/models/unload", json={"model_id": "sd15"})
        assert (answer.status_code, answer.json()["code"]) == (409, "model_busy")
        assert picture.result().status_code == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 422),
        ({"model_id": 3}, 422),
        ({"model_id": "sd15", "path": "/etc"}, 422),
        ({"model_id": "../../etc/passwd"}, 404),
        ({"model_id": "/etc/passwd"}, 404),
        ({"model_id": "x/y"}, 404),
        ([], 400),
    ],
)
def test_names_that_are_none(ask: httpx.Client, body: Any, status: int) -> None:
    """Names are looked up, never opened."""
    for route in ("load", "unload"):
        assert ask.post(f"/v1/models/{route}", json=body).status_code == status


@pytest.mark.parametrize("name", ["../sd15", "sd15/unet", ".pull", "", "vaes", "sd15/../sd15"])
def test_recipes_name_models_and_never_paths(ask: httpx.Client, name: str) -> None:
    """404 with the names that are known."""
    answer = ask.post("/generate", json=SMALL | {"model": name})
    assert answer.status_code == 404
    assert "sd15" in answer.json()["detail"]


def _cut(folder: Path) -> None:
    part = folder / "unet" / "diffusion_pytorch_model.safetensors"
    part.write_bytes(part.read_bytes()[:-7])


def _pickle(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(pickle.dumps(_Bomb()))


def _bin(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(_Bomb()))


def _code(folder: Path) -> None:
    (folder / "pipeline.py").write_text(f"open({str(folder / 'canary')!r}, 'w')")


def _shapes(folder: Path) -> None:
    config = folder / "unet" / "config.json"
    config.write_text(config.read_text().replace('"cross_attention_dim": 32', '"cross_attention_dim": 64'))


class _Bomb:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], Any], tuple[str]]:
        return os.mkdir, (str(ROOT / "outputs" / "canary"),)


@pytest.mark.parametrize("harm", [_cut, _pickle, _bin, _code, _shapes])
def test_what_is_no_model_is_told_and_nothing_happens(
    ask: httpx.Client, shelf: Path, harm: Callable[[Path], None]
) -> None:
    """A clear problem without a path; nothing runs; the other models paint on."""
    name = f"harmed{harm.__name__}"
    shutil.copytree(shelf / "sd15", shelf / name)
    harm(shelf / name)
    try:
        answer = ask.post("/generate", json=SMALL | {"model": name})
        assert (answer.status_code, answer.json()["code"]) == (500, "bad_catalog")
        assert name in answer.json()["detail"]
        assert str(shelf) not in answer.text
        assert ask.post("/generate", json=SMALL).status_code == 200
        assert not (shelf / name / "canary").exists()
        assert not (ROOT / "outputs" / "canary").exists()
    finally:
        shutil.rmtree(shelf / name)


# The Hub


def _entry(shelf: Path, hub: TestHub, name: str, source: str = "sd15") -> None:
    """An entry of that name in the catalogue, whose repository the tests' Hub serves."""
    hub.repositories[f"tests/{name}"] = shelf / source
    with (shelf / "catalog.toml").open("a") as file:
        file.write(f'[models."{name}"]\nrepo = "tests/{name}"\n')


def _pull(hub: TestHub, weights: Path, name: str) -> "subprocess.CompletedProcess[str]":
    with _pulling(hub, weights, name) as process:
        out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess([], process.returncode, out, err)


def _pulling(hub: TestHub, weights: Path, name: str) -> "subprocess.Popen[str]":
    environment = os.environ | {"HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_TOKEN": "hf_secret"}
    environment.pop("HF_HUB_OFFLINE", None)  # which the engine sets in the process that imports it
    command = [sys.executable, "-m", "daguerre", "pull", name, "--weights", str(weights), "--endpoint", hub.address]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*command, "--lines"], cwd=ROOT, env=environment, text=True, **pipes)  # type: ignore[call-overload,no-any-return]


PART = "unet/diffusion_pytorch_model.safetensors"


def test_pulled_by_the_server_and_painted_with(ask: httpx.Client, shelf: Path, hub: TestHub) -> None:
    """A recipe does not pull; ``load`` does, tells how far it is, and the next recipe paints."""
    _entry(shelf, hub, "far", "sdxl")
    hub.speed = 3_000_000
    refused = ask.post("/generate", json=SMALL | {"model": "far"})
    assert (refused.status_code, refused.json()["code"]) == (404, "model_not_pulled")
    assert ask.post("/v1/models/load", json={"model_id": "far"}).status_code == 202
    seen: set[int] = set()
    while (model := ask.get("/v1/models/far").json())["state"] == "absent":
        assert "error" not in model, model
        seen.add(model["progress"]["bytes"])
        time.sleep(0.05)
    hub.speed = 0
    assert len(seen) > 2
    assert _wait_state(ask, "far", "device")["state"] == "device"
    assert ask.post("/generate", json=SMALL | {"model": "far"}).status_code == 200


def test_a_pull_that_fails_is_told(ask: httpx.Client, shelf: Path, hub: TestHub) -> None:
    """With its reason and without addresses; serving goes on."""
    _entry(shelf, hub, "fenced")
    hub.gated.add("tests/fenced")
    assert ask.post("/v1/models/load", json={"model_id": "fenced"}).status_code == 202
    model = _wait_state(ask, "fenced", "device")
    assert model["error"]["code"] == "pull_failed"
    assert "licence" in model["error"]["message"]
    assert hub.address not in str(model)
    assert ask.post("/generate", json=SMALL).status_code == 200


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """An empty weights folder."""
    (tmp_path / "weights").mkdir()
    return tmp_path / "weights"


def _like(shelf: Path, pulled: Path, source: str = "sd15") -> None:
    for path in (shelf / source).rglob("*"):
        if path.is_file():
            assert (pulled / path.relative_to(shelf / source)).read_bytes() == path.read_bytes()


LARGE = "a.safetensors"


@pytest.fixture
def large(shelf: Path, hub: TestHub, bare: Path) -> Path:
    """A repository of one file of 40 MB; the library writes pieces of 10 MB."""
    repository = bare.parent / "repository"
    repository.mkdir()
    tensors = load_file(shelf / "file-xl.safetensors")
    save_file(tensors | {"padding": torch.zeros(10_000_000)}, repository / LARGE)
    hub.repositories["tests/a"] = repository
    (bare / "catalog.toml").write_text(f'[models.a]\nrepo = "tests/a"\nfile = "{LARGE}"\n')
    hub.sent = []
    return repository / LARGE


def _resumed(hub: TestHub) -> list[int]:
    return [int(asked.removeprefix("bytes=").rstrip("-")) for _, asked in hub.sent if asked]


def test_a_killed_pull_goes_on_where_it_was(hub: TestHub, bare: Path, large: Path) -> None:
    """What was fetched is not fetched again, and until all is there nothing is to be seen."""
    hub.speed = 20_000_000
    partial = bare / ".pull" / "a"
    with _pulling(hub, bare, "a") as process:
        end = time.monotonic() + 30
        while not any(path.stat().st_size > 1_000_000 for path in (partial / ".parts").glob("*")):
            assert time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not (bare / LARGE).exists()
    hub.speed, hub.sent = 0, []
    again = _pull(hub, bare, "a")
    assert again.returncode == 0, again.stderr
    assert len(hub.sent) == 1
    assert _resumed(hub)[0] >= 1_000_000
    assert (bare / LARGE).read_bytes() == large.read_bytes()
    assert not partial.exists()


def test_a_line_that_drops_and_one_that_stalls_are_tried_again(hub: TestHub, bare: Path, large: Path) -> None:
    """Within one pull, from where they broke off."""
    hub.cuts = {LARGE: [15_000_000]}
    hub.stalls = {LARGE: [0.0, 4.0]}
    pulled = _pull(hub, bare, "a")
    assert pulled.returncode == 0, pulled.stderr
    first, second, *_ = _resumed(hub)  # on a busy machine there may be another stall
    assert 1_000_000 <= first < second
    assert (bare / LARGE).read_bytes() == large.read_bytes()


def _flip(hub: TestHub) -> None:
    hub.flipped = {PART}


def _flip_small(hub: TestHub) -> None:
    hub.flipped = {"unet/config.json"}


@pytest.mark.parametrize("harm", [_flip, _flip_small])
def test_a_file_one_bit_off_is_refused(shelf: Path, hub: TestHub, bare: Path, harm: Callable[[TestHub], None]) -> None:
    """It is removed, so that the next pull fetches it anew; the model is not there meanwhile."""
    (bare / "catalog.toml").write_text('[models.c]\nrepo = "tests/c"\n')
    hub.repositories["tests/c"] = shelf / "sd15"
    harm(hub)
    refused = _pull(hub, bare, "c")
    hub.flipped = set()
    assert refused.returncode == 1
    assert "checksum differs" in refused.stderr
    assert not (bare / "c").exists()
    assert _pull(hub, bare, "c").returncode == 0
    _like(shelf, bare / "c")


def test_a_length_that_is_a_lie_is_refused(shelf: Path, hub: TestHub, bare: Path) -> None:
    """More is promised than comes; the reason names no address and no token."""
    (bare / "catalog.toml").write_text('[models.d]\nrepo = "tests/d"\n')
    hub.repositories["tests/d"] = shelf / "sd15"
    hub.lies = {"vae/config.json": 1000}
    refused = _pull(hub, bare, "d")
    hub.lies = {}
    assert refused.returncode == 1
    last = refused.stderr.strip().splitlines()[-1]
    assert "Traceback" not in refused.stderr
    assert hub.address not in last
    assert "hf_secret" not in refused.stderr
    assert not (bare / "d").exists()


def test_code_pickles_and_paths_are_not_fetched(shelf: Path, hub: TestHub, bare: Path) -> None:
    """Whatever a repository lists, only configurations, tokenizers and safetensors come."""
    source = bare.parent / "source"
    shutil.copytree(shelf / "sd15", source)
    for name in ("unet/diffusion_pytorch_model.bin", "unet/evil.py", "pipeline.py", "whole.safetensors", "a.ckpt"):
        (source / name).write_bytes(b"evil")
    hub.repositories["tests/e"] = source
    hub.extra = ["../../escape.json", "/etc/cron.json", "unet/../../up.json", "..\\x.json"]
    (bare / "catalog.toml").write_text('[models.e]\nrepo = "tests/e"\n')
    hub.sent = []
    pulled = _pull(hub, bare, "e")
    hub.extra = []
    assert pulled.returncode == 0, pulled.stderr
    assert all(Path(name).suffix in (".json", ".txt", ".safetensors") for name, _ in hub.sent)
    assert not any("evil" in name or "whole" in name for name, _ in hub.sent)
    _like(shelf, bare / "e")


def test_a_repository_that_asks_for_code_is_refused_before_its_weights(shelf: Path, hub: TestHub, bare: Path) -> None:
    """By what its index says."""
    source = bare.parent / "source"
    shutil.copytree(shelf / "sd15", source)
    index = source / "model_index.json"
    index.write_text(index.read_text().replace('"diffusers"', '"evil"'))
    hub.repositories["tests/f"] = source
    (bare / "catalog.toml").write_text('[models.f]\nrepo = "tests/f"\n')
    hub.sent = []
    refused = _pull(hub, bare, "f")
    assert refused.returncode == 1
    assert "code of its own" in refused.stderr
    assert not any(name.endswith(".safetensors") for name, _ in hub.sent)


def test_a_single_file_and_a_vae_are_pulled(shelf: Path, hub: TestHub, bare: Path) -> None:
    """The file takes the model's name; the VAE that the entry names comes with it."""
    repository = bare.parent / "repository"
    repository.mkdir()
    shutil.copy(shelf / "file-xl.safetensors", repository / "Some Model v6.safetensors")
    hub.repositories |= {"tests/g": repository, "tests/vae": shelf / "sdxl" / "vae"}
    (bare / "catalog.toml").write_text(
        '[models.g]\nrepo = "tests/g"\nfile = "Some Model v6.safetensors"\nvae = "v"\n[vaes.v]\nrepo = "tests/vae"\n'
    )
    pulled = _pull(hub, bare, "g")
    assert pulled.returncode == 0, pulled.stderr
    assert (bare / "g.safetensors").read_bytes() == (shelf / "file-xl.safetensors").read_bytes()
    _like(shelf, bare / "vaes" / "v", "sdxl/vae")
    listed = subprocess.run(
        [sys.executable, "-m", "daguerre", "models", "--weights", str(bare)], capture_output=True, text=True, cwd=ROOT
    )
    assert any(line.split()[:3] == ["g", "sdxl", "here"] for line in listed.stdout.splitlines())


def test_a_safety_checker_is_pulled(hub: TestHub, bare: Path) -> None:
    """Into its own folder, without what could be code; what is none is not kept."""
    whole, other = bare.parent / "whole", bare.parent / "other"
    checkerfiles.write(whole)
    (whole / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    (whole / "README.md").write_text("words")
    shutil.copytree(whole, other)
    (other / "preprocessor_config.json").unlink()
    hub.repositories |= {"tests/whole": whole, "tests/other": other}
    tables = [f'[safety_checkers.{name}]\nrepo = "tests/{name}"\n' for name in ("whole", "other")]
    (bare / "catalog.toml").write_text("".join(tables))
    pulled = _pull(hub, bare, "whole")
    assert pulled.returncode == 0, pulled.stderr
    found = sorted(path.name for path in (bare / "safety-checkers" / "whole").iterdir())
    assert found == ["config.json", "model.safetensors", "preprocessor_config.json"]
    assert "whole is here already" in _pull(hub, bare, "whole").stdout
    pulled = _pull(hub, bare, "other")
    assert pulled.returncode == 1
    assert "preprocessor_config.json" in pulled.stderr
    assert not (bare / "safety-checkers" / "other").exists()
