"""The doctor: what it says of machines that are not this one."""

from pathlib import Path

import pytest

from daguerre import doctor
from daguerre.settings import Settings


@pytest.mark.parametrize(
    ("driver", "cuda", "remedy"),
    [
        (None, "12.8", "no NVIDIA driver here"),
        (None, None, "no NVIDIA driver here"),
        (560, None, "CPU build"),
        (470, "12.6", "needs 525"),
        (525, "13.0", "needs 580"),
        (525, "12.6", "CUDA_VISIBLE_DEVICES"),
        (580, "13.2", "CUDA_VISIBLE_DEVICES"),
    ],
)
def test_why_there_is_no_gpu(driver: int | None, cuda: str | None, remedy: str) -> None:
    """Of the driver and torch's build, the one that stands in the way is named."""
    assert remedy in doctor.why_no_gpu(driver, cuda)


def _found(settings: Settings) -> dict[str, doctor.Finding]:
    return {finding.subject: finding for finding in doctor.examine(settings)}


def test_folders_that_cannot_be_used() -> None:
    """Where nothing can be written, nothing can be served; a file system of another machine is no place for SQLite."""
    found = _found(Settings(outputs=Path("/proc/none"), data=Path("/proc/none")))
    assert found["outputs"].is_bad
    assert found["data"].is_bad
    assert doctor._file_system(Path("/proc/self")) == "proc"


def test_serving_others() -> None:
    """Without authentication that would be refused; by names that are not allowed, nobody would get far."""
    found = _found(Settings(host="0.0.0.0"))  # noqa: S104
    assert found["exposure"].is_bad
    assert "allowed_hosts" in found["hosts"].remedy
    assert "hosts" not in _found(Settings(host="0.0.0.0", allowed_hosts=("paint.example",)))  # noqa: S104


def test_everything_is_looked_at() -> None:
    """A good machine is told to be one, subject by subject."""
    found = _found(Settings(weights=Path(__file__).parents[2] / "weights"))
    assert {
        "daguerre",
        "libraries",
        "device",
        "host",
        "encoding",
        "weights",
        "outputs",
        "data",
        "models",
        "exposure",
    } <= (set(found))
    assert not any(finding.is_bad for finding in found.values())
    assert "ms" in found["encoding"].detail


def test_what_lies_in_the_weights_folder_and_is_not_served(tmp_path: Path) -> None:
    """A LoRA that is cut off, and files of formats that are not read, each by its name."""
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras" / "cut.safetensors").write_bytes(b"\xff" * 20)
    for name in ("old.ckpt", "loras/ink.PT", "notes.txt"):
        (tmp_path / name).touch()
    told = [finding.detail for finding in doctor.examine(Settings(weights=tmp_path)) if finding.subject == "catalogue"]
    assert len(told) == 3
    assert "LoRA 'cut'" in told[0]
    assert told[1:] == ["old.ckpt is not read: only safetensors is", "loras/ink.PT is not read: only safetensors is"]


@pytest.mark.parametrize(("version", "words"), [((3, 51, 2), "no other program"), ((3, 51, 3), "")])
def test_sqlite(version: tuple[int, int, int], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions that could damage a database are told of."""
    monkeypatch.setattr("sqlite3.sqlite_version_info", version)
    (found,) = [finding for finding in doctor.examine(Settings()) if finding.subject == "sqlite"]
    assert ("no other program" in found.detail) == bool(words)
