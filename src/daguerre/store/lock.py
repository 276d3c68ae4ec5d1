"""Owns the lock of the data folder: one process has it at a time, and a process that dies lets go of it."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from daguerre.errors import DataInUse, StorageFailed

LOCK_FILE = "daguerre.lock"


@contextlib.contextmanager
def held(data: Path) -> Iterator[None]:
    """Has the folder, which is made if it is not there, while the block runs.

    Two servers on one folder would each paint the jobs of the other.

    Raises:
        DataInUse: another process has it.
        StorageFailed: it cannot be made, written or locked.
    """
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)  # there are prompts in it
        file = (data / LOCK_FILE).open("ab")
    except OSError as error:
        raise StorageFailed(f"{data} cannot be written: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataInUse(f"another Daguerre has the data folder {data}; stop it, or set data to another") from None
        except OSError as error:
            raise StorageFailed(f"{data} cannot be locked: {error.strerror}; it must lie on a local disk") from None
        yield
