"""Fetching connects to no address that it must not, however that is spelled: told by the sockets that are opened."""

import asyncio
import contextlib
import ipaddress
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from daguerre.errors import FetchFailed, SettingsError, UrlRefused
from daguerre.fetching import MAX_URL, REDIRECTS, Answer, Fetcher, checked, is_public

#: IPv4 addresses that nobody's URL may lead to: a few of each kind.
FORBIDDEN = [
    "127.0.0.1",
    "127.255.255.254",
    "0.0.0.0",  # noqa: S104 - an address to refuse
    "0.1.2.3",
    "10.0.0.5",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "100.100.100.200",
    "192.0.0.192",
    "192.88.99.1",
    "198.18.0.1",
    "203.0.113.9",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "168.63.129.16",
]
FORBIDDEN_V6 = [
    "::",
    "::1",
    "0:0:0:0:0:0:0:1",
    "0000:0000:0000:0000:0000:0000:0000:0001",
    "::0:1",
    "0::1",
    "fe80::1",
    "FE80::1",
    "febf::1",
    "fec0::1",
    "fc00::1",
    "fd00:ec2::254",
    "fdff::1",
    "ff02::1",
    "ff0e::1",
    "100::1",
    "2001:db8::1",
    "2001:2::1",
    "2001:10::1",
    "2001:20::1",
    "3fff::1",
    "5f00::1",
    "4000::1",
]
#: The host that answers with redirects: it is private, and allowed.
OPEN = "127.0.0.2"
PUBLIC = "93.184.215.14"


def spellings(text: str) -> Iterator[str]:
    """The ways to write an IPv4 address that some resolver or parser understands."""
    number = int(ipaddress.IPv4Address(text))
    a, b, c, d = (number >> shift & 255 for shift in (24, 16, 8, 0))
    high, low = f"{a << 8 | b:x}", f"{c << 8 | d:x}"
    yield from (text, f"{text}.", str(number), f"{number}.", f"{number:#x}", f"{number:#010X}", f"0{number:o}")
    yield from (f"{a:#x}.{b:#x}.{c:#x}.{d:#x}", f"{a:#04X}.{b:#04X}.{c:#04X}.{d:#04X}")
    yield from (f"0{a:o}.0{b:o}.0{c:o}.0{d:o}", f"000{a:o}.000{b:o}.000{c:o}.000{d:o}", f"{a:#x}.{b}.0{c:o}.{d}")
    yield from (f"{a}.{b}.{c << 8 | d}", f"{a}.{number & 0xFFFFFF}", f"{a:#x}.{number & 0xFFFFFF:#x}")
    yield from (f"{a:03}.{b:03}.{c:03}.{d:03}", f"{a}.{b}.0{c << 8 | d:o}")
    yield from (text.replace(".", dot) for dot in "\u3002\uff0e\uff61")
    yield "".join(chr(ord(digit) - 0x30 + 0xFF10) if digit != "." else "." for digit in text)
    yield from (text.replace(".", "%2e"), f"%{ord(text[0]):x}{text[1:]}")
    yield from (f"[::ffff:{text}]", f"[::FFFF:{high}:{low}]", f"[0:0:0:0:0:ffff:{text}]", f"[::ffff:0:{text}]")
    yield from (f"[::{text}]", f"[64:ff9b::{text}]", f"[64:ff9b::{high}:{low}]", f"[64:ff9b:1::{text}]")
    yield from (f"[2002:{high}:{low}::]", f"[2002:{high}:{low}::1]", f"[2001:0:{high}:{low}::1]")
    yield f"[2001:0:53aa:64c::{int(high, 16) ^ 0xFFFF:x}:{int(low, 16) ^ 0xFFFF:x}]"  # Teredo
    yield from (f"[2606:4700::5efe:{text}]", f"[2606:4700::200:5efe:{text}]", f"[fe80::5efe:{text}]")  # ISATAP


def hosts() -> Iterator[str]:
    """Spellings of hosts that must not be reached."""
    for address in FORBIDDEN:
        yield from spellings(address)
    for address in FORBIDDEN_V6:
        yield from (f"[{address}]", f"[{address}%25lo]", f"[{address}%lo]")
    yield from ("localhost", "LOCALHOST", "LocalHost", "localhost.", "%6cocalhost", "\u24dbocalhost", "loc\u00adalhost")
    yield from ("127.0.0.1%00.public.example", "127.0.0.1%0d%0a", "127.0.0.1\u0000.public.example")
    yield from NAMES


#: What the resolver of these tests answers.
NAMES = {
    **{f"n{index}.evil.example": [address] for index, address in enumerate(FORBIDDEN + FORBIDDEN_V6)},
    **{f"m{index}.evil.example": [f"::ffff:{address}"] for index, address in enumerate(FORBIDDEN)},
    "scoped.evil.example": ["fe80::1%1"],
    "scoped-loopback.evil.example": ["::1%1"],
    "both.evil.example": [PUBLIC, "127.0.0.1"],
    "either.evil.example": ["127.0.0.1", PUBLIC],
    "mixed.evil.example": ["2606:4700::1111", "::1"],
    "127.0.0.1.nip.example": ["127.0.0.1"],
}


def urls(port: int) -> list[str]:
    """URLs that must not be fetched."""
    found = [f"http://{host}:{port}/" for host in hosts()]
    found += [f"https://{host}:{port}/" for host in spellings("127.0.0.1")]
    place = f"127.0.0.1:{port}"
    found += [
        f"http://public.example@{place}/",
        f"http://public.example:80@{place}/",
        f"http://user:secret@{place}/",
        f"http://@{place}/",
        f"http://:@{place}/",
        f"http://{place}@public.example/",
        f"http://{place}\\@public.example/",
        f"http://public.example\\@{place}/",
        f"http://{place}#@public.example/",
        f"http://{place}?@public.example/",
        f"http://{place}/@public.example/",
        f"http://public.example@public.example@{place}/",
        f"http://public.example%40{place}/",
        f"http://[::1]@{place}/",
        f"http:///{place}/",
        f"http:{place}/",
        f"http:/{place}/",
        f"http:\\\\{place}/",
        f"http:/\\{place}/",
        f"//{place}/",
        f"///{place}/",
        f"{place}/",
        f"HTTP://{place}/",
        f" http://{place}/",
        f"http://{place}/ ",
        f"\thttp://{place}/",
        f"ht\ntp://{place}/",
        f"http://127.0.\t0.1:{port}/",
        f"http://127.0.0.1\r\n:{port}/",
        f"http://127.0.0.1:0{port}/",
        f"http://127.0.0.1:{port}\u0000/",
        f"http://{place}/?{'x' * MAX_URL}",
        "",
        "http://",
        "http://:80/",
        "http://[/",
        "http://[]/",
        "http://[::1/",
        "http://[:::1]/",
        "http://\ud800/",
        "http://127.0.0.1:99999/",
        "http://127.0.0.1:-1/",
        "http://127.0.0.1:x/",
        f"http://{'a' * 300}.example/",
        f"http://{'a' * 64}.example:{port}/",
    ]
    schemes = ("ftp", "file", "gopher", "dict", "ws", "wss", "ldap", "tftp", "sftp", "unix", "jar", "http+unix", "data")
    found += [f"{scheme}://{place}/" for scheme in schemes]
    found += ["data:text/plain,hello", "javascript:alert(1)", "file:///etc/passwd", "about:blank"]
    return found + [f"http://{OPEN}:{low}/" for low in (1, 22, 25, 53, 110, 443 + 1, 993, 1023)]


async def resolve(host: str) -> list[str]:
    """The system's resolver for numbers and localhost, ours for names: no name leaves this machine."""
    if host in NAMES:
        return NAMES[host]
    flags = 0 if host.rstrip(".") == "localhost" else socket.AI_NUMERICHOST
    return [str(place[0]) for *_, place in socket.getaddrinfo(host.encode(), None, flags=flags, proto=socket.SOL_TCP)]


_connected: list[tuple[object, ...]] | None = None


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if event == "socket.connect" and _connected is not None:
        _connected.append(arguments[1])  # type: ignore[arg-type]


sys.addaudithook(_audit)


@contextlib.contextmanager
def connections() -> Iterator[list[tuple[object, ...]]]:
    """Every address that a socket of this process is connected to, or is tried to be."""
    global _connected
    _connected = []
    try:
        yield _connected
    finally:
        _connected = None


Seen = list[bytes]


@contextlib.asynccontextmanager
async def listening(
    host: str, port: int = 0, answer: bytes = b"HTTP/1.1 204 No\r\n\r\n"
) -> AsyncIterator[tuple[int, Seen]]:
    """A listener on a port, and the heads of the requests that it saw; one that was only connected to is empty."""
    seen: Seen = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(b"")
        with contextlib.closing(writer), contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            seen[-1] = await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()

    server = await asyncio.start_server(serve, host, port)
    async with server:
        yield server.sockets[0].getsockname()[1], seen


async def _outcome(fetcher: Fetcher, url: str) -> str:
    try:
        return f"answered {(await fetcher.fetch('GET', url)).status}"
    except (UrlRefused, FetchFailed) as error:
        return error.code


@contextlib.asynccontextmanager
async def guarded() -> AsyncIterator[tuple[int, list[Seen]]]:
    """A port on which 127.0.0.1 and ::1 listen, and what they see."""
    async with contextlib.AsyncExitStack() as stack:
        port, four = await stack.enter_async_context(listening("127.0.0.1"))
        six: Seen = []
        with contextlib.suppress(OSError):  # a machine without IPv6 has no such address to protect
            _, six = await stack.enter_async_context(listening("::1", port))
        yield port, [four, six]


def test_there_are_enough_spellings() -> None:
    """And each is another."""
    assert len(set(urls(8000))) >= 600


def test_no_spelling_of_a_forbidden_address_is_connected_to() -> None:
    """Neither listener sees a connection, and no socket of this process tries any."""

    async def play() -> None:
        fetcher = Fetcher([OPEN], 5, resolve)
        async with guarded() as (port, seen):
            with connections() as connected:
                for url in urls(port):
                    assert await _outcome(fetcher, url) in ("url_refused", "fetch_failed"), url
                await asyncio.sleep(0.05)
            assert seen == [[], []]
            assert connected == []
        await fetcher.close()

    asyncio.run(play())


def test_no_redirect_to_a_forbidden_address_is_followed() -> None:
    """Every spelling again, told by a host that may be asked."""

    async def play() -> None:
        fetcher = Fetcher([OPEN], 5, resolve)
        answer = b"HTTP/1.1 302 Found\r\nLocation: %b\r\nContent-Length: 0\r\n\r\n"
        async with guarded() as (port, seen):
            targets = [url for url in urls(port) if url.startswith(("http:", "https:", "//", "ftp", "file"))]
            targets = [url for url in targets if not set(url) & set("\r\n\0") and url.isprintable()]
            assert len(targets) >= 500
            for target in targets:
                told = answer % target.encode("utf-8", "surrogatepass")
                async with listening(OPEN, answer=told) as (first, asked):
                    with connections() as connected:
                        outcome = await _outcome(fetcher, f"http://{OPEN}:{first}/")
                    assert outcome in ("url_refused", "fetch_failed"), target
                    assert len(asked) <= REDIRECTS + 1
                    assert asked, target
                    assert {place[0] for place in connected} == {OPEN}, target
            await asyncio.sleep(0.05)
            assert seen == [[], []]
        await fetcher.close()

    asyncio.run(play())


def test_a_naive_client_would_have_been_seen() -> None:
    """The listeners do listen, and these spellings do lead there: the system's resolver alone follows a dozen."""

    async def naive(host: str, port: int) -> bool:
        try:
            async with asyncio.timeout(1):
                _, writer = await asyncio.open_connection((await resolve(host))[0], port)
        except (OSError, UnicodeError):
            return False
        writer.close()
        return True

    async def play() -> None:
        async with guarded() as (port, seen):
            targets = [host.strip("[]") for host in {*spellings("127.0.0.1"), "[::1]", "localhost"}]
            reached = sum(await asyncio.gather(*(naive(host, port) for host in targets)))
            await asyncio.sleep(0.05)
            assert reached >= 12
            assert sum(map(len, seen)) == reached

    asyncio.run(play())


def test_a_name_that_changes_its_mind_is_resolved_once() -> None:
    """DNS rebinding: what is connected to is what was checked; asking again would have led to the other listener."""

    async def play() -> None:
        answers = [[OPEN], ["127.0.0.1"], ["::1"]]

        async def rebinding(_host: str) -> list[str]:
            return answers.pop(0)

        fetcher = Fetcher([OPEN], 5, rebinding)
        async with guarded() as (port, seen), listening(OPEN, port) as (_, right):
            assert (await fetcher.fetch("GET", f"http://rebind.example:{port}/")).status == 204
            assert len(right) == 1
            assert f"host: rebind.example:{port}\r\n".encode() in right[0].lower()
            assert len(answers) == 2
            # The next fetch asks anew, and is refused.
            with pytest.raises(UrlRefused):
                await fetcher.fetch("GET", f"http://rebind.example:{port}/")
            assert seen == [[], []]
        await fetcher.close()

    asyncio.run(play())


def test_a_redirect_is_resolved_anew() -> None:
    """The same name may be private the second time."""

    async def play() -> None:
        answers = [[OPEN], ["127.0.0.1"]]

        async def rebinding(_host: str) -> list[str]:
            return answers.pop(0)

        fetcher = Fetcher([OPEN], 5, rebinding)
        answer = b"HTTP/1.1 307 Over There\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n"
        async with guarded() as (port, seen), listening(OPEN, port, answer) as (_, right):
            with pytest.raises(UrlRefused):
                await fetcher.fetch("POST", f"http://rebind.example:{port}/")
            assert len(right) == 1
            assert seen == [[], []]
        await fetcher.close()

    asyncio.run(play())


def test_the_systems_own_resolver_is_checked_as_well() -> None:
    """Without a hook."""

    async def play() -> None:
        fetcher = Fetcher(seconds=5)
        async with guarded() as (port, seen):
            for host in ("localhost", "127.0.0.1", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]"):
                with pytest.raises(UrlRefused):
                    await fetcher.fetch("GET", f"http://{host}:{port}/")
            await asyncio.sleep(0.05)
            assert seen == [[], []]
        await fetcher.close()

    asyncio.run(play())


@pytest.mark.parametrize("allowed", [["127.0.0.1"], ["127.0.0.0/8"], ["friend.example"], ["FRIEND.example", "::1"]])
def test_what_a_setting_allows_is_reached(allowed: list[str]) -> None:
    """By its address, its network or its name, and nothing else with it."""

    async def friendly(host: str) -> list[str]:
        return ["127.0.0.1"] if host.endswith("friend.example") else await resolve(host)

    async def play() -> None:
        fetcher = Fetcher(allowed, 5, friendly)
        async with guarded() as (port, _):
            assert await fetcher.fetch("GET", f"http://friend.example:{port}/") == Answer(204, b"", is_whole=False)
            for host in ("10.0.0.5", "[::ffff:127.0.0.1]", "[fe80::1]"):
                with pytest.raises(UrlRefused):
                    await fetcher.fetch("GET", f"http://{host}:{port}/")
            if allowed == ["friend.example"]:
                for host in ("127.0.0.1", "no-friend.example"):
                    with pytest.raises((UrlRefused, FetchFailed)):
                        await fetcher.fetch("GET", f"http://{host}:{port}/")
        await fetcher.close()

    asyncio.run(play())


def test_a_network_that_is_none_is_told() -> None:
    """With the name of the setting."""
    with pytest.raises(SettingsError, match="private_hosts"):
        Fetcher(["10.0.0.0/99"])


def test_the_next_address_is_tried_when_one_is_silent() -> None:
    """Of several that a name has."""

    async def several(_host: str) -> list[str]:
        return ["127.0.0.3", "127.0.0.1"]

    async def play() -> None:
        fetcher = Fetcher(["127.0.0.0/8"], 5, several)
        async with listening("127.0.0.1") as (port, seen):
            assert (await fetcher.fetch("GET", f"http://two.example:{port}/")).status == 204
            assert len(seen) == 1
        with pytest.raises(FetchFailed):
            await fetcher.fetch("GET", f"http://two.example:{port}/")
        await fetcher.close()

    asyncio.run(play())


def test_the_body_is_bounded() -> None:
    """It is read as far as it is wanted, and never unpacked."""

    async def play() -> None:
        fetcher = Fetcher(["127.0.0.1"], 5)
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5000000\r\nContent-Encoding: gzip\r\n\r\n" + bytes(5_000_000)
        async with listening("127.0.0.1", answer=answer) as (port, seen):
            url = f"http://127.0.0.1:{port}/"
            assert await fetcher.fetch("GET", url) == Answer(200, b"", is_whole=False)
            assert await fetcher.fetch("GET", url, most=1000) == Answer(200, bytes(1000), is_whole=False)
            assert await fetcher.fetch("GET", url, most=5_000_000) == Answer(200, bytes(5_000_000), is_whole=True)
            assert all(b"accept-encoding: identity" in head.lower() for head in seen)
        await fetcher.close()

    asyncio.run(play())


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\n",  # and then nothing: the listener closes
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://[/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 1_000_000,
    ],
)
def test_an_answer_that_makes_no_sense_is_a_failure(answer: bytes) -> None:
    """Redirects without end among them."""

    async def play() -> None:
        fetcher = Fetcher(["127.0.0.1"], 5)
        async with listening("127.0.0.1", answer=answer) as (port, seen):
            with pytest.raises((FetchFailed, UrlRefused)):
                await fetcher.fetch("GET", f"http://127.0.0.1:{port}/", most=100)
            assert len(seen) <= REDIRECTS + 1
        await fetcher.close()

    asyncio.run(play())


def test_time_is_bounded_in_all() -> None:
    """One who sends a byte now and then never exceeds a bound on each read, so the bound is on the whole."""

    async def play() -> None:
        async def drip(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.closing(writer), contextlib.suppress(ConnectionError):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
                for _ in range(300):
                    writer.write(b"x")
                    await writer.drain()
                    await asyncio.sleep(0.1)

        fetcher = Fetcher(["127.0.0.1"], 0.5)
        server = await asyncio.start_server(drip, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            with pytest.raises(FetchFailed, match="too long"):
                async with asyncio.timeout(20):
                    await fetcher.fetch("GET", f"http://127.0.0.1:{port}/", most=100_000)
        await fetcher.close()

    asyncio.run(play())


def test_a_resolver_that_never_answers_ends_in_time() -> None:
    """Names, too, are bounded."""

    async def silent(_host: str) -> list[str]:
        await asyncio.sleep(3600)
        return []

    async def play() -> None:
        fetcher = Fetcher([], 0.2, silent)
        with pytest.raises(FetchFailed, match="too long"):
            await fetcher.fetch("GET", "http://slow.example/")
        await fetcher.close()

    asyncio.run(play())


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would connect on our behalf, unchecked."""

    async def play() -> None:
        async with listening("127.0.0.1") as (port, seen), listening(OPEN) as (other, right):
            for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
                monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
            fetcher = Fetcher([OPEN], 5)
            assert (await fetcher.fetch("GET", f"http://{OPEN}:{other}/")).status == 204
            assert len(right) == 1
            assert seen == []
            await fetcher.close()

    asyncio.run(play())


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
def test_the_certificate_is_of_the_name_not_of_the_address(tmp_path: Path) -> None:
    """The connection goes to an address, but TLS asks for, and checks, the host that the URL names."""
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key -out cert -days 1"
    subprocess.run(
        [*command.split(), "-subj", "/CN=t", "-addext", "subjectAltName=DNS:right.example"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    names: list[str | None] = []
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    serving.sni_callback = lambda _socket, name, _context: names.append(name)

    async def named(_host: str) -> list[str]:
        return ["127.0.0.1"]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 204 No\r\n\r\n")
        writer.close()
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            await writer.wait_closed()

    async def play() -> None:
        trusted = ssl.create_default_context(cafile=str(tmp_path / "cert"))
        fetcher = Fetcher(["127.0.0.1"], 5, named, trusted)
        server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=serving)
        async with server:
            port = server.sockets[0].getsockname()[1]
            assert (await fetcher.fetch("GET", f"https://right.example:{port}/")).status == 204
            with pytest.raises(FetchFailed):
                await fetcher.fetch("GET", f"https://wrong.example:{port}/")
        await fetcher.close()

    asyncio.run(play())
    assert names == ["right.example", "wrong.example"]


@pytest.mark.parametrize("text", [PUBLIC, "8.8.8.8", "1.1.1.1", "172.32.0.1", "2606:4700::1111", "2a00:1450:4001::1"])
def test_public_addresses_are(text: str) -> None:
    """Those that anybody has."""
    assert is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize(
    "text", [*FORBIDDEN, *FORBIDDEN_V6, "2001:4860::5efe:8.8.8.8", "::ffff:8.8.8.8", "fe80::1%eth0"]
)
def test_others_are_not(text: str) -> None:
    """Also what only stands for a public one."""
    assert not is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize(
    "host", ["127.1", "0x7f000001", "2130706433", "017700000001", "[::1]", "10.0.0.1", "[fd00::1]"]
)
def test_a_number_is_refused_without_resolving(host: str) -> None:
    """So that who sends such a URL hears of it at once; what has a name is judged when it is fetched."""
    fetcher = Fetcher()
    with pytest.raises(UrlRefused, match="not public"):
        fetcher.check(f"http://{host}/hook")
    fetcher.check("https://public.example/hook?token=1")
    Fetcher(["10.0.0.0/8"]).check("http://10.0.0.1:9000/")


def test_what_is_wrong_with_a_url_is_told() -> None:
    """In words for who sent it."""
    for url, word in {
        "ftp://a.example/": "http://",
        "http://u@a.example/": "password",
        "http://a.example:22/": "port",
        "http://a.example/" + "x" * MAX_URL: "characters",
        "http:///x": "host",
    }.items():
        with pytest.raises(UrlRefused, match=word):
            checked(url)
    assert checked("https://a.example:8443/x?y=z").port == 8443
