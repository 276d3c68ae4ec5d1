"""Owns the rows of API keys: who has one, what it allows, and until when."""

import sqlite3
from concurrent.futures import Future
from typing import Any

import msgspec

from daguerre.errors import StorageFailed
from daguerre.principal import Scope
from daguerre.store.db import Database

_COLUMNS = "id, name, digest, scopes, created_at, expires_at, revoked_at, last_used_at"


class KeyRow(msgspec.Struct, frozen=True):
    """A key as it is kept. Times are Unix seconds; ``digest`` is the SHA-256 of the whole key."""

    id: str
    name: str
    digest: bytes
    scopes: tuple[Scope, ...]
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None
    last_used_at: float | None = None


class KeyRows:
    """The keys of one database. ``find`` reads on the thread that calls it, which is to be always the same."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._reader = database.reader()

    def find(self, key_id: str) -> KeyRow | None:
        """The key of that id as it is at this moment, whichever process changed it last. Takes some 10 µs.

        Raises:
            StorageFailed: the database cannot be read.
        """
        try:
            found = self._reader.execute(f"SELECT {_COLUMNS} FROM api_keys WHERE id = ?", (key_id,)).fetchone()  # noqa: S608
        except sqlite3.Error:
            raise StorageFailed("the keys cannot be read") from None
        return None if found is None else _key(found)

    def all(self) -> list[KeyRow]:
        """Every key, revoked ones too, the oldest first."""
        query = f"SELECT {_COLUMNS} FROM api_keys ORDER BY created_at"  # noqa: S608
        return [_key(row) for row in self._reader.execute(query)]

    def add(self, key: KeyRow) -> "Future[None]":
        """A new key."""
        key_id, name, digest, scopes, *times = msgspec.structs.astuple(key)
        row = (key_id, name, digest, " ".join(scopes), *times)

        def change(connection: sqlite3.Connection) -> None:
            connection.execute(f"INSERT INTO api_keys ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)  # noqa: S608

        return self._database.post(change)

    def revoke(self, name: str, now: float) -> "Future[int]":
        """Ends the key of that id, or all keys of that name; gives how many."""
        query = "UPDATE api_keys SET revoked_at = ? WHERE (id = ? OR name = ?) AND revoked_at IS NULL"
        return self._database.post(lambda connection: connection.execute(query, (now, name, name)).rowcount)

    def used(self, key_id: str, now: float) -> "Future[None]":
        """The key has been used."""

        def change(connection: sqlite3.Connection) -> None:
            connection.execute("UPDATE api_keys SET last_used_at = ? WHERE id = ?", (now, key_id))

        return self._database.post(change)


def _key(row: tuple[Any, ...]) -> KeyRow:
    key_id, name, digest, scopes, *times = row
    return KeyRow(key_id, name, digest, tuple(scopes.split()), *times)
