"""Clients that are slow, broken or rude end on their own account; the others are served meanwhile."""

import resource
import socket
import time
from pathlib import Path

import httpx
import pytest

from server import Live, serving

HEAD = b"POST /generate HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
DEADLINE = 3.0  # the shared server's receive_timeout


def _until_closed(raw: socket.socket) -> bytes:
    """All that comes before the server closes the connection."""
    received = b""
    while True:
        try:
            data = raw.recv(65536)
        except ConnectionResetError:
            return received
        if not data:
            return received
        received += data


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GE",
        b"GET /ping HTTP/1.1\r\nhos",
        HEAD + b"content-length: 100\r\n\r\n{",
        HEAD,
        b"GET /ping HTTP/1.1\r\n\r",
    ],
    ids=["nothing", "method", "header", "body", "no-end", "almost"],
)
def test_half_a_request_is_answered_408(live: Live, sent: bytes) -> None:
    """What never becomes a whole request ends at the deadline, and others are served meanwhile."""
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", live.port), timeout=30) as raw:
        raw.sendall(sent)
        with live.ask() as client:
            assert client.get("/ping").status_code == 200
        answer = _until_closed(raw)
    assert answer.startswith(b"HTTP/1.1 408"), answer
    assert b'"code":"request_timeout"' in answer
    assert time.monotonic() - began < DEADLINE + 10


def test_a_byte_now_and_then_does_not_buy_time(live: Live) -> None:
    """The deadline is for the whole request, not from byte to byte."""
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", live.port), timeout=30) as raw:
        for byte in HEAD + b"content-length: 50\r\n\r\n" + b" " * 50:
            try:
                raw.send(bytes([byte]))
            except OSError:
                break
            time.sleep(0.2)
    assert time.monotonic() - began < DEADLINE + 10


def test_a_later_request_has_its_own_deadline(live: Live) -> None:
    """After an answer the connection stays; half of a second request ends it."""
    with socket.create_connection(("127.0.0.1", live.port), timeout=30) as raw:
        raw.sendall(b"GET /ping HTTP/1.1\r\nhost: localhost\r\n\r\n")
        answer = b""
        while not answer.endswith(b"}"):  # head and body may come one after the other
            answer += raw.recv(65536)
        assert answer.startswith(b"HTTP/1.1 200")
        raw.sendall(b"GET /pi")
        assert _until_closed(raw).startswith(b"HTTP/1.1 408")


def test_pipelined_requests_are_answered_in_order(live: Live) -> None:
    """Two requests in one packet get two answers."""
    with socket.create_connection(("127.0.0.1", live.port), timeout=30) as raw:
        raw.sendall(
            b"GET /ping HTTP/1.1\r\nhost: localhost\r\n\r\n"
            b"GET /nope HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
        )
        answers = _until_closed(raw)
    assert answers.index(b"HTTP/1.1 200") < answers.index(b"HTTP/1.1 404")


@pytest.mark.parametrize("garbage", [b"\x16\x03\x01\x02\x00\x01\x00", b"\0" * 64 + b"\r\n\r\n", b"HELLO\r\n\r\n"])
def test_what_is_no_http_is_closed(live: Live, garbage: bytes) -> None:
    """A TLS hello or noise is answered 400 or 408, and the connection ends."""
    with socket.create_connection(("127.0.0.1", live.port), timeout=30) as raw:
        raw.sendall(garbage)
        assert _until_closed(raw)[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 408")


@pytest.mark.parametrize(
    "headers",
    [
        b"content-length: 5\r\ntransfer-encoding: chunked\r\n",
        b"content-length: 5\r\ncontent-length: 6\r\n",
        b"content-length: -1\r\n",
    ],
    ids=["both", "two", "negative"],
)
def test_smuggled_lengths_are_refused(live: Live, headers: bytes) -> None:
    """A request whose length can be read in two ways is not read at all, or read in the one way that is safe."""
    with socket.create_connection(("127.0.0.1", live.port), timeout=30) as raw:
        raw.sendall(HEAD + headers + b"connection: close\r\n\r\n0\r\n\r\n")
        assert _until_closed(raw).startswith(b"HTTP/1.1 400")


def test_there_is_a_bound_on_connections(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Connections above the limit are closed at once; when others have gone, there is room again."""
    with serving(tmp_path_factory.mktemp("outputs"), connection_limit="5") as live:
        idle = [socket.create_connection(("127.0.0.1", live.port), timeout=10) for _ in range(5)]
        with socket.create_connection(("127.0.0.1", live.port), timeout=10) as one_more:
            assert _until_closed(one_more) == b""
        for raw in idle:
            raw.close()
        time.sleep(0.5)
        with live.ask() as client:
            assert client.get("/ping").status_code == 200
        assert live.stop() == 0


def test_without_descriptors_connections_wait(tmp_path: Path) -> None:
    """Who is connected is served at once, and the log does not fill up; who is not gets in when there is room again."""
    with serving(tmp_path / "outputs") as live, live.ask() as client:
        live.wait_ready()
        assert client.get("/livez").status_code == 200
        pid = live.process.pid
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(list(Path(f"/proc/{pid}/fd").iterdir())), limits[1]))
        late = [socket.create_connection(("127.0.0.1", live.port), timeout=30) for _ in range(5)]
        end = time.monotonic() + 3
        while time.monotonic() < end:
            assert client.get("/livez").status_code == 200
            time.sleep(0.05)
        told = [line for line in live.log if "connections wait" in line]
        assert len(told) == 1
        assert not any("Traceback" in line for line in live.log)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        for raw in late:
            raw.sendall(b"GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            assert _until_closed(raw).startswith(b"HTTP/1.1 200")
            raw.close()
        assert httpx.get(f"{live.address}/livez", timeout=30).status_code == 200
