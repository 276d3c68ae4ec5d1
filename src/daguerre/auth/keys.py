"""Owns the API keys: how one is made, and whom one stands for.

A key is ``dgr_``, the eight digits by which it is listed and revoked, and 256 random bits. What is kept of it is its
SHA-256: a slow hash is for passwords, which can be guessed; nobody guesses 256 bits, and a fast one costs a request
nothing.
"""

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Collection

from daguerre.errors import Unauthenticated
from daguerre.principal import Principal, Scope
from daguerre.store.keys import KeyRow, KeyRows

PREFIX = "dgr_"
#: Seconds between two notes of a key's last use.
NOTE_EVERY = 60.0

_KEY = re.compile(r"dgr_([0-9a-f]{8})_[A-Za-z0-9_-]{43}")
_NOBODYS = bytes(32)


def make(name: str, scopes: Collection[Scope], expires_at: float | None, now: float) -> tuple[KeyRow, str]:
    """A new key: what is kept of it, and the key itself, which is to be told once."""
    key_id = secrets.token_hex(4)
    key = f"{PREFIX}{key_id}_{secrets.token_urlsafe(32)}"
    return KeyRow(key_id, name, _digest(key), tuple(sorted(scopes)), now, expires_at), key


def client(name: str) -> str:
    """The client that all keys of one name stand for, so that a key can be changed for a new one."""
    return f"key:{name}"


class ApiKeys:
    """Looks keys up, in the database itself: one that is revoked is refused from the next request on."""

    def __init__(self, rows: KeyRows) -> None:
        self._rows = rows
        self._noted: dict[str, float] = {}

    def is_one(self, credential: str) -> bool:
        """Whether this is meant as a key."""
        return credential.startswith(PREFIX)

    async def identify(self, credential: str) -> Principal:
        """Whom the key stands for.

        Raises:
            Unauthenticated, StorageFailed
        """
        found = _KEY.fullmatch(credential)
        if found is None:
            raise Unauthenticated("malformed")
        row, now = self._rows.find(found[1]), time.time()
        # An unknown id takes as long as a known one. Digests are compared, which are bytes of one length.
        is_right = hmac.compare_digest(_digest(credential), _NOBODYS if row is None else row.digest)
        if row is None or not is_right:
            raise Unauthenticated("unknown")
        if row.revoked_at is not None:
            raise Unauthenticated("revoked")
        if row.expires_at is not None and row.expires_at <= now:
            raise Unauthenticated("expired")
        self._note(row.id, now)
        return Principal(client(row.name), frozenset(row.scopes))

    def _note(self, key_id: str, now: float) -> None:
        if now - self._noted.get(key_id, 0.0) >= NOTE_EVERY:
            self._noted[key_id] = now
            self._rows.used(key_id, now)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
