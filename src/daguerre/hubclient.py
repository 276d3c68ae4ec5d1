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

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """The answer of the first of the host's addresses that can be connected to.

        Raises:
            UrlRefused: one of them must not be connected to.
        """
        if _place(request.url) == self._own:
            return super().handle_request(request)
        failure: httpx2.ConnectError | None = None
        for address in self._addresses(request.url.host):
            try:
                return super().handle_request(_pinned(request, address))
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


def _pinned(request: httpx2.Request, address: str) -> httpx2.Request:
    """The same request to an address of its host; the Host header and the name in TLS stay."""
    extensions = {**request.extensions, "sni_hostname": request.url.host}
    url = request.url.copy_with(host=address)
    return httpx2.Request(request.method, url, headers=request.headers, stream=request.stream, extensions=extensions)
