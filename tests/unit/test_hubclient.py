"""Where the Hub may send a pull: to public addresses, and to those that a setting allows."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub import TestHub, serving_hub

from server import ROOT

WEIGHTS = ROOT / "weights"


@pytest.fixture
def mirror() -> Iterator[tuple[TestHub, TestHub]]:
    """A Hub on this machine, which redirects to a neighbour of it."""
    with serving_hub() as neighbour, serving_hub() as hub:
        for each in (hub, neighbour):
            each.repositories["tests/far"] = WEIGHTS / "demo-xl"
        hub.elsewhere = neighbour.address
        yield hub, neighbour


def _pull(hub: TestHub, folder: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    (folder / "catalog.toml").write_text('[models.far]\nrepo = "tests/far"\n')
    command = [sys.executable, "-m", "daguerre", "pull", "far", "--weights", str(folder), "--endpoint", hub.address]
    environ = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environ |= {"HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_canary_of_the_operator"}
    return subprocess.run(
        command, cwd=ROOT, env=environ | variables, capture_output=True, text=True, timeout=100, check=False
    )


def test_a_neighbour_is_not_asked(mirror: tuple[TestHub, TestHub], tmp_path: Path) -> None:
    """The Hub is an operator's choice, wherever it is; whom it redirects to is not."""
    hub, neighbour = mirror
    done = _pull(hub, tmp_path)
    assert done.returncode != 0
    assert "redirects to an address that is not public" in done.stderr
    assert "Traceback" not in done.stderr
    assert hub.asked == {"tests/far"}
    assert neighbour.asked == set()
    assert not (tmp_path / "far").exists()


@pytest.mark.parametrize("name", ["localhost", "0x7f.1", "[::ffff:127.0.0.1]"])
def test_by_no_name(mirror: tuple[TestHub, TestHub], tmp_path: Path, name: str) -> None:
    """What counts is what it resolves to."""
    hub, neighbour = mirror
    hub.elsewhere = neighbour.address.replace("127.0.0.1", name)
    assert _pull(hub, tmp_path).returncode != 0
    assert neighbour.asked == set()


@pytest.mark.parametrize("allowed", ["127.0.0.1", "localhost,127.0.0.0/8"])
def test_one_that_is_allowed_is(mirror: tuple[TestHub, TestHub], tmp_path: Path, allowed: str) -> None:
    """It serves the files; the token that the Hub is asked with is not shown to it."""
    hub, neighbour = mirror
    done = _pull(hub, tmp_path, DAGUERRE_PRIVATE_HOSTS=allowed)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "far" / "model_index.json").exists()
    assert hub.tokens == {"Bearer hf_canary_of_the_operator"}
    assert neighbour.tokens == {None}
    assert neighbour.sent
    assert not hub.sent


def test_behind_a_proxy_the_proxy_says(mirror: tuple[TestHub, TestHub], tmp_path: Path) -> None:
    """Names are resolved there; what this machine knows of them means nothing, and the pull goes through it."""
    hub, neighbour = mirror
    done = _pull(hub, tmp_path, HTTP_PROXY=neighbour.address)
    assert done.returncode != 0  # the neighbour is no proxy
    assert hub.asked == set()
