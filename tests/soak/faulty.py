"""A server that can be told to fail: ``python faulty.py serve ...`` is the command ``daguerre serve ...`` with faults.

Each fault is a file in the folder that ``FAULTS`` names, and is looked for where it counts. Most are over when they
have happened: the file is gone then. The product knows nothing of this.
"""

import asyncio
import contextlib
import datetime as dt
import errno
import os
import sqlite3
import stat
import threading
import time
from pathlib import Path
from typing import Any

FOLDER = Path(os.environ["FAULTS"])
#: Seconds between two looks at what is not looked for at each call.
EVERY = 0.05

_real_time, _real_write = time.time, os.write
_offset = 0.0


def _is_due(name: str) -> bool:
    """Whether a fault is to happen now; it is over with that."""
    try:
        (FOLDER / name).unlink()
    except OSError:
        return False
    return True


def _follow_clock() -> None:
    """The wall clock goes wrong by the seconds in the file ``clock``, while it is there."""
    global _offset
    while True:
        try:
            _offset = float((FOLDER / "clock").read_text() or 0)
        except FileNotFoundError:
            _offset = 0.0
        except OSError:  # no descriptors
            pass
        time.sleep(EVERY)


class Datetime(dt.datetime):
    """One that goes by the same clock."""

    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> "Datetime":
        """As `datetime.datetime.now`."""
        return cls.fromtimestamp(time.time(), tz)


def _write(descriptor: int, data: Any) -> int:
    """A disk that breaks, or is full: ``eio`` and ``enospc``. Pipes have neither."""
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        for name, code in (("eio", errno.EIO), ("enospc", errno.ENOSPC)):
            if _is_due(name):
                raise OSError(code, os.strerror(code))
    return _real_write(descriptor, data)


class Connection(sqlite3.Connection):
    """A database whose commit fails: ``commit``."""

    def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
        """As SQLite's."""
        if sql == "COMMIT" and _is_due("commit"):
            raise sqlite3.OperationalError("disk I/O error")
        return super().execute(sql, *arguments)


def _fail_steps() -> None:
    """The device: out of memory (``memory``), lost (``device``), or hanging (``hang``)."""
    import torch

    from daguerre.engine.rendezvous import Meeting

    compute = Meeting.forward

    def forward(self: Meeting, *arguments: Any) -> Any:
        if _is_due("memory"):
            raise torch.OutOfMemoryError("made by the test")
        if _is_due("device"):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if _is_due("hang"):
            time.sleep(3600)
        return compute(self, *arguments)

    Meeting.forward = forward  # type: ignore[method-assign]


def _hold_loads() -> None:
    """A load that has found its files good waits before it reads them, while ``hold`` or ``held`` is there."""
    import diffusers

    read = diffusers.DiffusionPipeline.from_pretrained.__func__

    def from_pretrained(kind: Any, *arguments: Any, **options: Any) -> Any:
        with contextlib.suppress(OSError):
            (FOLDER / "hold").rename(FOLDER / "held")
        while (FOLDER / "held").exists():
            time.sleep(EVERY)
        return read(kind, *arguments, **options)

    diffusers.DiffusionPipeline.from_pretrained = classmethod(from_pretrained)


def _count_tasks() -> None:
    """The loop's tasks go to the file ``tasks``, again and again."""
    from daguerre.http.server import Server

    start = Server.startup

    async def count() -> None:
        while True:
            with contextlib.suppress(OSError):
                (FOLDER / "tasks.new").write_text(str(len(asyncio.all_tasks())))
                (FOLDER / "tasks.new").replace(FOLDER / "tasks")
            await asyncio.sleep(EVERY)

    async def startup(self: Server, sockets: list[Any] | None = None) -> None:
        await start(self, sockets)
        self.counting = asyncio.create_task(count())  # type: ignore[attr-defined]

    Server.startup = startup  # type: ignore[method-assign]


def main() -> None:
    """The command, with everything that can fail in its place."""
    threading.Thread(target=_follow_clock, daemon=True).start()
    time.time = lambda: _real_time() + _offset
    os.write = _write
    connect = sqlite3.connect
    sqlite3.connect = lambda *a, **options: connect(*a, **{"factory": Connection, **options})  # type: ignore[assignment]
    from daguerre import cli
    from daguerre.jobs import pictures

    pictures.datetime = Datetime  # type: ignore[misc, assignment]
    _fail_steps()
    _hold_loads()
    _count_tasks()
    cli.main()


if __name__ == "__main__":
    main()
