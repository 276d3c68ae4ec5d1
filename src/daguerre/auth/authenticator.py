"""Owns authentication: which of the ways that are set up a credential belongs to, and whom it stands for."""

from typing import Protocol

from daguerre.auth.keys import ApiKeys
from daguerre.errors import SettingsError, Unauthenticated
from daguerre.principal import Principal
from daguerre.settings import Settings
from daguerre.store.keys import KeyRows

#: Characters that a credential may have.
LONGEST = 8192
#: Bytes that a secret for HS256 must have (RFC 7518, 3.2).
SECRET_BYTES = 32


class Way(Protocol):
    """One way to authenticate."""

    def is_one(self, credential: str) -> bool:
        """Whether the credential is meant for this way."""

    async def identify(self, credential: str) -> Principal:
        """Whom it stands for."""


class Authenticator:
    """The ways that are set up. Which one a credential is for is told by its looks; no other one is tried then."""

    def __init__(self, settings: Settings, rows: KeyRows) -> None:
        self._ways: list[Way] = []
        self._closing = []
        if "keys" in settings.ways:
            self._ways.append(ApiKeys(rows))
        # Libraries for the network and for cryptography are loaded where they are needed.
        if "hub" in settings.ways:
            from daguerre.auth.hub import HubTokens

            hub = HubTokens(settings.hub_whoami, settings.hub_users, settings.hub_organisations)
            self._ways.append(hub)
            self._closing.append(hub.close)
        if "jwt" in settings.ways:
            from daguerre.auth.tokens import KeySet, Secret, Tokens

            keys = Secret(settings.jwt_secret) if settings.jwt_secret else KeySet(settings.jwt_jwks_url)
            tokens = Tokens(keys, settings.jwt_issuer, settings.jwt_audience)
            self._ways.append(tokens)
            self._closing.append(tokens.close)

    @property
    def is_needed(self) -> bool:
        """Whether anybody has to authenticate."""
        return bool(self._ways)

    async def identify(self, credential: str) -> Principal:
        """Whom a credential stands for.

        Raises:
            Unauthenticated: it is of no way that is set up, or not valid.
            Forbidden, AuthUnavailable, StorageFailed
        """
        if len(credential) > LONGEST:
            raise Unauthenticated("malformed")
        for way in self._ways:
            if way.is_one(credential):
                return await way.identify(credential)
        raise Unauthenticated("unknown")

    async def close(self) -> None:
        """Ends the connections to other servers."""
        for close in self._closing:
            await close()


def check(settings: Settings) -> None:
    """Sees that each way has what it needs: one that had not would let in nobody, or everybody.

    Raises:
        SettingsError
    """
    if "hub" in settings.ways and not (settings.hub_users or settings.hub_organisations):
        raise SettingsError("auth has hub: say in hub_users or hub_organisations whose tokens are let in")
    if "jwt" not in settings.ways:
        return
    if bool(settings.jwt_secret) == bool(settings.jwt_jwks_url):
        raise SettingsError("auth has jwt: set either jwt_secret or jwt_jwks_url")
    if settings.jwt_secret and len(settings.jwt_secret.encode()) < SECRET_BYTES:
        raise SettingsError(f"jwt_secret must have at least {SECRET_BYTES} bytes")
    for name in ("jwt_issuer", "jwt_audience"):
        if not getattr(settings, name):
            raise SettingsError(f"auth has jwt: {name} must be set")
