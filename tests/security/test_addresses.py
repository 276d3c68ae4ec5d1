"""Whose word is taken for a client's address."""

import asyncio

import pytest
from starlette.types import Message, Receive, Scope, Send

from daguerre.errors import SettingsError
from daguerre.http.proxies import Proxies, networks


def _seen(peer: str, forwarded: list[str], trusted: tuple[str, ...], header: bytes = b"x-forwarded-for") -> Scope:
    """What the application sees."""
    seen: list[Scope] = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        seen.append(scope)

    async def receive() -> Message:
        raise AssertionError

    async def send(_message: Message) -> None:
        raise AssertionError

    headers = [(header, value.encode("latin-1")) for value in forwarded]
    scope = {"type": "http", "scheme": "http", "client": (peer, 1), "headers": headers}
    asyncio.run(Proxies(app, networks(trusted))(scope, receive, send))
    return seen[0]


@pytest.mark.parametrize(
    ("peer", "forwarded", "trusted", "expected"),
    [
        ("203.0.113.9", [], (), "203.0.113.9"),
        ("203.0.113.9", ["127.0.0.1"], (), "203.0.113.9"),  # nobody is trusted
        ("127.0.0.1", ["203.0.113.9"], (), "127.0.0.1"),  # loopback neither, unless it is said
        ("203.0.113.9", ["127.0.0.1"], ("10.0.0.0/8",), "203.0.113.9"),
        ("10.0.0.1", ["203.0.113.9"], ("10.0.0.0/8",), "203.0.113.9"),
        ("10.0.0.1", ["198.51.100.7, 203.0.113.9"], ("10.0.0.0/8",), "203.0.113.9"),  # the first is the client's own
        ("10.0.0.1", ["198.51.100.7", "203.0.113.9"], ("10.0.0.0/8",), "203.0.113.9"),  # so in two lines
        ("10.0.0.1", ["203.0.113.9, 10.0.0.2"], ("10.0.0.0/8",), "203.0.113.9"),  # through two proxies
        ("10.0.0.1", ["203.0.113.9, 10.0.0.2"], ("10.0.0.1",), "10.0.0.2"),  # of which one is trusted
        ("10.0.0.1", ["unknown"], ("10.0.0.0/8",), "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.9, unknown"], ("10.0.0.0/8",), "10.0.0.1"),
        ("10.0.0.1", [""], ("10.0.0.0/8",), "10.0.0.1"),
        ("10.0.0.1", ["key:admin"], ("10.0.0.0/8",), "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.9\xff"], ("10.0.0.0/8",), "10.0.0.1"),
        ("10.0.0.1", ["2001:db8::1"], ("10.0.0.0/8",), "2001:db8::1"),
        ("::1", ["2001:DB8:0::1"], ("::1",), "2001:db8::1"),  # one address has one name
    ],
)
def test_the_last_address_that_is_not_trusted_counts(
    peer: str, forwarded: list[str], trusted: tuple[str, ...], expected: str
) -> None:
    """From the end, through the proxies that are trusted."""
    assert _seen(peer, forwarded, trusted)["client"][0] == expected


@pytest.mark.parametrize(
    ("peer", "values", "expected"),
    [
        ("10.0.0.1", ["https"], "https"),
        ("10.0.0.1", ["http"], "http"),
        ("10.0.0.1", ["http, https"], "https"),  # the first is the client's own
        ("10.0.0.1", ["https", "http"], "http"),
        ("10.0.0.1", [], "http"),
        ("10.0.0.1", ["javascript"], "http"),
        ("203.0.113.9", ["https"], "http"),  # no proxy of ours
    ],
)
def test_a_trusted_proxy_says_how_the_client_came(peer: str, values: list[str], expected: str) -> None:
    """By TLS or not."""
    assert _seen(peer, values, ("10.0.0.0/8",), b"x-forwarded-proto")["scheme"] == expected


@pytest.mark.parametrize("name", ["proxy.example", "10.0.0.0/33", "10.0.0.1/8", ""])
def test_what_is_no_network_stops_the_start(name: str) -> None:
    """By the setting's name."""
    with pytest.raises(SettingsError, match="trusted_proxies"):
        networks([name])
