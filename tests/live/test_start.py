"""Starts that cannot succeed: one line that tells why, no traceback, and an exit code that is documented."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from server import ROOT, Live


def _serve(data: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "daguerre", "serve", *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DAGUERRE_")}
    environment["DAGUERRE_DATA"] = str(data)
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False)


def _last(done: "subprocess.CompletedProcess[str]") -> str:
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize("host", ["127.0.0.1", "203.0.113.9"])
def test_a_port_that_cannot_be_had(host: str, live: Live, tmp_path: Path) -> None:
    """Another program has it, or the address is no address of this machine."""
    done = _serve(tmp_path / "data", "--host", host, "--port", str(live.port), "--insecure")
    assert done.returncode == 2
    assert _last(done).startswith(f"daguerre: {host}, port {live.port}: another program listens there")


def test_pictures_that_cannot_be_kept(tmp_path: Path) -> None:
    """Their folder cannot be made."""
    (tmp_path / "file").touch()
    done = _serve(tmp_path / "data", "--port", "0", "--outputs", str(tmp_path / "file" / "outputs"))
    assert done.returncode == 1
    assert _last(done) == f"daguerre: {tmp_path}/file/outputs cannot be made: Not a directory"


def test_a_database_that_is_none(tmp_path: Path) -> None:
    """It is left as it was."""
    (tmp_path / "daguerre.db").write_bytes(b"not a database" * 100)
    done = _serve(tmp_path, "--port", "0", "--outputs", str(tmp_path / "outputs"))
    assert done.returncode == 1
    assert _last(done) == "daguerre: daguerre.db cannot be opened: file is not a database"
    assert (tmp_path / "daguerre.db").read_bytes() == b"not a database" * 100


def test_a_data_folder_that_another_has(live: Live, tmp_path: Path) -> None:
    """Also where sources are watched, and the server is a process of its own."""
    data = live.outputs.with_name(f"{live.outputs.name}-data")
    said = f"daguerre: another Daguerre has the data folder {data}; stop it, or set data to another"
    done = _serve(data, "--port", "0", "--outputs", str(tmp_path / "outputs"))
    assert (done.returncode, _last(done)) == (1, said)
    command = [sys.executable, "-m", "daguerre", "serve", "--reload", "--port", "0"]
    environment = os.environ | {"DAGUERRE_DATA": str(data)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as watching:
        assert watching.stderr is not None
        told = next(line for line in watching.stderr if not line.startswith("INFO: "))
        watching.terminate()
        rest = watching.stderr.read()
    assert (told, "Traceback" in rest) == (f"{said}\n", False)


def test_what_is_kept_is_for_its_owner(live: Live) -> None:
    """There are prompts in it."""
    assert live.outputs.with_name(f"{live.outputs.name}-data").stat().st_mode & 0o077 == 0
