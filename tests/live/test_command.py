"""``daguerre generate --server``: painting at a server from the command line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from server import ROOT, Live


def _generate(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "daguerre", "generate", *arguments]
    variables = {name: value for name, value in os.environ.items() if not name.startswith("DAGUERRE_")}
    return subprocess.run(
        command, cwd=ROOT, env=variables | environment, capture_output=True, text=True, timeout=100, check=False
    )


SMALL = ("--size", "64x64", "--steps", "2", "--seed", "3")


def test_a_file_and_a_folder(live: Live, tmp_path: Path) -> None:
    """The same flags as without a server; what is printed is where the pictures are."""
    file = tmp_path / "lake.jpg"
    said = _generate("a lake", "--server", live.address, "--out", str(file), *SMALL, DAGUERRE_API_KEY="unused")
    assert (said.returncode, said.stdout) == (0, f"{file}\n")
    with Image.open(file) as picture:
        assert (picture.format, picture.size) == ("JPEG", (64, 64))
    folder = tmp_path / "folder"
    image = ("--image", str(file), "--strength", "0.6", "--count", "2", "--lora", "nobodys:0.5")
    refused = _generate("a lake", "--server", live.address, "--out", str(folder), *SMALL, *image)
    assert refused.returncode == 2
    assert "nobodys" in refused.stderr
    said = _generate("a lake", "--server", live.address, "--out", str(folder), *SMALL, *image[:-2])
    assert said.returncode == 0, said.stderr
    assert sorted(said.stdout.split()) == sorted(map(str, folder.iterdir()))
    assert len(said.stdout.split()) == 2


def test_into_the_servers_own_folder(live: Live) -> None:
    """Where the picture is already."""
    said = _generate("a lake", "--server", live.address, "--out", str(live.outputs), *SMALL)
    assert said.returncode == 0, said.stderr
    assert Path(said.stdout.strip()).exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--steps", "0"), 2, "steps"),
        (("--size", "65x65"), 2, "multiple of"),
        (("--scheduler", "nope"), 2, "scheduler"),
        (("--device", "cpu"), 2, "--device"),
        (("--model", "nobodys"), 1, "demo-xl"),
        (("--image", "nowhere.png"), 2, "nowhere.png"),
        (("--out", "/proc/nobody/x.png"), 1, "written"),
    ],
)
def test_exit_codes(live: Live, arguments: tuple[str, ...], code: int, words: str) -> None:
    """2 for wrong use, 1 for what failed, one line, no traceback."""
    said = _generate("a lake", "--server", live.address, *SMALL, *arguments)
    assert said.returncode == code, said.stderr
    assert words in said.stderr.splitlines()[-1]
    assert "Traceback" not in said.stderr


@pytest.mark.parametrize(("server", "code"), [("localhost:1", 2), ("http://127.0.0.1:1", 1)])
def test_no_server(server: str, code: int) -> None:
    """A wrong address is wrong use; nobody there is a failure."""
    said = _generate("a lake", "--server", server)
    assert said.returncode == code
    assert "Traceback" not in said.stderr
