"""Owns proxies: whose word is taken for the client's address, and for how it came."""

import ipaddress
from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from daguerre.errors import SettingsError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def networks(names: Iterable[str]) -> tuple[Network, ...]:
    """The networks of a setting.

    Raises:
        SettingsError: one of them is neither an address nor a network.
    """
    try:
        return tuple(ipaddress.ip_network(name) for name in names)
    except ValueError as error:
        raise SettingsError(f"setting 'trusted_proxies': {error}") from None


class Proxies:
    """Takes the client's address from X-Forwarded-For, where a proxy that is trusted has written it.

    A list is read from its end, which the nearest proxy wrote, and left at the first address that is not trusted: what
    stands before it is the client's own invention. X-Forwarded-Proto says whether the client came by TLS, and so what
    the addresses in answers begin with.
    """

    def __init__(self, app: ASGIApp, trusted: tuple[Network, ...]) -> None:
        self._app = app
        self._trusted = trusted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection."""
        if scope["type"] in ("http", "websocket") and scope.get("client") and self._is_trusted(scope["client"][0]):
            if scope["type"] == "http" and (scheme := _last(scope, b"x-forwarded-proto")) in ("http", "https"):
                scope["scheme"] = scheme
            scope["client"] = (self._client(scope["client"][0], _joined(scope, b"x-forwarded-for")), 0)
        await self._app(scope, receive, send)

    def _client(self, peer: str, forwarded: str) -> str:
        client = peer
        for name in reversed(forwarded.split(",")):
            if not self._is_trusted(client):
                break
            try:
                client = str(ipaddress.ip_address(name.strip()))
            except ValueError:  # no address: what a proxy says ends here
                break
        return client

    def _is_trusted(self, name: str) -> bool:
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return any(address in network for network in self._trusted)


def _joined(scope: Scope, header: bytes) -> str:
    """All values of a header as one list."""
    return b",".join(value for name, value in scope["headers"] if name == header).decode("latin-1")


def _last(scope: Scope, header: bytes) -> str:
    """What the nearest proxy wrote."""
    return _joined(scope, header).rpartition(",")[2].strip()
