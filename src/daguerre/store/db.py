"""Owns the database: one SQLite file, one thread that writes to it, and its migrations.

A write is durable when its future is done: WAL with ``synchronous=FULL`` syncs the log at every commit. Those that wait
at the same moment share one commit, so that a disk which syncs slowly does not bound how many jobs are accepted.
"""

import asyncio
import logging
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from daguerre.errors import StorageFailed

log = logging.getLogger(__name__)

T = TypeVar("T")
Change = Callable[[sqlite3.Connection], T]

#: What it is called, in the data folder.
DATABASE_FILE = "daguerre.db"
#: Writes that share a commit at most.
MOST = 256


class Database:
    """The file is made, and brought up to date, when this is.

    ``is_guest``: another process may be writing to the file, and it is that one's to fold the log into it. SQLite
    before 3.51.3 could damage the file where two did that in the same instant.

    Raises:
        StorageFailed: it cannot be opened, or comes from a newer Daguerre.
    """

    def __init__(self, path: Path, *, is_guest: bool = False) -> None:
        self._path = path
        self._readers: list[sqlite3.Connection] = []
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=5000"):
                self._connection.execute(f"PRAGMA {pragma}")
            if is_guest:
                self._connection.execute("PRAGMA wal_autocheckpoint=0")
            _migrate(self._connection, path)
        except (sqlite3.Error, OSError) as error:
            raise StorageFailed(f"{path.name} cannot be opened: {error}") from None
        self._is_open = True
        self._waiting: SimpleQueue[tuple[Change[Any], Future[Any]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._write_for_ever, name="daguerre-writer", daemon=True)
        self._thread.start()

    async def write(self, change: Change[T]) -> T:
        """Makes a change and gives what it gave, once that is durable.

        Raises:
            StorageFailed: it was not made.
        """
        return await asyncio.wrap_future(self.post(change))

    def post(self, change: Change[T]) -> "Future[T]":
        """The same without waiting. Changes are made in the order in which they are posted."""
        done: Future[T] = Future()
        if self._is_open:
            self._waiting.put((change, done))
        else:
            done.set_exception(StorageFailed("the server has ended"))
        return done

    def reader(self) -> sqlite3.Connection:
        """A connection that only reads, for look-ups that cannot wait for the writer; for one thread."""
        reader = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=0.1)
        reader.execute("PRAGMA query_only=ON")
        self._readers.append(reader)
        return reader

    def close(self) -> None:
        """Makes the changes that wait, and closes the file."""
        self._is_open = False
        self._waiting.put(None)
        self._thread.join()
        for reader in self._readers:
            reader.close()
        self._connection.close()

    # Everything below runs on the writer thread.

    def _write_for_ever(self) -> None:
        is_open = True
        while is_open:
            batch = [self._waiting.get()]
            while len(batch) < MOST:
                try:
                    batch.append(self._waiting.get_nowait())
                except Empty:
                    break
            is_open = None not in batch
            self._commit([item for item in batch if item is not None])

    def _commit(self, batch: list[tuple[Change[Any], "Future[Any]"]]) -> None:
        made: list[tuple[Future[Any], Any]] = []
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            for change, done in batch:
                found = self._made(change, done)
                if not done.done():
                    made.append((done, found))
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            log.error("the database could not be written: %s", error)  # noqa: TRY400 - its frames say nothing
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            for _, done in batch:
                if not done.done():
                    done.set_exception(StorageFailed())
            return
        for done, found in made:
            done.set_result(found)

    def _made(self, change: Change[T], done: "Future[T]") -> T | None:
        """One change; one that fails is undone alone."""
        self._connection.execute("SAVEPOINT one")
        try:
            found = change(self._connection)
        except sqlite3.Error as error:
            if not self._connection.in_transaction:  # a full disk has ended all of it
                raise
            log.error("a change of the database failed: %s", error)  # noqa: TRY400
            self._connection.execute("ROLLBACK TO one")
            done.set_exception(StorageFailed())
            found = None
        self._connection.execute("RELEASE one")
        return found


def check_version(connection: sqlite3.Connection, name: str) -> set[str]:
    """The steps that a database has been through; none is an empty file.

    Raises:
        StorageFailed: this Daguerre does not know all of them.
    """
    known = _steps()
    done = _steps_done(connection, sorted(known))
    if not done <= known.keys():
        raise StorageFailed(f"{name} was written by a newer Daguerre")
    return done


def _steps() -> dict[str, Traversable]:
    files = resources.files("daguerre.store").joinpath("migrations").iterdir()
    return {file.name: file for file in files if file.name.endswith(".sql")}


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Brings the file up to date, step by step, each in a transaction; a copy of what was there is made first.

    A file knows the names of the steps that it has been through: one that came in late is taken all the same.
    """
    done, steps = check_version(connection, path.name), _steps()
    missing = sorted(steps.keys() - done)
    if done and missing:
        with sqlite3.connect(path.with_suffix(f".before-{len(steps)}.db")) as copy:
            connection.backup(copy)
        copy.close()
    for name in missing:
        done.add(name)
        names = ", ".join(f"('{name}')" for name in sorted(done))
        noted = f"{_STEPS}; INSERT OR IGNORE INTO steps VALUES {names}; PRAGMA user_version = {len(done)}"  # noqa: S608 - our own files' names
        connection.executescript(f"BEGIN; {steps[name].read_text()}; {noted}; COMMIT;")


_STEPS = "CREATE TABLE IF NOT EXISTS steps (name TEXT PRIMARY KEY) STRICT"


def _steps_done(connection: sqlite3.Connection, known: list[str]) -> set[str]:
    """The steps that a file has been through; an older file tells only how many."""
    if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'steps'").fetchone() is not None:
        return {name for (name,) in connection.execute("SELECT name FROM steps")}
    (count,) = connection.execute("PRAGMA user_version").fetchone()
    return set(known[:count]) if count <= len(known) else {"more than are known"}
