"""What the documentation tells people to type."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import lorafiles
import pytest
import typer
from diffusers import UNet2DConditionModel

from daguerre import cli
from server import ROOT, Live, serving

PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
#: A guide of what needs a receiver: its own test has one.
OTHERS = {"webhooks.md"}
HERE = "http://127.0.0.1:8000"

#: curl tells a status of 400 or more as a failure, with the answer.
PRELUDE = 'set -euo pipefail\ncurl() { command curl --fail-with-body --silent --show-error --max-time 60 "$@"; }\n'


def _blocks(page: Path) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def _calls() -> list[tuple[str, str]]:
    """The blocks that begin with curl, by their place."""
    return [
        (f"{page.relative_to(ROOT)} {number}", block)
        for page in PAGES
        if page.name not in OTHERS
        for number, block in enumerate(_blocks(page), 1)
        if block.startswith("curl")
    ]


@pytest.fixture(scope="module")
def documented(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server with the embedded model and the LoRA that the guide names."""
    weights = tmp_path_factory.mktemp("weights")
    for name in ("demo-xl", "catalog.toml", "ip-adapters", "references"):
        (weights / name).symlink_to(ROOT / "weights" / name)
    unet = UNet2DConditionModel.from_pretrained(weights / "demo-xl" / "unet")
    tensors = lorafiles.diffusers_lora({"unet": lorafiles.layers(unet, lorafiles.ATTENTION)})
    lorafiles.write(weights / "loras" / "papercut.safetensors", tensors)
    with serving(tmp_path_factory.mktemp("outputs"), "--weights", str(weights)) as live:
        live.wait_ready()
        yield live


@pytest.mark.parametrize("block", [block for _, block in _calls()], ids=[place for place, _ in _calls()])
def test_every_call_is_answered(block: str, documented: Live, tmp_path: Path) -> None:
    """With a status below 400; what it writes as a picture is one."""
    assert HERE in block
    (tmp_path / "weights").symlink_to(ROOT / "weights")  # as in a clone
    script = PRELUDE + block.replace(HERE, documented.address)
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    for picture in tmp_path.glob("*.png"):
        assert picture.read_bytes().startswith(b"\x89PNG"), picture.name


def test_there_are_calls() -> None:
    """The pages are read as they are meant to be."""
    assert {"README.md 2", "docs/getting-started.md 4"} <= {place for place, _ in _calls()}
    assert len(_calls()) >= 12


def _commands(command: object) -> set[str]:
    return set(getattr(command, "commands", {}))


def test_every_command_that_is_named_is_there() -> None:
    """And every verb of make, and every file of this repository."""
    known = _commands(typer.main.get_command(cli.app)) | {"keys"}
    verbs = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for page in PAGES:
        text = page.read_text()
        blocks = "\n".join(_blocks(page))
        for name in re.findall(r"(?:^|bin/|daguerre )daguerre ([a-z]+)", blocks, flags=re.MULTILINE):
            assert name in known, (page.name, name)
        for verb in re.findall(r"\bmake ([a-z-]+)(?=[`\s])", blocks):
            assert verb in verbs, (page.name, verb)
        for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", text):
            assert (page.parent / target).exists() or target.endswith("metrics.md"), (page.name, target)
