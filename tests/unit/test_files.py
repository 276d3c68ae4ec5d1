"""A picture's name is a whole file or nothing, and only a picture's name is one."""

import os
import re
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daguerre.job import new_id
from daguerre.store.files import Files

NOW = datetime(2026, 11, 21, 3, 15, 22, tzinfo=UTC)
JOB = "0198c2a4-7f3e-7c11-9d52-5b0ea1b2c3d4"
PATHS = [
    "",
    ".",
    "..",
    "../secret.png",
    "..\\secret.png",
    "%2e%2e",
    "%2e%2e%2fsecret.png",
    "..%2fsecret.png",
    "..%5csecret.png",
    "a.png\0",
    "\0",
    "a.png\n",
    "a" * 300,
    "a" * 5000,
    "C:",
    "C:\\a.png",
    "a.png:stream",
    "/etc/passwd",
    "//host/share",
    "./a.png",
    "folder/a.png",
    "folder",
    "link.png",
    "dangling.png",
    "linked-folder",
    "loop.png",
    "pipe.png",
    "missing.png",
    "a.png/",
    "a.png/.",
    "a.png/..",
    ".hidden.png",
    ".unfinished-b.png",
    "~",
    "*",
    "a*.png",
    "CON",
    "NUL",
    "aux.png",
    "COM1",
    "\uff0e\uff0e/secret.png",
    "a\u202egnp.png",
    "\ud800",
    "-rf",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of pictures with everything beside them that must not be found."""
    folder = tmp_path / "outputs"
    (folder / "folder").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(b"secret")
    for name in ("a.png", "folder/a.png", ".hidden.png", ".unfinished-b.png"):
        (folder / name).write_bytes(b"picture")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "linked-folder").symlink_to(tmp_path)
    (folder / "loop.png").symlink_to(folder / "loop.png")
    os.mkfifo(folder / "pipe.png")
    return folder


def listing(folder: Path) -> list[str]:
    """What lies in a folder."""
    return sorted(path.name for path in folder.iterdir())


def test_names() -> None:
    """A name says when, by which model and for which job; the extension is the format's."""
    files = Files(Path())
    assert files.name(NOW, "demo-xl", JOB) == "20261121_031522_demo-xl_a1b2c3d4.png"
    assert files.name(NOW, "demo-xl", JOB, 1) == "20261121_031522_demo-xl_a1b2c3d4_1.png"
    assert files.name(NOW, "demo-xl", JOB, format="jpeg") == "20261121_031522_demo-xl_a1b2c3d4.jpg"
    assert files.name(NOW, "demo-xl", JOB, 2, "webp") == "20261121_031522_demo-xl_a1b2c3d4_2.webp"
    assert files.name(NOW, "stabilityai/sd xl:1.0 ü", JOB) == "20261121_031522_stabilityai-sd-xl-1.0-_a1b2c3d4.png"


@settings(deadline=None, max_examples=100)
@given(st.text(max_size=300), st.none() | st.integers(0, 7))
def test_names_of_any_model_can_be_written(model: str, index: int | None) -> None:
    """No model's name, a path among them, makes a name that is not plain."""
    name = Files(Path()).name(NOW, model, new_id(1_700_000_000.0), index)
    assert re.fullmatch(r"20261121_031522_[A-Za-z0-9._-]{0,64}_[0-9a-f]{8}(_\d)?\.png", name)


def test_written_files_are_found(tmp_path: Path) -> None:
    """What is written is found, byte for byte, and nothing else is left in the folder."""
    files = Files(tmp_path / "new" / "outputs")
    data = os.urandom(3_000_000)
    path = files.write("a.png", data)
    assert path == files.find("a.png") == tmp_path / "new" / "outputs" / "a.png"
    assert path.read_bytes() == data
    assert listing(path.parent) == ["a.png"]


def test_other_users_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    """A picture has the permissions of any new file."""
    (tmp_path / "plain").write_bytes(b"")
    path = Files(tmp_path).write("a.png", b"picture")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("name", PATHS, ids=ascii)
def test_paths_are_not_found(folder: Path, name: str) -> None:
    """Whatever is no picture's own name is nothing, and no error."""
    assert Files(folder).find(name) is None


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=40))
def test_any_text_is_a_file_of_the_folder_or_nothing(name: str) -> None:
    """No text leads out of the folder."""
    here = Path(__file__).parent
    found = Files(here).find(name)
    assert found is None or found in here.iterdir()


@pytest.mark.parametrize("name", ["", "..", "../a.png", "a/b.png", ".a.png", "a\0.png", "a.png\n", "C:", "a" * 300])
def test_paths_are_not_written(tmp_path: Path, name: str) -> None:
    """Only plain names are written."""
    files = Files(tmp_path / "outputs")
    with pytest.raises(ValueError, match=r"^a picture's name has only"):
        files.write(name, b"picture")
    assert listing(tmp_path) == ["outputs"]
    assert listing(tmp_path / "outputs") == []


@pytest.mark.parametrize("name", ["a.png", "link.png", "dangling.png", "folder"])
def test_nothing_is_overwritten(folder: Path, name: str) -> None:
    """A name that is taken, by whatever it is, stays as it was."""
    before = listing(folder)
    with pytest.raises(FileExistsError):
        Files(folder).write(name, b"other")
    assert listing(folder) == before
    assert (folder / "a.png").read_bytes() == b"picture"
    assert (folder.parent / "secret.png").read_bytes() == b"secret"
    assert not (folder.parent / "nowhere.png").exists()


def test_of_many_writers_of_one_name_one_wins(tmp_path: Path) -> None:
    """Writers at the same time leave one whole file, and the others are told."""
    files, together, winners, losers = Files(tmp_path), threading.Barrier(8), [], []

    def write(number: int) -> None:
        together.wait()
        try:
            files.write("a.png", bytes([number]) * 500_000)
            winners.append(number)
        except FileExistsError:
            losers.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(winners), len(losers)) == (1, 7)
    assert (tmp_path / "a.png").read_bytes() == bytes(winners) * 500_000
    assert listing(tmp_path) == ["a.png"]


ATTEMPT = """
import errno, os, resource, sys
from pathlib import Path
from daguerre.store.files import Files
files = Files(Path())
{condition}
try:
    files.write("a.png", b"x" * 1_000_000)
except OSError as error:
    sys.exit(errno.errorcode[error.errno])
"""
NOBODY = 65534
AS_NOBODY = f"if os.geteuid() == 0: os.setuid({NOBODY})"  # root may write everywhere


def attempt(folder: Path, condition: str) -> str:
    """What a process under that condition says after writing a picture to the folder."""
    command = [sys.executable, "-c", ATTEMPT.format(condition=condition)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False).stderr.strip()


def test_a_write_that_fails_halfway_leaves_nothing(tmp_path: Path) -> None:
    """Where the file may not grow, the error is the system's own and no part of the file stays."""
    assert attempt(tmp_path, "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))") == "EFBIG"
    assert listing(tmp_path) == []


def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    """Permission that is missing is the system's error, and nothing is left."""
    tmp_path.chmod(0o555)
    assert attempt(tmp_path, AS_NOBODY) == "EACCES"
    tmp_path.chmod(0o755)
    assert listing(tmp_path) == []


def test_a_folder_whose_names_cannot_be_made_durable(tmp_path: Path) -> None:
    """A file that was renamed already is taken back when its folder cannot be opened for the last fsync."""
    if os.geteuid() == 0:
        os.chown(tmp_path, NOBODY, NOBODY)
    tmp_path.chmod(0o300)
    assert attempt(tmp_path, AS_NOBODY) == "EACCES"
    tmp_path.chmod(0o755)
    assert listing(tmp_path) == []


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    """A folder removed behind our back is the system's error; in it nothing is found."""
    files = Files(tmp_path / "outputs")
    (tmp_path / "outputs").rmdir()
    with pytest.raises(FileNotFoundError):
        files.write("a.png", b"picture")
    assert files.find("a.png") is None
    assert listing(tmp_path) == []


def test_sweep(folder: Path) -> None:
    """What a crash left unfinished is removed; everything else stays."""
    before = listing(folder)
    Files(folder).sweep()
    assert listing(folder) == [name for name in before if name != ".unfinished-b.png"]
    Files(folder).sweep()


WRITE_ON_AND_ON = """
import itertools
from pathlib import Path
from daguerre.store.files import Files
files = Files(Path())
for number in itertools.count():
    files.write(f"{number}.png", b"x" * 5_000_000)
    Path(f"{number}.png").unlink() if number % 5 else print(number, flush=True)
"""


def test_a_killed_writer(tmp_path: Path) -> None:
    """A process killed while it writes leaves whole files and what the sweep removes."""
    with subprocess.Popen([sys.executable, "-c", WRITE_ON_AND_ON], cwd=tmp_path, stdout=subprocess.PIPE) as writer:
        assert writer.stdout
        assert writer.stdout.readline() == b"0\n"
        while not any(name.startswith(".") for name in listing(tmp_path)):
            assert writer.poll() is None
        writer.kill()
    files = Files(tmp_path)
    files.sweep()
    assert "0.png" in listing(tmp_path)
    for name in listing(tmp_path):
        found = files.find(name)
        assert found
        assert found.stat().st_size == 5_000_000
