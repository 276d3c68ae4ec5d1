"""Owns trials: input that breaks naive servers, as probes over an address. Each gives what came through, or broke.

Against Daguerre that is nothing (``test_advisories.py``); against ``naive_paint`` it is something (``test_naive.py``).
"""

import contextlib
import io
import itertools
import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from probes import raw, shake
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

SMALL: dict[str, Any] = {"prompt": "a lake", "width": 64, "height": 64, "steps": 1, "guidance_scale": 1}
JSON = {"content-type": "application/json"}
#: Seconds of the processor that the server has taken so far.
Cpu = Callable[[], float]
#: Of these no request may take more. What is measured is the server's, whatever else the machine does; it is to be
#: 0.05, and what runs beside the request has the rest.
MOST_CPU = 0.25


def cpu_of(process: int) -> float:
    """Seconds of the processor that a process has taken."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _status(answer: bytes) -> int:
    return int((answer.split(b" ", 2)[1:2] or [b"0"])[0])


@contextlib.contextmanager
def asking(address: str) -> Iterator[httpx.Client]:
    """A client of it."""
    # A server that failed closes its connection: each request has its own.
    limits = httpx.Limits(max_keepalive_connections=0)
    with httpx.Client(base_url=address, timeout=60, limits=limits) as client:
        yield client


def post(client: httpx.Client, path: str, body: bytes, headers: dict[str, str]) -> int:
    """The status; 0 where the connection broke."""
    try:
        return client.post(path, content=body, headers=headers).status_code
    except httpx.TransportError:
        return 0


# Files

#: What must not be read, in every file that `plant` puts down.
SECRET = b"canary-of-the-configuration"
CONFIGS = ("daguerre.toml", ".env", "daguerre.db", "daguerre.db-wal", "catalog.toml", "keys.json", "a.svg", "a.html")
NAMES = (
    *(
        "..",
        ".",
        "%2e%2e",
        "%2E%2E%2F",
        "..%2fsecret.toml",
        "..%2Fsecret.toml",
        "%2e%2e%2fsecret.toml",
        "../secret.toml",
    ),
    *("..%5csecret.toml", "..\\secret.toml", "....//secret.toml", "..;/secret.toml", "%252e%252e%252fsecret.toml"),
    *("..%c0%afsecret.toml", "..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2fetc%2fpasswd", "%2fetc%2fpasswd", "/etc/passwd"),
    *(
        "a%00b.png",
        "a%00.png",
        "x" * 300,
        f"{'x' * 300}.png",
        "C:",
        "C:%5cwindows%5cwin.ini",
        "CON",
        "NUL.png",
        "~root",
    ),
    *(
        "folder",
        "folder.png",
        "folder/",
        "link",
        "link.png",
        "folder%2flink.png",
        "missing.png",
        "-",
        "%ff.png",
        "%0d%0aX-Evil:1",
    ),
    *CONFIGS,
)
PLACES = (
    "/outputs/{}",
    "/outputs/{}/thumbnail",
    "/docs/{}",
    "/{}",
    "/static/{}",
    "/files/{}",
    "/view?filename={}",
    "/file={}",
)


def plant(outputs: Path) -> None:
    """Puts what must not be served beside the pictures, and behind links among them."""
    secret = outputs.parent / "secret.toml"
    secret.write_bytes(SECRET)
    for name in ("folder", "folder.png"):
        (outputs / name).mkdir()
    for link in (outputs / "link", outputs / "link.png", outputs / "folder" / "link.png"):
        link.symlink_to(secret)
    for name in CONFIGS:
        (outputs / name).write_bytes(SECRET)


def traversals(port: int) -> list[str]:
    """Every name in every place; gives those that were served, or broke something."""
    found = []
    for place, name in itertools.product(PLACES, NAMES):
        path = place.format(name)
        answer = raw(port, f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
        if _status(answer) not in (400, 404) or SECRET in answer or b"root:" in answer or b"\r\nX-Evil" in answer:
            found.append(f"{_status(answer)} {path[:60]}")
    return found


def unprotected(address: str, path: str) -> list[str]:
    """The headers that a picture lacks, by which a browser takes it for a picture and nothing else."""
    with asking(address) as client:
        headers = client.get(path).headers
    wanted = {
        "x-content-type-options": "nosniff",
        "content-security-policy": "sandbox",
        "content-disposition": "filename=",
        "content-type": "image/",
    }
    return [f"{path}: {name}" for name, part in wanted.items() if part not in headers.get(name, "")]


RANGES = (
    "bytes=" + ",".join(f"{at}-{at}" for at in range(0, 12_000, 2)),
    "bytes=" + ",".join("0-" for _ in range(10_000)),
    "bytes=" + ",".join(f"-{at}" for at in range(1, 5_000)),
    "bytes=" + ",".join(f"{at}-{at + 9}" for at in range(3_000)),
    f"bytes={'9' * 4000}-",
    f"bytes=-{'9' * 4000}",
    f"bytes=0-{'9' * 4000}",
    *(
        "bytes=9-1",
        "bytes=",
        "bytes=-",
        "bytes=--1",
        "bytes=a-b",
        "bytes=0-0,",
        "bytes=-0",
        "lines=0-1",
        "bytes=0-0;1-1",
    ),
)


def ranges(port: int, path: str, cpu: Cpu) -> list[str]:
    """Gives the Range headers that broke something, or took long."""
    found = []
    for asked in RANGES:
        before = cpu()
        request = f"GET {path} HTTP/1.1\r\nhost: localhost\r\nrange: {asked}\r\nconnection: close\r\n\r\n"
        answer = raw(port, request.encode())
        took, status = cpu() - before, _status(answer)
        if took > MOST_CPU or not 200 <= status < 500:
            found.append(f"{asked[:40]}: {status}, {took:.2f} s")
    return found


def told(picture: bytes, secrets: Iterable[str]) -> list[str]:
    """The texts of a PNG that it has no business to carry, and secrets anywhere in it."""
    with Image.open(io.BytesIO(picture)) as image:
        texts = sorted(set(image.info) - {"parameters", "daguerre", "dpi"})
    return texts + [secret for secret in secrets if secret.encode() in picture]


# Whose request it is

POSTS = ("/generate", "/v1/jobs", "/v1/images/generations", "/sdapi/v1/txt2img", "/v1/models/load", "/v1/loras/load")
ORIGINS = ("https://evil.example", "null", "http://localhost.evil.example", "http://localhost:1", None)
#: What a page may send to anywhere without asking, and JSON.
KINDS = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", JSON["content-type"])


def crossings(address: str, paths: Iterable[str] = POSTS) -> list[str]:
    """Posts, and a socket, as pages of other sites send them; gives those that were neither 403 nor 415."""
    found = []
    with asking(address) as client:
        for path, origin, kind in itertools.product(paths, ORIGINS, KINDS):
            if origin is None and kind == JSON["content-type"]:
                continue  # no page: a client of ours
            headers = {"content-type": kind} | ({} if origin is None else {"origin": origin})
            status = post(client, path, json.dumps(SMALL).encode(), headers)
            found += [f"{path} {origin} {kind}: {status}"] if status not in (403, 415) else []
    sockets = [origin for origin in ORIGINS if origin is not None]
    return found + [f"WS {each}" for each in sockets if shake(address, "/v1/stream", {"origin": each}) == 101]


HOSTS = (
    "evil.example",
    "x/#@localhost",
    "localhost@evil.example",
    "localhost.evil.example",
    "a b",
    "localhost/ping?",
    "[::1",
    "127.0.0.1.evil.example",
    "localhost\\@evil.example",
    "%6cocalhost",
)


def foreign_hosts(port: int) -> list[str]:
    """The names that a page could rebind to this machine, or hide a path in; gives those that were answered."""
    asked = {host: f"GET /ping HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode() for host in HOSTS}
    return [host for host, request in asked.items() if _status(raw(port, request)) != 400]


# What goes out

PROMPTS = (
    "🌅",
    "a\r\nX-Evil: 1",
    "a\nX-Evil: 1",
    "nul\0",
    "\x1b[31mred",
    "\u202egnp",
    "山の夕日",
    "é" * 5000,
    "\x85\u2028",
)


def broken_answers(address: str) -> list[str]:
    """Prompts that no header can hold; gives those that were not painted, or forged one."""
    found = []
    with asking(address) as client:
        for prompt in PROMPTS:
            try:
                answer = client.post("/generate", json=SMALL | {"prompt": prompt, "prompt_syntax": "plain"})
            except httpx.TransportError as error:
                found.append(f"{prompt[:10]!r}: {type(error).__name__}")
                continue
            if answer.status_code != 200 or "x-evil" in answer.headers:
                found.append(f"{prompt[:10]!r}: {answer.status_code}")
    return found


def new_series(address: str) -> list[str]:
    """Asks for paths, methods and models that nobody has heard of, twice; gives what series the second made."""

    def round_of_requests() -> set[str]:
        for _ in range(10):
            name = uuid.uuid4().hex
            for method, path in (("GET", f"/{name}"), ("GET", f"/outputs/{name}"), (name[:8].upper(), "/generate")):
                with contextlib.suppress(httpx.TransportError):
                    client.request(method, path)
            post(client, "/generate", json.dumps(SMALL | {"model": name}).encode(), JSON)
            client.get("/v1/jobs", headers={"authorization": f"Bearer {name}"})
        client.get("/metrics")
        lines = client.get("/metrics").text.splitlines()
        return {line.rpartition(" ")[0] for line in lines if not line.startswith("#")}

    with asking(address) as client:
        first = round_of_requests()
        return sorted(round_of_requests() - first)


# Sockets and connections


def deflated(address: str) -> list[str]:
    """The extensions that a socket agrees to: a compressor is memory for each, and a bomb's way in."""
    with connect(address.replace("http", "ws", 1) + "/v1/stream", compression="deflate") as socket:
        return [extension.name for extension in socket.protocol.extensions]


def large_frames(address: str, size: int) -> list[str]:
    """A frame of that size; gives the answer, where there is one."""
    with connect(address.replace("http", "ws", 1) + "/v1/stream", compression=None) as socket:
        try:
            socket.send("x" * size)
            return [str(socket.recv(timeout=10))[:40]]
        except ConnectionClosed as closed:
            return [] if closed.rcvd is not None and closed.rcvd.code == 1009 else [str(closed)]


HALVES = (
    b"",
    b"GE",
    b"GET /ping HTTP/1.1\r\nhos",
    b"POST /generate HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n{",
)


def half_open(port: int, seconds: float) -> list[str]:
    """Requests that never become whole; gives those whose connection is still open after so long."""
    held = {half: socket.create_connection(("127.0.0.1", port), timeout=10) for half in HALVES}
    for half, connection in held.items():
        connection.sendall(half)
    time.sleep(seconds)
    return [repr(half) for half, connection in held.items() if _is_open(connection)]


def _is_open(connection: socket.socket) -> bool:
    """Whether the other side has not ended it."""
    connection.settimeout(0.05)
    with contextlib.closing(connection):
        try:
            while connection.recv(65536):
                pass
        except TimeoutError:
            return True
        except OSError:
            return False
        return False


def crowd(port: int, most: int) -> list[str]:
    """More connections than that at once; gives those beyond that were served."""
    held = []
    for _ in range(most + 20):
        with contextlib.suppress(OSError):
            held.append(socket.create_connection(("127.0.0.1", port), timeout=10))
    served = 0
    for connection in held:
        with contextlib.suppress(OSError):
            connection.sendall(b"GET /ping HTTP/1.1\r\nhost: localhost\r\n\r\n")
            served += connection.recv(65536).startswith(b"HTTP/1.1 200")
    for connection in held:
        connection.close()
    return [f"{served} at once"] if served > most else []
