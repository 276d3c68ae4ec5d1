"""The unit: what systemd says of it, and that it starts what there is."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import recipes
import typer

from daguerre import cli
from daguerre.settings import Settings

UNIT = recipes.ROOT / "deploy" / "systemd" / "daguerre.service"
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")


@needs_systemd
def test_systemd_finds_no_fault(tmp_path: Path) -> None:
    """With a program where the unit expects one."""
    program = tmp_path / "daguerre"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / "daguerre.service"
    unit.write_text(UNIT.read_text().replace("/opt/daguerre/bin/daguerre", str(program)))
    command = ["systemd-analyze", "verify", "--man=no", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    unit.write_text(unit.read_text().replace("Restart=on-failure", "Restart=maybe"))
    assert "restart specifier" in subprocess.run(command, capture_output=True, text=True, timeout=60).stderr


@needs_systemd
def test_it_is_locked_down() -> None:
    """systemd's own exposure score, of 10 for a plain service, is below 2.5."""
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=25", str(UNIT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ | {"SYSTEMD_COLORS": "0"})
    assert done.returncode == 0, done.stdout[-200:]


def test_it_starts_and_ends_the_server() -> None:
    """By a command that there is; again after a hang (code 70), and with time for jobs to end."""
    found = recipes.unit()
    program, command = found["ExecStart"][0].split()
    assert Path(program).name == "daguerre"
    assert command in typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    assert found["Restart"] == ["on-failure"]
    assert int(found["TimeoutStopSec"][0]) > Settings().grace_timeout + 10
    assert found["MemoryMax"]


def test_what_it_may_write() -> None:
    """Its state and its cache, where its variables point; the settings come as a credential."""
    found, environment = recipes.unit(), recipes.unit_environment()
    assert (found["StateDirectory"], found["CacheDirectory"], found["ProtectSystem"]) == (
        ["daguerre"],
        ["daguerre"],
        ["strict"],
    )
    for name in ("DAGUERRE_DATA", "DAGUERRE_OUTPUTS", "MODEL_CACHE_DIR"):
        assert environment[name].startswith("/var/lib/daguerre/")
    for name in ("HF_HOME", "TORCH_HOME", "TRITON_CACHE_DIR"):
        assert environment[name].startswith("/var/cache/daguerre/")
    assert environment["DAGUERRE_CONFIG"] == "%d/daguerre.toml"
    assert found["LoadCredential"] == ["daguerre.toml:/etc/daguerre/daguerre.toml"]
