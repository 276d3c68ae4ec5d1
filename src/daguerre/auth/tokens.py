"""Owns JWTs: whether one is signed by whom the settings name, and whom it stands for.

Which algorithm is used follows from the settings, never from the token: a secret means HS256, a set of keys means RS256
for its RSA keys and ES256 for its P-256 keys (RFC 8725, 3.1).
"""

import asyncio
import math
import time
from typing import Any, Protocol

import jwt
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from daguerre.auth.remote import Remote
from daguerre.errors import AuthUnavailable, Unauthenticated
from daguerre.principal import SCOPES, Principal

REQUIRED = ["exp", "iss", "aud", "sub"]
#: Characters that a sub may have.
LONGEST_SUBJECT = 255
#: Seconds that a token may be good for yet: it cannot be taken back.
LONGEST_LIFE = 366 * 24 * 3600.0
#: Seconds that the clocks of two machines may be apart.
LEEWAY = 10.0
#: Seconds after which keys are read anew, and between two readings for the sake of an unknown one.
FRESH, SEEK_EVERY = 600.0, 30.0
#: Bits that an RSA key must have.
RSA_BITS = 2048


class Keys(Protocol):
    """Where the key of a token is found, and the one algorithm that goes with it."""

    async def find(self, key_id: Any) -> tuple[Any, str]:
        """The key of that id, which a token has chosen: it may be anything."""

    async def close(self) -> None:
        """Ends its connections, if it has some."""


class Secret:
    """One secret for all tokens."""

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()

    async def find(self, _key_id: Any) -> tuple[Any, str]:
        """The secret."""
        return self._secret, "HS256"

    async def close(self) -> None:
        """There is nothing to end."""


class KeySet:
    """The public keys of an issuer (RFC 7517), read when needed, kept while their server does not answer."""

    def __init__(self, url: str) -> None:
        self._remote = Remote(url)
        self._keys: dict[str | None, tuple[Any, str]] = {}
        self._read_at = self._sought_at = -math.inf
        self._reading: asyncio.Task[None] | None = None

    async def find(self, key_id: Any) -> tuple[Any, str]:
        """The key of that id; without an id, the only key that there is.

        Raises:
            Unauthenticated: there is no such key.
            AuthUnavailable: no keys could be read yet.
        """
        now = time.monotonic()
        is_known = isinstance(key_id, str | None) and key_id in self._keys
        is_due = now - self._read_at > FRESH or not is_known
        may_seek = now - self._sought_at > SEEK_EVERY or not self._keys or self._reading is not None
        if is_due and may_seek:
            await self._refresh()
        if not isinstance(key_id, str | None) or key_id not in self._keys:
            raise Unauthenticated("unknown")
        return self._keys[key_id]

    async def _refresh(self) -> None:
        if self._reading is None:
            self._reading = asyncio.get_running_loop().create_task(self._read())
        try:
            await asyncio.shield(self._reading)
        except AuthUnavailable:
            if not self._keys:
                raise

    async def _read(self) -> None:
        try:
            self._sought_at = time.monotonic()
            status, answer = await self._remote.ask()
            if status != 200:
                raise AuthUnavailable
            self._keys = _usable(answer)
            self._read_at = time.monotonic()
        finally:
            self._reading = None

    async def close(self) -> None:
        """Ends its connections."""
        await self._remote.close()


def _usable(answer: Any) -> dict[str | None, tuple[Any, str]]:
    """The public keys for signatures in a key set, by their ids; if there is only one, by no id as well."""
    listed = answer.get("keys") if isinstance(answer, dict) else None
    found: dict[str | None, tuple[Any, str]] = {}
    for entry in listed if isinstance(listed, list) else []:
        key = _key(entry)
        if key is not None and isinstance(entry.get("kid"), str | None):
            found[entry.get("kid")] = key
    if len(found) == 1:
        found[None] = next(iter(found.values()))
    return found


def _key(entry: Any) -> tuple[Any, str] | None:
    """One public key and its algorithm; nothing for what cannot be used here, private keys among it."""
    if not isinstance(entry, dict) or entry.get("use", "sig") != "sig" or "d" in entry:
        return None
    try:
        if entry.get("kty") == "RSA" and entry.get("alg", "RS256") == "RS256":
            rsa = RSAAlgorithm.from_jwk(entry)
            return (rsa, "RS256") if rsa.key_size >= RSA_BITS else None
        if entry.get("kty") == "EC" and entry.get("crv") == "P-256" and entry.get("alg", "ES256") == "ES256":
            return ECAlgorithm.from_jwk(entry), "ES256"
    except (jwt.InvalidKeyError, ValueError, TypeError, KeyError):
        pass
    return None


class Tokens:
    """Verifies JWTs of one issuer for one audience."""

    def __init__(self, keys: Keys, issuer: str, audience: str) -> None:
        self._keys = keys
        self._issuer = issuer
        self._audience = audience

    def is_one(self, credential: str) -> bool:
        """Whether this is meant as a JWT."""
        return credential.count(".") == 2

    async def identify(self, credential: str) -> Principal:
        """Whom the token stands for: its ``sub``, with the scopes in its ``scope``.

        Raises:
            Unauthenticated, AuthUnavailable
        """
        try:
            header = jwt.get_unverified_header(credential)
            key, algorithm = await self._keys.find(header.get("kid"))
            claims = self._verified(credential, key, algorithm)
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("expired") from None
        except (jwt.InvalidIssuerError, jwt.InvalidAudienceError):
            raise Unauthenticated("foreign") from None
        except jwt.DecodeError as error:
            raise Unauthenticated("forged" if isinstance(error, jwt.InvalidSignatureError) else "malformed") from None
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
            raise Unauthenticated("malformed") from None
        return Principal(f"jwt:{claims['sub']}", _scopes(claims.get("scope")))

    def _verified(self, token: str, key: Any, algorithm: str) -> dict[str, Any]:
        claims = jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            issuer=self._issuer,
            audience=self._audience,
            leeway=LEEWAY,
            options={"require": REQUIRED},
        )
        # The library lets a text be a time, or any number, and is content with any sub.
        expires, subject = claims["exp"], claims["sub"]
        if isinstance(expires, bool) or not isinstance(expires, int | float) or expires > time.time() + LONGEST_LIFE:
            raise jwt.DecodeError("exp")
        if not isinstance(subject, str) or not 0 < len(subject) <= LONGEST_SUBJECT or not subject.isprintable():
            raise jwt.DecodeError("sub")
        return claims

    async def close(self) -> None:
        """Ends the connections of its keys."""
        await self._keys.close()


def _scopes(claim: Any) -> frozenset[str]:
    """The scopes in a claim, divided by spaces (RFC 9068, 2.2.3); those that mean nothing here are left out."""
    return frozenset(claim.split()) & frozenset(SCOPES) if isinstance(claim, str) else frozenset()
