"""Owns the way to the Hub: its own host, and from there, by redirects, public addresses alone.

Who keeps a mirror, or has a hand on one, says where downloads are redirected to; this machine's neighbours are not for
it to ask. As in `daguerre.fetching`, what is connected to is the address that was checked.
"""

import functools
import urllib.request
from ipaddress import ip_address

import httpx2

from daguerre.fetching import PrivateHosts, admit, resolved


@functools.cache
def guard(endpoint: str, private_hosts: tuple[str, ...]) -> None:
    """Has huggingface_hub use it from here on, in all of this process.

    Where the environment names a proxy, that one resolves names and says what may be reached.
    """
    if urllib.request.getproxies().keys() & {"http", "https", "all"}:
        return
    from huggingface_hub.utils import close_session, get_session, set_client_factory

    plain = get_session()
    hooks, timeout = plain.event_hooks, plain.timeout

    def client() -> httpx2.Client:
        way = Way(httpx2.URL(endpoint), PrivateHosts(private_hosts))
        return httpx2.Client(transport=way, event_hooks=hooks, timeout=timeout, follow_redirects=True)

    close_session()
    set_client_factory(client)


class Way(httpx2.HTTPTransport):
    """Connects to one place as it is named, and to all others if each of their addresses is public, or was allowed."""

    def __init__(self, own: httpx2.URL, private: PrivateHosts) -> None:
        super().__init__()
        self._own = _place(own)
        self._private = private
        # A connection is pinned to an address, and its certificate was checked for one name: it serves one request.
        self._pinned = httpx2.HTTPTransport(limits=httpx2.Limits(max_keepalive_connections=0))

    def close(self) -> None:
        """Ends what is open."""
        super().close()
        self._pinned.close()

    def handle_request(self, asked: httpx2.Request) -> httpx2.Response:
        """The answer of the first of the host's addresses that can be connected to.

        Raises:
            UrlRefused: one of them must not be connected to.
        """
        if _place(asked.url) == self._own:
            return super().handle_request(asked)
        failure: httpx2.ConnectError | None = None
        for address in self._addresses(asked.url.host):
            try:
                return self._pinned.handle_request(_to(address, asked))
            except httpx2.ConnectError as error:
                failure = error
        raise failure or httpx2.ConnectError("its host is not known")

    def _addresses(self, host: str) -> list[str]:
        try:
            found = resolved(host)
        except OSError:
            return []
        for address in found:
            admit(host, ip_address(address), self._private)
        return found


def _place(url: httpx2.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _to(address: str, asked: httpx2.Request) -> httpx2.Request:
    """The same request to an address of its host; the Host header and the name in TLS stay."""
    extensions = {**asked.extensions, "sni_hostname": asked.url.host}
    url = asked.url.copy_with(host=address)
    return httpx2.Request(asked.method, url, headers=asked.headers, stream=asked.stream, extensions=extensions)
