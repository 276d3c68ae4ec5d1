"""Owns editions: what files were at a moment, so that weights that others have been put in the place of are noticed.

Nothing is read for it: names, sizes, times of change and inodes tell one edition from the next.
"""

import contextlib
import errno
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: What a model is made of; what people write beside it is not.
SUFFIXES = (".safetensors", ".json", ".txt", ".model")


@dataclass(frozen=True, slots=True)
class Edition:
    """Two are equal if the files are, whenever they were looked at."""

    files: tuple[Any, ...] = ()
    taken: float = field(default=0.0, compare=False)  # monotonic seconds

    def is_outdated_by(self, other: "Edition") -> bool:
        """Whether the other was taken later, and of other files."""
        return other.taken > self.taken and other != self


def take(places: Iterable[Path], *settings: object) -> Edition:
    """The edition of files and folders as they are now, and of settings that make something else of them.

    Of a folder its own files and those one folder below count, as diffusers lays them out. What is not there is not.

    Raises:
        OSError: nobody can look now, as where no descriptor is left.
    """
    taken = time.monotonic()
    files = sorted(file for place in places for file in _files(place))
    return Edition((*files, *settings), taken)


def is_exhausted(error: OSError) -> bool:
    """Whether no descriptor is left: then files cannot be looked at, which says nothing of them."""
    return error.errno in (errno.EMFILE, errno.ENFILE)


def mark(stat: os.stat_result) -> tuple[int, int, int]:
    """What differs when a file has been written to, or another has taken its name."""
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _files(place: Path, depth: int = 1) -> Iterator[tuple[Any, ...]]:
    """Each file with its mark. Links are followed: it is what they lead to that is read."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError, ValueError):  # or no path at all
        if not place.is_dir():
            yield str(place), *mark(place.stat())
            return
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.is_dir():
                    yield from _files(Path(entry.path), depth - 1) if depth else ()
                elif entry.name.endswith(SUFFIXES):
                    yield entry.path, *mark(entry.stat())
