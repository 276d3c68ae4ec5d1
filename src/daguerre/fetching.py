"""Owns fetching from addresses that somebody else chose: what is connected to is public, or was allowed by a setting.

A name is resolved once for each hop, every address that it has is checked, and the connection is made to a checked
address itself: a name that changes its mind between the check and the connection gains nothing. The Host header and
the name in TLS stay as they were. A redirect is a hop like the first. Proxies, cookies and credentials are not used.
"""

import asyncio
import ipaddress
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import httpx

from daguerre.errors import FetchFailed, SettingsError, UrlRefused

#: Redirects that are followed.
REDIRECTS = 3
#: Beside these, ports from 1024 on: below it other protocols listen, some of which can be talked to in HTTP.
PORTS = (80, 443)
MAX_URL = 2000

Address = IPv4Address | IPv6Address
#: Gives the addresses of a name, as text.
Resolve = Callable[[str], Awaitable[list[str]]]

_HOST = re.compile(r"[a-z0-9_][a-z0-9._-]{0,253}|[0-9a-f:.]*:[0-9a-f:.]*")
_BAD = re.compile(r"[\x00-\x20\x7f\\]")
#: Resolving blocks its thread; names whose servers never answer shall hold up nothing but other names.
_RESOLVERS = 16

# IANA's registries of special-purpose addresses; what newer Pythons know of them is asked beside. 168.63.129.16 is
# public by its number, but inside of Azure it is the host's own.
_SPECIAL = tuple(
    ip_network(text)
    for text in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24"),
        *("203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4", "168.63.129.16/32"),
        # Of IPv6: what stands for an IPv4 address (Teredo and 6to4), benchmarks, hashes, documentation.
        *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),
    )
)
#: All of IPv6 that is routed to anybody; IPv4-mapped, NAT64, local, multicast and reserved addresses lie outside.
_GLOBAL_UNICAST = ip_network("2000::/3")
_ISATAP = 0x00005EFE  # bits 32 to 63 of an address that stands for an IPv4 address (RFC 5214), but for the u bit


def is_public(address: Address) -> bool:
    """Whether it is an address that anybody on the Internet can have, and stands for no other."""
    if isinstance(address, IPv6Address):
        is_isatap = (int(address) >> 32) & 0xFDFFFFFF == _ISATAP
        if address not in _GLOBAL_UNICAST or address.scope_id is not None or is_isatap:
            return False
    return address.is_global and not any(address in network for network in _SPECIAL)


def checked(text: str) -> httpx.URL:
    """The URL, if it is one of http or https with a plain host, no credentials and a port that may be used.

    Raises:
        UrlRefused: saying what is wrong with it.
    """
    try:
        url = httpx.URL(text)
        port = url.port
    except (httpx.InvalidURL, ValueError):
        raise UrlRefused("is not a URL") from None
    if len(text) > MAX_URL or _BAD.search(text):
        raise UrlRefused(f"must be at most {MAX_URL} characters, without spaces, backslashes and control characters")
    if url.scheme not in ("http", "https"):
        raise UrlRefused("must begin with http:// or https://")
    if url.userinfo or "@" in url.netloc.decode("ascii"):
        raise UrlRefused("must not hold a user name or a password")
    if not _HOST.fullmatch(url.host):
        raise UrlRefused("must name a host")
    if port is not None and port not in PORTS and not 1024 <= port <= 65535:
        raise UrlRefused("must use port 80, 443, or one from 1024 on")
    return url


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: the status, and the first bytes of the body, as far as they were wanted."""

    status: int
    body: bytes
    is_whole: bool


class PrivateHosts:
    """Hosts, addresses and networks that are not public, and may be reached nonetheless.

    Raises:
        SettingsError: an entry with a slash is no network.
    """

    def __init__(self, entries: Iterable[str]) -> None:
        self._names: set[str] = set()
        self._networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
        for entry in entries:
            try:
                self._networks.append(ip_network(entry))
            except ValueError as error:
                if "/" in entry:
                    raise SettingsError(f"setting 'private_hosts': {error}") from None
                self._names.add(entry.lower())

    def __contains__(self, place: tuple[str, Address]) -> bool:
        """Whether an address that a host has is allowed."""
        host, address = place
        return host in self._names or any(address in network for network in self._networks)


def admit(host: str, address: Address, private: PrivateHosts) -> None:
    """Lets a host's address be connected to.

    Raises:
        UrlRefused: it is not public, and nobody allowed it.
    """
    if not is_public(address) and (host, address) not in private:
        raise UrlRefused("leads to an address that is not public")


class Fetcher:
    """Fetches on an event loop; ``seconds`` bound a fetch in all, redirects included."""

    def __init__(
        self,
        private_hosts: Iterable[str] = (),
        seconds: float = 10.0,
        resolve: Resolve | None = None,
        trusted: ssl.SSLContext | None = None,
    ) -> None:
        self._private = PrivateHosts(private_hosts)
        self._seconds = seconds
        self._resolve = resolve or self._looked_up
        self._trusted = trusted
        self._resolvers = ThreadPoolExecutor(_RESOLVERS, thread_name_prefix="daguerre-resolver")

    def check(self, text: str) -> None:
        """What can be said of a URL without resolving its host.

        Raises:
            UrlRefused: it is not fit to be fetched, or its host is the number of an address that is not public.
        """
        host = checked(text).host
        literal = _literal(host)
        if literal is not None:
            admit(host, literal, self._private)

    async def fetch(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes = b"",
        most: int | None = None,
    ) -> Answer:
        """Sends a request, follows redirects, and reads at most so many bytes of the body, or none of it.

        A redirect of anything but GET is followed only if it keeps the method (307, 308).

        Raises:
            UrlRefused: the URL, or one that it redirects to, leads to where it must not.
            FetchFailed: nobody answers, in time, in HTTP.
        """
        try:
            async with asyncio.timeout(self._seconds):
                return await self._fetched(method, url, headers or {}, content, most)
        except TimeoutError:
            raise FetchFailed("it took too long") from None
        except (httpx.HTTPError, httpx.InvalidURL, ValueError):
            raise FetchFailed from None

    async def close(self) -> None:
        """Ends what is open."""
        self._resolvers.shutdown(wait=False, cancel_futures=True)
        if "_transport" in self.__dict__:
            await self._transport.aclose()

    @cached_property
    def _transport(self) -> httpx.AsyncHTTPTransport:
        # A connection is pinned to an address, and its certificate was checked for one name: it serves one request.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        return httpx.AsyncHTTPTransport(verify=self._trusted or True, limits=limits)

    async def _fetched(
        self, method: str, url: str, headers: Mapping[str, str], content: bytes, most: int | None
    ) -> Answer:
        target = checked(url)
        for _ in range(REDIRECTS + 1):
            response = await self._sent(method, target, headers, content)
            try:
                onward = _onward(method, target, response)
                if onward is None:
                    body = b"" if most is None else await _read(response, most + 1)
                    is_whole = most is not None and len(body) <= most
                    return Answer(response.status_code, body[:most], is_whole)
            finally:
                await response.aclose()
            target = checked(onward)
        raise FetchFailed("it redirects too often")

    async def _sent(self, method: str, url: httpx.URL, headers: Mapping[str, str], content: bytes) -> httpx.Response:
        """The answer of the first of the host's addresses that can be connected to."""
        plain = {"host": url.netloc.decode("ascii"), "accept-encoding": "identity", **headers}
        extensions = {"timeout": httpx.Timeout(self._seconds).as_dict(), "sni_hostname": url.host}
        failure: httpx.ConnectError | None = None
        for address in await self._addresses(url.host):
            pinned = url.copy_with(host=str(address))
            request = httpx.Request(method, pinned, headers=plain, content=content, extensions=extensions)
            try:
                return await self._transport.handle_async_request(request)
            except httpx.ConnectError as error:
                failure = error
        assert failure is not None
        raise failure

    async def _addresses(self, host: str) -> list[Address]:
        """All addresses of a host; each of them may be connected to."""
        try:
            found = [ip_address(text) for text in await self._resolve(host)]
        except (OSError, ValueError):
            found = []
        if not found:
            raise FetchFailed("its host is not known")
        for address in found:
            admit(host, address, self._private)
        return found

    async def _looked_up(self, host: str) -> list[str]:
        return await asyncio.get_running_loop().run_in_executor(self._resolvers, resolved, host)


def _literal(host: str) -> Address | None:
    """The address that a host is the number of: also in the old spellings, which the system's resolver knows."""
    for read in (ip_address, lambda text: ip_address(socket.inet_aton(text))):
        try:
            return read(host)
        except (OSError, ValueError):
            continue
    return None


def resolved(host: str) -> list[str]:
    """The addresses that the system knows for a host.

    Raises:
        OSError: none.
    """
    # As bytes: of text, Python would first make IDNA, as it was in 2003.
    found = socket.getaddrinfo(host.encode("ascii"), None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(place[0]) for *_, place in found))


def _onward(method: str, url: httpx.URL, response: httpx.Response) -> str | None:
    """Where an answer redirects to, if it does."""
    keeps, changes = (307, 308), (301, 302, 303)
    location = response.headers.get("location")
    if location is None or response.status_code not in (*keeps, *(changes if method == "GET" else ())):
        return None
    onward = url.join(location)
    if url.scheme == "https" and onward.scheme == "http":
        raise UrlRefused("redirects from https to http")
    return str(onward)


async def _read(response: httpx.Response, most: int) -> bytes:
    """The first bytes of the body, as they come: nothing is unpacked."""
    body = bytearray()
    async for part in response.aiter_raw():
        body += part
        if len(body) >= most:
            break
    return bytes(body[:most])
