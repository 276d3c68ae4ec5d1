"""Owns backups: the database, the pictures and the catalogue in one archive, and the way back.

::

    data/daguerre.db        as it was at one moment, whoever was writing to it
    outputs/NAME            the finished pictures
    weights/catalog.toml    with ``with_weights`` everything else in that folder, too
    manifest.json           sizes and hashes

Pictures are read after the database, and a row says that a picture is there only when it is: an archive lacks none that
its rows tell of. Nothing is put in place before every hash was found right; the database goes last, in one rename.
"""

import contextlib
import filecmp
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from daguerre import archive
from daguerre.archive import Manifest
from daguerre.catalog import CATALOG_FILE
from daguerre.errors import BackupFailed
from daguerre.settings import Settings
from daguerre.store import lock
from daguerre.store.db import DATABASE_FILE, check_version
from daguerre.store.files import sync_folder

DATABASE = f"data/{DATABASE_FILE}"
CATALOG = f"weights/{CATALOG_FILE}"
#: The database and the catalogue that a restore replaces are kept under their names with this at the end.
KEPT = ".before-restore"
#: Where restored files wait, in the folder that they are for.
STAGING = ".restore"


def backup(settings: Settings, target: Path, *, with_weights: bool = False) -> Manifest:
    """Writes an archive, whole or not at all; a server may be running meanwhile.

    Raises:
        BackupFailed: there is nothing to keep, there is such a file already, or it could not be written.
    """
    if target.exists():
        raise BackupFailed(f"{target} is there already; a backup replaces nothing")
    database = settings.data / DATABASE_FILE
    if not database.is_file():
        raise BackupFailed(f"{settings.data} is no data folder of Daguerre: there is no {DATABASE_FILE} in it")
    # The folder is nobody else's: prompts are private.
    with _told("written"), tempfile.TemporaryDirectory(dir=target.parent, prefix=".daguerre-") as folder:
        copy, unfinished = Path(folder, DATABASE_FILE), Path(folder, "archive")
        _snapshot(database, copy)
        manifest = archive.write(unfinished, _files(copy, settings, with_weights=with_weights))
        unfinished.chmod(0o600)
        unfinished.rename(target)
        sync_folder(target.absolute().parent)
    return manifest


def _snapshot(database: Path, copy: Path) -> None:
    """Copies the database as it is at one moment; who writes to it meanwhile does not wait."""
    with _connected(database, "?mode=ro") as connection:
        connection.execute("VACUUM INTO ?", (str(copy),))
    with _connected(copy) as connection:
        if connection.execute("PRAGMA quick_check").fetchone() != ("ok",):
            raise BackupFailed("the database is damaged")


def _files(copy: Path, settings: Settings, *, with_weights: bool) -> Iterator[tuple[str, Path]]:
    yield DATABASE, copy
    yield from _below(settings.outputs, "outputs")
    if with_weights:
        yield from _below(settings.weights, "weights")
    elif (settings.weights / CATALOG_FILE).is_file():
        yield CATALOG, settings.weights / CATALOG_FILE


def _below(folder: Path, name: str) -> Iterator[tuple[str, Path]]:
    """The regular files below a folder by their names in an archive; a leading dot is for what is unfinished."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(child for child in folders if not child.startswith("."))
        for child in sorted(files):
            path = Path(parent, child)
            if not child.startswith(".") and path.is_file() and not path.is_symlink():
                yield f"{name}/{path.relative_to(folder).as_posix()}", path


def restore(settings: Settings, source: Path, *, force: bool = False) -> Manifest:
    """Puts an archive's files in their places, once all of them are known to be right.

    ``force`` replaces what is there; the database and the catalogue that were there are kept beside the new ones.

    Raises:
        BackupFailed: the archive is not whole, or not one of ours; or something is there already.
        DataInUse: a server has the data folder.
        StorageFailed: the folder cannot be written, or the database comes from a newer Daguerre.
    """
    folders = {"data": settings.data, "outputs": settings.outputs, "weights": settings.weights}
    with lock.held(settings.data), _told("put back"), _emptied(folders):
        if not force and (found := _content(settings.data)):
            raise BackupFailed(f"{settings.data} is not empty (there is {found}); --force replaces what is there")

        def staged(name: str) -> Path:
            first, *rest = PurePosixPath(name).parts
            return folders[first].joinpath(STAGING, *rest)

        manifest = archive.unpack(source, staged, lambda found: _accept(found, folders))
        with _connected(staged(DATABASE)) as connection:
            check_version(connection, "the archive's database")
        places = {staged(name): _place(name, folders) for name in manifest.files}
        catalogue = settings.weights / CATALOG_FILE
        if not force:
            _refuse_changes(places, but=catalogue)
        _put(places, catalogue, settings.data / DATABASE_FILE)
    return manifest


@contextlib.contextmanager
def _emptied(folders: Mapping[str, Path]) -> Iterator[None]:
    """Leaves nothing staged, whether this restore fails or one before was killed."""

    def clear() -> None:
        for folder in folders.values():
            shutil.rmtree(folder / STAGING, ignore_errors=True)

    clear()
    try:
        yield
    finally:
        clear()


def _content(data: Path) -> str | None:
    """Something that lies in the folder, beside its lock."""
    return next((path.name for path in sorted(data.iterdir()) if path.name != lock.LOCK_FILE), None)


def _place(name: str, folders: Mapping[str, Path]) -> Path:
    first, *rest = PurePosixPath(name).parts
    return folders[first].joinpath(*rest)


def _accept(manifest: Manifest, folders: Mapping[str, Path]) -> None:
    """Refuses names that no backup has, and, as far as each folder's own disk can tell, what would not fit."""
    is_ours = all(name == DATABASE or name.startswith(("outputs/", "weights/")) for name in manifest.files)
    if not is_ours or DATABASE not in manifest.files:
        raise BackupFailed("it is an archive, but not of a Daguerre")
    for first, folder in folders.items():
        folder.mkdir(parents=True, exist_ok=True)
        size = sum(entry.bytes for name, entry in manifest.files.items() if name.startswith(f"{first}/"))
        if shutil.disk_usage(folder).free < size:
            raise BackupFailed(f"there is no room in {folder}: {size / 1e6:.0f} MB are needed")


def _refuse_changes(places: Mapping[Path, Path], but: Path) -> None:
    for staged, place in places.items():
        if place != but and place.exists() and not filecmp.cmp(staged, place, shallow=False):
            raise BackupFailed(f"{place.name} is there already, and differs; --force replaces what is there")


def _put(places: Mapping[Path, Path], catalogue: Path, database: Path) -> None:
    """Each file takes its place by a rename; until the database does, at the end, a server would start as before."""
    if catalogue in places.values() and catalogue.exists():
        shutil.copy2(catalogue, catalogue.with_name(catalogue.name + KEPT))
    for staged, place in sorted(places.items(), key=lambda pair: pair[1] == database):
        place.parent.mkdir(parents=True, exist_ok=True)
        if place == database:
            for folder in {place.parent for place in places.values()}:
                sync_folder(folder)
            _lay_aside(database)
        staged.replace(place)
    sync_folder(database.parent)


def _lay_aside(database: Path) -> None:
    """Keeps a copy of the database that is to be replaced, and no log that would be taken for the new one's."""
    if database.exists():
        with contextlib.suppress(sqlite3.Error), _connected(database) as connection:
            connection.execute("PRAGMA journal_mode=DELETE")  # one that is damaged is kept as it is
        shutil.copy2(database, database.with_name(database.name + KEPT))
    for suffix in ("-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)


@contextlib.contextmanager
def _connected(database: Path, options: str = "") -> Iterator[sqlite3.Connection]:
    uri = database.absolute().as_uri() + options
    with contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None, timeout=30.0)) as connection:
        yield connection


@contextlib.contextmanager
def _told(done: str) -> Iterator[None]:
    """Turns what the system and the database raise into a line for the person who asked."""
    try:
        yield
    except OSError as error:
        raise BackupFailed(f"the backup could not be {done}: {error.strerror or error}") from None
    except (sqlite3.Error, ValueError) as error:
        raise BackupFailed(f"the backup could not be {done}: {error}") from None
