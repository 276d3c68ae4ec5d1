"""Owns the picture files on disk: their names, and that a name is either a whole file or nothing."""

import contextlib
import errno
import os
import re
import shutil
import stat
from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import cached_property
from pathlib import Path

from daguerre.errors import StorageFailed
from daguerre.recipe import Format

EXTENSIONS: dict[Format, str] = {"png": "png", "jpeg": "jpg", "webp": "webp"}
#: What a file's name may end in, and the format that this means.
FORMATS: dict[str, Format] = {f".{extension}": name for name, extension in EXTENSIONS.items()} | {".jpeg": "jpeg"}

# Names hold nothing that a path, a URL or a shell reads as more than a letter; a leading dot is for unfinished files.
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_NOT_PLAIN = re.compile(r"[^A-Za-z0-9._-]+")
_MODEL_LENGTH = 64
_OF_JOB = re.compile(r"(\d{8}_\d{6})_.+_([0-9a-f]{8})(?:_\d)?\.(?:png|jpg|webp)")
_UNFINISHED = ".unfinished-"
_THUMBNAILS = ".thumbnails"


def thumbnail_name(name: str) -> str:
    """What the thumbnail of the picture of that name is called."""
    return f"{Path(name).stem}.webp"


def vet(folder: Path) -> None:
    """Makes the folder, if it is not there.

    Raises:
        StorageFailed: it cannot be made, or nothing can be written in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageFailed(f"{folder} cannot be made: {error.strerror}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StorageFailed(f"{folder} cannot be written: give this user the right, or set outputs")


class Files:
    """The pictures of one folder, which is made if it is not there."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    @cached_property
    def thumbnails(self) -> "Files":
        """The thumbnails of these pictures, in a folder beside them; one is removed with its picture."""
        return Files(self._folder / _THUMBNAILS)

    def name(
        self,
        now: datetime,
        model: str,
        job_id: str,
        index: int | None = None,
        format: Format = "png",  # noqa: A002 - the recipe's word
    ) -> str:
        """What a picture of a job is called; ``index`` tells the pictures of one job apart.

        Names sort by their time. The id's last eight digits are the random end of a UUIDv7.
        """
        parts = [_stamp(now), _NOT_PLAIN.sub("-", model)[:_MODEL_LENGTH], _short(job_id)]
        if index is not None:
            parts.append(str(index))
        return f"{'_'.join(parts)}.{EXTENSIONS[format]}"

    def write(self, name: str, data: bytes) -> Path:
        """Writes a file that is there after a power cut, or raises and leaves nothing behind.

        Raises:
            ValueError: the name is not a plain one.
            FileExistsError: there is a file of that name, or one is being written.
            OSError: the disk is full, the folder is read-only, and the like.
        """
        if not _PLAIN.fullmatch(name):
            raise ValueError("a picture's name has only letters, digits, dots, dashes and underscores")
        path = self._folder / name
        written = self._folder / f"{_UNFINISHED}{name}"
        # The unfinished file is also the lock of its name: who holds it may look for the name and then take it.
        with written.open("xb", buffering=0) as file:
            try:
                _write_all(file.fileno(), data)
                _check_is_free(path)
                written = written.rename(path)
                sync_folder(self._folder)
            except BaseException:
                with contextlib.suppress(OSError):  # the first failure is the one to tell
                    written.unlink()
                raise
        return path

    def find(self, name: str) -> Path | None:
        """The file of that name; nothing for whatever is not a plain name of a file that lies in the folder itself."""
        if not _PLAIN.fullmatch(name):
            return None
        path = self._folder / name
        try:
            is_file = stat.S_ISREG(path.lstat().st_mode)
        except FileNotFoundError:
            return None
        return path if is_file else None

    def drop(self, names: Iterable[str]) -> None:
        """Removes pictures that nobody will be told of."""
        for name in names:
            path = self.find(name)
            if path is not None:
                self._remove(path)

    def drop_of(self, jobs: Mapping[str, datetime]) -> None:
        """Removes the pictures of jobs, given by their ids and when they came.

        The digits of an id in a name are too few to tell it from all others for years: older pictures are not theirs.
        """
        came = {_short(job_id): _stamp(moment) for job_id, moment in jobs.items()}
        for path in self._folder.iterdir() if came else ():
            found = _OF_JOB.fullmatch(path.name)
            if found is not None and found[2] in came and found[1] >= came[found[2]]:
                self._remove(path)

    def drop_older(self, moment: float) -> None:
        """Removes the pictures of jobs that were written before then, in seconds since 1970."""
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if _OF_JOB.fullmatch(path.name) and path.lstat().st_mtime < moment:
                    self._remove(path)

    def _remove(self, path: Path) -> None:
        # In this order: who makes a thumbnail looks for the picture afterwards.
        path.unlink(missing_ok=True)
        (self._folder / _THUMBNAILS / thumbnail_name(path.name)).unlink(missing_ok=True)

    def room(self) -> int:
        """Bytes that can still be written."""
        return shutil.disk_usage(self._folder).free

    def sweep(self) -> None:
        """Removes the files that a crash left unfinished, and thumbnails whose pictures have gone.

        Only for a start, when nothing is being written.
        """
        thumbnails = self._folder / _THUMBNAILS
        for path in (*self._folder.glob(f"{_UNFINISHED}*"), *thumbnails.glob(f"{_UNFINISHED}*")):
            path.unlink()
        small = [path for path in thumbnails.glob("*.webp") if _OF_JOB.fullmatch(path.name)]
        pictures = {path.stem for path in self._folder.iterdir()} if small else set()
        for path in small:
            if path.stem not in pictures:
                path.unlink()


def _stamp(moment: datetime) -> str:
    return f"{moment:%Y%m%d_%H%M%S}"


def _short(job_id: str) -> str:
    return job_id.replace("-", "")[-8:]


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
    os.fsync(descriptor)


def _check_is_free(path: Path) -> None:
    if os.path.lexists(path):  # a rename would replace it without a word
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))


def sync_folder(folder: Path) -> None:
    """Makes the folder's list of names durable, which the file's own fsync does not."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
