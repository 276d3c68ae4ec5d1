"""The keys command, and starts that must not succeed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import doors
import pytest

from server import ROOT


def _daguerre(*arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DAGUERRE_")}
    environment |= {f"DAGUERRE_{name.upper()}": value for name, value in settings.items()}
    command = [sys.executable, "-m", "daguerre", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_a_key_from_its_making_to_its_end(tmp_path: Path) -> None:
    """It is printed once and alone, so that it can be piped; the list never has it."""
    data = {"data": str(tmp_path)}
    made = _daguerre("keys", "create", "ada", "--scope", "generate", "--scope", "models", "--days", "30", **data)
    assert made.returncode == 0, made.stderr
    key = made.stdout.strip()
    assert re.fullmatch(r"dgr_[0-9a-f]{8}_[\w-]{43}", key)
    assert key not in made.stderr
    listed = _daguerre("keys", "list", **data).stdout
    assert key[4:12] in listed
    assert "generate,models" in listed
    assert "never used" in listed
    assert key[13:] not in listed
    assert _daguerre("keys", "revoke", key[4:12], **data).returncode == 0
    assert "revoked" in _daguerre("keys", "list", **data).stdout
    again = _daguerre("keys", "revoke", key[4:12], **data)
    assert (again.returncode, "Traceback" in again.stderr) == (2, False)


def test_all_keys_of_a_name_are_revoked_together(tmp_path: Path) -> None:
    """As when somebody leaves."""
    doors.make_keys(tmp_path, {"ada": (["generate"], None)})
    doors.make_keys(tmp_path, {"ada": (["models"], None), "bea": (["generate"], None)})
    assert "2 revoked" in _daguerre("keys", "revoke", "ada", data=str(tmp_path)).stderr
    assert _daguerre("keys", "list", data=str(tmp_path)).stdout.count("does not expire") == 1


@pytest.mark.parametrize(
    "arguments",
    [["create", "ada", "--scope", "root"], ["create", ""], ["create", "a\nb"], ["create", "x" * 65], ["revoke", "x"]],
)
def test_wrong_use_is_told_in_a_line(tmp_path: Path, arguments: list[str]) -> None:
    """And nothing is made."""
    done = _daguerre("keys", *arguments, data=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"host": "0.0.0.0"}, "--insecure"),  # noqa: S104
        ({"host": "0.0.0.0", "auth": "jwt"}, "jwt_secret"),  # noqa: S104
        ({"auth": "hub"}, "hub_users"),
        ({"auth": "password"}, "auth"),
        ({"auth": "keys,none"}, "auth"),
        ({"auth": ""}, "auth"),
        ({"auth": "keys", "trusted_proxies": "everybody"}, "trusted_proxies"),
    ],
)
def test_a_start_that_would_leave_a_door_open_fails(tmp_path: Path, settings: dict[str, str], said: str) -> None:
    """With the setting's name, before anything listens."""
    done = _daguerre("serve", "--port", "0", data=str(tmp_path), outputs=str(tmp_path / "outputs"), **settings)
    assert done.returncode == 2
    assert said in done.stderr
    assert "listening on http" not in done.stderr


def test_secrets_are_hidden_where_settings_are_shown() -> None:
    """The command says that one is set, and where it came from."""
    shown = _daguerre("config", jwt_secret=doors.SECRET).stdout
    assert doors.SECRET not in shown
    assert "jwt_secret = (hidden)  # environment" in shown
    assert "jwt_secret =   # default" in _daguerre("config").stdout
