"""Owns spills on disk: what unfinished pictures have cost so far, in parts that a new process can go on from."""

import contextlib
import hashlib
import shutil
from collections.abc import Collection
from pathlib import Path

_UNFINISHED = ".unfinished"


class Spills:
    """The parts of unfinished pictures, in a folder for each job.

    Losing one costs time, no picture: nothing is synced, and what a power cut has left half is taken for nothing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, job_id: str, index: int, first: int, data: bytes, made_with: bytes) -> None:
        """Keeps a part of picture ``index``, from its ``first`` step on, for who names what it was made with.

        Raises:
            OSError: the disk is full, and the like.
        """
        path = self._path(job_id, index, first)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(_UNFINISHED)
        try:
            with unfinished.open("wb") as file:
                file.write(_digest(data, made_with))
                file.write(data)
            unfinished.rename(path)
        except OSError:
            with contextlib.suppress(OSError):  # the first failure is the one to tell
                unfinished.unlink()
            raise

    def read(self, job_id: str, index: int, first: int, made_with: bytes) -> bytes | None:
        """The part of a picture that begins at that step, if it is whole and was made with the same."""
        try:
            whole = self._path(job_id, index, first).read_bytes()
        except OSError:
            return None
        size = hashlib.sha256().digest_size
        return whole[size:] if whole[:size] == _digest(whole[size:], made_with) else None

    def drop(self, job_id: str) -> None:
        """Removes all parts of a job."""
        shutil.rmtree(self._folder / job_id, ignore_errors=True)

    def keep_only(self, job_ids: Collection[str]) -> None:
        """Removes all parts of other jobs than these. Only for a start, when nothing is being written."""
        if self._folder.is_dir():
            for place in self._folder.iterdir():
                if place.name not in job_ids:
                    self.drop(place.name)

    def _path(self, job_id: str, index: int, first: int) -> Path:
        return self._folder / job_id / f"{index}-{first}.safetensors"


def _digest(data: bytes, made_with: bytes) -> bytes:
    return hashlib.sha256(made_with + hashlib.sha256(data).digest()).digest()
