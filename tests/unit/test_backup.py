"""Backups: taken while somebody writes, put back whole or not at all, and never over what is there without a word."""

import errno
import os
import sqlite3
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from daguerre import archive, backup
from daguerre.backup import DATABASE, KEPT, STAGING
from daguerre.errors import BackupFailed, DataInUse, StorageFailed
from daguerre.settings import Settings
from daguerre.store import lock
from daguerre.store.db import DATABASE_FILE, Database


def _settings(folder: Path) -> Settings:
    return Settings(data=folder / "data", outputs=folder / "outputs", weights=folder / "weights")


def _add(database: Database, name: str) -> None:
    def change(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO jobs VALUES (?, 'queued', NULL, x'7b7d')", (name,))

    database.post(change).result()


def _jobs(settings: Settings, name: str = DATABASE_FILE) -> list[str]:
    with closing(sqlite3.connect(settings.data / name)) as connection:
        return [job_id for (job_id,) in connection.execute("SELECT id FROM jobs ORDER BY id")]


@pytest.fixture
def old(tmp_path: Path) -> Settings:
    """The folders of a server that has stopped, after two jobs and a picture."""
    settings = _settings(tmp_path / "old")
    database = Database(settings.data / DATABASE_FILE)
    for name in ("first", "second"):
        _add(database, name)
    database.close()
    (settings.weights / "model").mkdir(parents=True)
    (settings.weights / "model" / "model.safetensors").write_bytes(b"weights")
    (settings.weights / "catalog.toml").write_text("# mine")
    (settings.weights / ".pull").mkdir()
    (settings.weights / ".pull" / "part").write_bytes(b"unfinished")
    settings.outputs.mkdir()
    (settings.outputs / "a.png").write_bytes(b"picture")
    (settings.outputs / ".unfinished-b.png").write_bytes(b"pict")
    (settings.outputs / "link.png").symlink_to("/etc/passwd")
    return settings


@pytest.fixture
def kept(old: Settings, tmp_path: Path) -> Path:
    """A backup of it."""
    path = tmp_path / "kept.tar"
    backup.backup(old, path)
    return path


def _names(path: Path) -> list[str]:
    with tarfile.open(path) as plain:
        return plain.getnames()


def _all(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_kept(old: Settings, kept: Path, tmp_path: Path) -> None:
    """No weights unless they are asked for, no links, nothing unfinished; and nothing is left beside the file."""
    assert _names(kept) == [DATABASE, "outputs/a.png", "weights/catalog.toml", "manifest.json"]
    assert kept.stat().st_mode & 0o777 == 0o600
    backup.backup(old, tmp_path / "all.tar", with_weights=True)
    assert "weights/model/model.safetensors" in _names(tmp_path / "all.tar")
    assert not [name for name in _names(tmp_path / "all.tar") if ".pull" in name]
    assert {path.name for path in tmp_path.iterdir()} == {"old", "kept.tar", "all.tar"}


def test_and_back(old: Settings, kept: Path, tmp_path: Path) -> None:
    """On a new machine everything is where it was, and a server can open it."""
    new = _settings(tmp_path / "new")
    manifest = backup.restore(new, kept)
    assert len(manifest.files) == 3
    assert _all(new.outputs) == {"a.png": b"picture"}
    assert _all(new.weights) == {"catalog.toml": b"# mine"}
    assert _jobs(new) == ["first", "second"]
    assert set(_all(new.data)) == {DATABASE_FILE, lock.LOCK_FILE}
    Database(new.data / DATABASE_FILE).close()


def test_of_a_database_that_is_written_to(old: Settings, tmp_path: Path) -> None:
    """Every backup has all that was durable when it began, and is whole; nobody waits for it."""
    database, is_over, written = Database(old.data / DATABASE_FILE), threading.Event(), [0]

    def write() -> None:
        while not is_over.is_set():
            _add(database, f"{written[0]:06}")
            written[0] += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(5):
            before = written[0]
            backup.backup(old, tmp_path / f"{number}.tar")
            new = _settings(tmp_path / f"new-{number}")
            backup.restore(new, tmp_path / f"{number}.tar")
            jobs = _jobs(new)
            assert jobs == [*(f"{i:06}" for i in range(len(jobs) - 2)), "first", "second"]  # no gap
            assert len(jobs) - 2 >= before
    finally:
        is_over.set()
        writer.join()
        database.close()
    assert written[0] > 5


def test_nothing_is_replaced(old: Settings, kept: Path, tmp_path: Path) -> None:
    """Neither an older backup by a new one, nor by a restore what lies in the folders."""
    with pytest.raises(BackupFailed, match="is there already"):
        backup.backup(old, kept)
    with pytest.raises(BackupFailed, match="not empty"):
        backup.restore(old, kept)
    new = _settings(tmp_path / "new")
    new.outputs.mkdir(parents=True)
    (new.outputs / "a.png").write_bytes(b"another")
    with pytest.raises(BackupFailed, match=r"a\.png is there already"):
        backup.restore(new, kept)
    assert _all(new.outputs) == {"a.png": b"another"}
    assert set(_all(new.data)) == {lock.LOCK_FILE}


def test_but_by_force(old: Settings, kept: Path) -> None:
    """The database and the catalogue that were there are kept; a log that was not folded in is not lost with them."""
    connection = sqlite3.connect(old.data / DATABASE_FILE, isolation_level=None)  # as a process that was killed
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    connection.execute("INSERT INTO jobs VALUES ('third', 'queued', NULL, x'7b7d')")
    left = {path.name: path.read_bytes() for path in old.data.iterdir()}
    connection.close()
    for name, content in left.items():
        (old.data / name).write_bytes(content)
    assert f"{DATABASE_FILE}-wal" in left
    (old.weights / "catalog.toml").write_text("# newer")
    (old.outputs / "a.png").write_bytes(b"newer")
    backup.restore(old, kept, force=True)
    assert _jobs(old) == ["first", "second"]
    assert _jobs(old, DATABASE_FILE + KEPT) == ["first", "second", "third"]
    assert (old.weights / "catalog.toml").read_text() == "# mine"
    assert (old.weights / f"catalog.toml{KEPT}").read_text() == "# newer"
    assert (old.outputs / "a.png").read_bytes() == b"picture"
    assert not list(old.data.glob("*-wal"))


def test_a_damaged_database_is_replaced(old: Settings, kept: Path) -> None:
    """That is what backups are for. It is kept as it is; and no backup of it is made."""
    (old.data / DATABASE_FILE).write_bytes(b"no database" * 1000)
    with pytest.raises(BackupFailed):
        backup.backup(old, kept.with_name("other.tar"))
    assert not kept.with_name("other.tar").exists()
    backup.restore(old, kept, force=True)
    assert _jobs(old) == ["first", "second"]
    assert (old.data / (DATABASE_FILE + KEPT)).read_bytes() == b"no database" * 1000


def test_no_server_may_run(kept: Path, tmp_path: Path) -> None:
    """Who has the folder is told apart from who had it and died."""
    new = _settings(tmp_path / "new")
    with lock.held(new.data), pytest.raises(DataInUse):
        backup.restore(new, kept)
    backup.restore(new, kept)


def _bent(kept: Path, name: str) -> None:
    """Changes a bit of one file of an archive."""
    with tarfile.open(kept) as plain:
        place = plain.getmember(name).offset_data
    content = bytearray(kept.read_bytes())
    content[place] ^= 1
    kept.write_bytes(content)


@pytest.mark.parametrize("name", [DATABASE, "outputs/a.png", "weights/catalog.toml"])
def test_nothing_is_in_place_before_all_is_checked(name: str, old: Settings, kept: Path, tmp_path: Path) -> None:
    """One wrong bit in any file, and the folders are as they were; by force, too."""
    _bent(kept, name)
    before = _all(tmp_path / "old")
    with pytest.raises(BackupFailed):
        backup.restore(old, kept, force=True)
    after = _all(tmp_path / "old")
    after.pop(f"data/{lock.LOCK_FILE}")
    assert after == before
    assert not list(tmp_path.rglob(STAGING))


@pytest.mark.parametrize("number", range(3))
def test_a_disk_that_fails_halfway(number: int, old: Settings, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At whichever file: the database is the last to take its place, so a server would start as before."""
    database = Database(old.data / DATABASE_FILE)
    _add(database, "third")
    database.close()
    left = iter(range(number + 1, 0, -1))
    replace = Path.replace

    def failing(self: Path, target: Path) -> Path:
        if next(left, 1) == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(BackupFailed, match="Input/output error"):
        backup.restore(old, kept, force=True)
    monkeypatch.undo()
    assert _jobs(old) == ["first", "second", "third"]
    backup.restore(old, kept, force=True)
    assert _jobs(old) == ["first", "second"]


@pytest.mark.parametrize("limit", [20_000, 60_000])
def test_a_full_disk(limit: int, old: Settings, tmp_path: Path) -> None:
    """While the database is copied, or while the archive is written: nothing is left of either."""
    (old.outputs / "large.png").write_bytes(b"x" * 50_000)
    (tmp_path / "to").mkdir()
    command = [sys.executable, "-m", "daguerre", "backup", str(tmp_path / "to" / "kept.tar")]
    folders = [f"--{name}={getattr(old, name)}" for name in ("data", "outputs", "weights")]
    script = f'ulimit -f {limit // 512}; exec "$@"'  # blocks of 512 bytes
    done = subprocess.run(["sh", "-c", script, "sh", *command, *folders], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("daguerre: the backup could not be written: ")
    assert list((tmp_path / "to").iterdir()) == []


def test_a_restore_that_was_killed(kept: Path, tmp_path: Path) -> None:
    """What it had staged is no content, and is gone afterwards."""
    new = _settings(tmp_path / "new")
    (new.data / STAGING).mkdir(parents=True)
    (new.data / STAGING / DATABASE_FILE).write_bytes(b"half")
    backup.restore(new, kept)
    assert not list(tmp_path.rglob(STAGING))


def _archived(path: Path, files: dict[str, bytes], folder: Path) -> None:
    def made() -> Iterator[tuple[str, Path]]:
        for number, (name, content) in enumerate(files.items()):
            source = folder / str(number)
            source.write_bytes(content)
            yield name, source

    folder.mkdir()
    archive.write(path, made())


@pytest.mark.parametrize(
    "names", [["outputs/a.png"], [DATABASE, "data/other"], [DATABASE, "src/x.py"], [DATABASE, "x"]]
)
def test_archives_of_something_else(names: list[str], tmp_path: Path) -> None:
    """Whatever else is in a whole archive is not written anywhere."""
    _archived(tmp_path / "other.tar", dict.fromkeys(names, b""), tmp_path / "sources")
    new = _settings(tmp_path / "new")
    with pytest.raises(BackupFailed, match="not of a Daguerre"):
        backup.restore(new, tmp_path / "other.tar")
    assert set(_all(tmp_path / "new")) == {f"data/{lock.LOCK_FILE}"}


def test_of_a_newer_daguerre(kept: Path, old: Settings, tmp_path: Path) -> None:
    """A schema that is not known is refused before it replaces one that is."""
    with closing(sqlite3.connect(old.data / DATABASE_FILE)) as connection:
        connection.execute("INSERT INTO steps VALUES ('9999_later.sql')")
        connection.commit()
    backup.backup(old, tmp_path / "newer.tar")
    new = _settings(tmp_path / "new")
    with pytest.raises(StorageFailed, match="newer Daguerre"):
        backup.restore(new, tmp_path / "newer.tar")
    assert set(_all(tmp_path / "new")) == {f"data/{lock.LOCK_FILE}"}


def test_no_data_folder(tmp_path: Path) -> None:
    """Nothing to keep is said, not kept."""
    with pytest.raises(BackupFailed, match="no data folder"):
        backup.backup(_settings(tmp_path), tmp_path / "kept.tar")


def test_no_archive(tmp_path: Path) -> None:
    """Neither a file that is something else nor one that is not there."""
    (tmp_path / "text").write_text("hello" * 1000)
    for name in ("text", "none"):
        with pytest.raises(BackupFailed):
            backup.restore(_settings(tmp_path / "new"), tmp_path / name)


def test_the_lock_is_let_go_of(tmp_path: Path) -> None:
    """And one thread's hold keeps others out, in this process as in another."""
    with lock.held(tmp_path), pytest.raises(DataInUse), lock.held(tmp_path):
        pass
    with lock.held(tmp_path):
        pass
    with pytest.raises(StorageFailed), lock.held(Path("/proc/nowhere")):
        pass
