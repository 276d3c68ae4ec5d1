"""Owns tokens of the Hugging Face Hub: whose each is, by asking the Hub as seldom as can be."""

import asyncio
import hashlib
import re
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from daguerre.auth.remote import Remote
from daguerre.errors import AuthUnavailable, Forbidden, Unauthenticated
from daguerre.principal import Principal

#: Seconds for which an answer is good: whose a token is, and that it is nobody's.
FRESH, REFUSED = 600.0, 60.0
#: Seconds for which a token that was good is taken to be so while the Hub does not answer.
GRACE = 24 * 3600.0
#: Tokens that are remembered, and questions under way at once.
MOST, MOST_ASKED = 4096, 16

_TOKEN = re.compile(r"hf_[A-Za-z0-9]{8,200}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


class Known(NamedTuple):
    """What the Hub has said of a token: its account and that one's organisations, or that there is none."""

    names: tuple[str, ...]
    at: float  # monotonic seconds


class HubTokens:
    """Asks the Hub's whoami, once for all who ask at the same time. Tokens are kept as digests only.

    Any account of the Hub has valid tokens, so only those of the lists are let in.
    """

    def __init__(self, whoami: str, users: Iterable[str], organisations: Iterable[str]) -> None:
        self._remote = Remote(whoami)
        self._users = frozenset(name.lower() for name in users)
        self._organisations = frozenset(name.lower() for name in organisations)
        self._known: dict[bytes, Known] = {}
        self._asking: dict[bytes, asyncio.Task[Known]] = {}

    def is_one(self, credential: str) -> bool:
        """Whether this is meant as a token of the Hub."""
        return credential.startswith("hf_")

    async def identify(self, credential: str) -> Principal:
        """Whom the token stands for. Its scope is painting alone.

        Raises:
            Unauthenticated: the Hub does not know it.
            Forbidden: its account is on no list.
            AuthUnavailable: the Hub does not answer, and never said anything of it.
        """
        if not _TOKEN.fullmatch(credential):
            raise Unauthenticated("malformed")
        names = (await self._find(credential)).names
        if not names:
            raise Unauthenticated("unknown")
        user, *organisations = names
        if user.lower() not in self._users and not self._organisations & {name.lower() for name in organisations}:
            raise Forbidden("this account of the Hub is not on this server's lists")
        return Principal(f"hub:{user}", frozenset(["generate"]))

    async def _find(self, token: str) -> Known:
        digest = hashlib.sha256(token.encode()).digest()
        known = self._known.get(digest)
        age = 0.0 if known is None else time.monotonic() - known.at
        if known is not None and age < (FRESH if known.names else REFUSED):
            return known
        try:
            return await asyncio.shield(self._asked(digest, token))
        except AuthUnavailable:
            if known is not None and known.names and age < GRACE:
                return known
            raise

    def _asked(self, digest: bytes, token: str) -> "asyncio.Task[Known]":
        if digest not in self._asking:
            if len(self._asking) >= MOST_ASKED:
                raise AuthUnavailable
            task = self._asking[digest] = asyncio.get_running_loop().create_task(self._ask(digest, token))
            task.add_done_callback(lambda done: self._asked_for(digest, done))
        return self._asking[digest]

    def _asked_for(self, digest: bytes, done: "asyncio.Task[Known]") -> None:
        del self._asking[digest]
        if not done.cancelled():
            done.exception()  # who asked may have gone

    async def _ask(self, digest: bytes, token: str) -> Known:
        status, answer = await self._remote.ask({"authorization": f"Bearer {token}"})
        known = Known(_names(answer) if status == 200 else (), time.monotonic())
        self._known.pop(digest, None)
        self._known[digest] = known
        if len(self._known) > MOST:  # guesses are forgotten before those who are known
            oldest = next(iter(self._known))
            del self._known[next((digest for digest, known in self._known.items() if not known.names), oldest)]
        return known

    async def close(self) -> None:
        """Ends its connections."""
        await self._remote.close()


def _names(answer: Any) -> tuple[str, ...]:
    """The account's name and those of its organisations; nothing where the answer is not of a person."""
    if not isinstance(answer, dict) or answer.get("type") != "user" or not _is_name(answer.get("name")):
        return ()
    listed = answer.get("orgs")
    organisations = [each.get("name") for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    return (answer["name"], *(name for name in organisations if _is_name(name)))


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and _NAME.fullmatch(name) is not None
