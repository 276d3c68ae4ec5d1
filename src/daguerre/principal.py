"""Owns the principal: on whose behalf a request is made, and what that one may do."""

from typing import Literal, get_args

import msgspec

#: What credentials may allow: painting, loading and unloading models, running the server, going before others.
Scope = Literal["generate", "models", "admin", "priority"]
SCOPES: tuple[Scope, ...] = get_args(Scope)


class Principal(msgspec.Struct, frozen=True):
    """Who asks. ``client`` is the name that its jobs are kept under."""

    client: str
    scopes: frozenset[str] = frozenset(SCOPES)
    #: Where nobody has to say a name, whoever knows a job's id may ask for it.
    is_anonymous: bool = False

    @property
    def owner(self) -> str | None:
        """Whose jobs it may ask for; nothing stands for anybody's."""
        return None if self.is_anonymous else self.client
