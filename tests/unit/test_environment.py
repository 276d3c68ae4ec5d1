"""The environment: our own variables, and those by which other services know the same things."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub import COMMIT, TestHub, serving_hub

from daguerre import settings as configuration

WEIGHTS = Path(__file__).parents[2] / "weights"


def test_names_that_other_services_use(tmp_path: Path) -> None:
    """They set what our own set, above the file and below our own."""
    file = tmp_path / "daguerre.toml"
    file.write_text('default_model = "of-the-file"\nweights = "/file"\n')
    environ = {"MODEL_CACHE_DIR": "/elsewhere", "DEFAULT_MODEL_ID": "sdxl-base"}
    settings, origins = configuration.load({}, environ, file)
    assert (settings.weights, settings.default_model) == (Path("/elsewhere"), "sdxl-base")
    assert origins["weights"] == origins["default_model"] == "environment"
    ours = environ | {"DAGUERRE_WEIGHTS": "/ours", "DAGUERRE_DEFAULT_MODEL": "sd15"}
    settings, _ = configuration.load({}, ours, file)
    assert (settings.weights, settings.default_model) == (Path("/ours"), "sd15")
    settings, _ = configuration.load({}, {"MODEL_CACHE_DIR": "", "DEFAULT_MODEL_ID": ""}, file)
    assert (settings.weights, settings.default_model) == (Path("/file"), "of-the-file")


def test_the_libraries_own_variables_reach_them() -> None:
    """HF_HOME, TORCH_HOME and CUDA_VISIBLE_DEVICES mean in the process that paints what they mean to the libraries."""
    code = (
        "import os, daguerre.engine.engine, huggingface_hub.constants as hub, torch; "
        "print(hub.HF_HOME, torch.hub.get_dir(), os.environ['CUDA_VISIBLE_DEVICES'], torch.cuda.device_count())"
    )
    environ = os.environ | {"HF_HOME": "/some/hub", "TORCH_HOME": "/some/torch", "CUDA_VISIBLE_DEVICES": ""}
    told = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert told.stdout.split(" ") == ["/some/hub", "/some/torch/hub", "", "0\n"]


def _pull(hub: TestHub, weights: Path, home: Path) -> "subprocess.CompletedProcess[str]":
    weights.mkdir(exist_ok=True)
    (weights / "catalog.toml").write_text('[models.cached]\nrepo = "tests/cached"\n')
    command = [sys.executable, "-m", "daguerre", "pull", "cached", "--weights", str(weights), "--endpoint", hub.address]
    environ = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=100)


@pytest.mark.parametrize("is_whole", [True, False])
def test_what_lies_in_the_hubs_cache_is_not_fetched_again(tmp_path: Path, *, is_whole: bool) -> None:
    """HF_HOME is where other programs keep theirs. It is held against the checksums; the token there is used."""
    home, name = tmp_path / "home", "unet/diffusion_pytorch_model.safetensors"
    cached = home / "hub" / "models--tests--cached" / "snapshots" / COMMIT / name
    cached.parent.mkdir(parents=True)
    content = (WEIGHTS / "demo-xl" / name).read_bytes()
    cached.write_bytes(content if is_whole else content[:-1] + b"?")
    (home / "token").write_text("hf_of_the_home")
    with serving_hub() as hub:
        hub.repositories["tests/cached"] = WEIGHTS / "demo-xl"
        done = _pull(hub, tmp_path / "weights", home)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "weights" / "cached" / name).read_bytes() == content
    assert (name in {file for file, _ in hub.sent}) is not is_whole
    assert hub.tokens == {"Bearer hf_of_the_home"}
    assert cached.exists()
