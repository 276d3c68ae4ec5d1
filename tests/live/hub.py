"""A Hub of the tests' own: repositories from folders, over HTTP, with whatever a network can do wrong."""

import contextlib
import hashlib
import json
import re
import threading
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class TestHub:
    """Its address, the folders that it serves by repository, what it does wrong, and what it was asked."""

    __test__ = False

    address: str = ""
    repositories: dict[str, Path] = field(default_factory=dict)
    #: By file name: bytes after which the connection is cut, each once.
    cuts: dict[str, list[int]] = field(default_factory=dict)
    #: By file name: seconds of silence after half of the file, each once.
    stalls: dict[str, list[float]] = field(default_factory=dict)
    #: Files that are sent with one bit changed.
    flipped: set[str] = field(default_factory=set)
    #: Bytes that the listing and the headers claim beyond the truth.
    lies: dict[str, int] = field(default_factory=dict)
    #: Files that the listing names beside those that are there.
    extra: list[str] = field(default_factory=list)
    gated: set[str] = field(default_factory=set)
    #: The address of a server that files are to be had from, to which requests for them are redirected.
    elsewhere: str = ""
    #: Bytes a second; 0: as fast as can be.
    speed: int = 0
    sent: list[tuple[str, str]] = field(default_factory=list)  # file, Range header
    asked: set[str] = field(default_factory=set)  # repositories
    tokens: set[str | None] = field(default_factory=set)  # Authorization headers

    def wait_for(self, repository: str) -> None:
        """Waits until somebody has asked for it."""
        end = time.monotonic() + 30
        while repository not in self.asked:
            assert time.monotonic() < end
            time.sleep(0.05)

    def content(self, repository: str, name: str) -> bytes:
        """A file as it is sent."""
        content = (self.repositories[repository] / name).read_bytes()
        if name in self.flipped:
            middle = len(content) - 5
            content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        return content

    def listing(self, repository: str) -> dict[str, Any]:
        """What the Hub says of a repository."""
        folder = self.repositories[repository]
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        siblings = [self._sibling(path, str(path.relative_to(folder))) for path in files]
        siblings += [{"rfilename": name, "size": 3, "blobId": "0" * 40} for name in self.extra]
        return {"id": repository, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}

    def _sibling(self, path: Path, name: str) -> dict[str, Any]:
        size = path.stat().st_size + self.lies.get(name, 0)
        known: dict[str, Any] = {"rfilename": name, "size": size, "blobId": git_sha1(path)}
        if path.suffix == ".safetensors":
            known["lfs"] = {"sha256": sha256(path), "size": size, "pointerSize": 134}
        return known


def sha256(path: Path) -> str:
    """As LFS names a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def git_sha1(path: Path) -> str:
    """As git names a file."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # noqa: S324


class _Handler(BaseHTTPRequestHandler):
    hub: TestHub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._serve(has_body=False)

    def do_GET(self) -> None:
        self._serve(has_body=True)

    def _serve(self, has_body: bool) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            path = urllib.parse.unquote(self.path.partition("?")[0])
            listing = re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/[^/]+)?", path)
            file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
            repository = listing[1] if listing else file[1] if file else ""
            self.hub.asked.add(repository)
            self.hub.tokens.add(self.headers.get("Authorization"))
            if repository in self.hub.gated:
                self._answer(403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "secret words of the Hub"})
            elif repository not in self.hub.repositories:
                self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            elif listing:
                self._answer(200, json.dumps(self.hub.listing(repository)).encode())
            elif file and self.hub.elsewhere:
                self._answer(302, b"", {"Location": self.hub.elsewhere + self.path})
            elif file:
                self._file(repository, file[3], has_body)

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _file(self, repository: str, name: str, has_body: bool) -> None:
        path = self.hub.repositories[repository] / name
        content = self.hub.content(repository, name)
        size = len(content) + self.hub.lies.get(name, 0)
        asked = self.headers.get("Range", "")
        start = int(asked.removeprefix("bytes=").rstrip("-").partition("-")[0]) if asked and has_body else 0
        self.send_response(206 if start else 200)
        is_large = path.suffix == ".safetensors"
        self.send_header("ETag", f'"{sha256(path) if is_large else git_sha1(path)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(size - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.end_headers()
        if has_body:
            self.hub.sent.append((name, asked))
            self._send(name, content[start:])

    def _send(self, name: str, content: bytes) -> None:
        cuts, stalls = self.hub.cuts.get(name), self.hub.stalls.get(name)
        if cuts:
            content = content[: cuts.pop(0)]
        half = len(content) // 2
        self._write(content[:half])
        if stalls:
            time.sleep(stalls.pop(0))
        self._write(content[half:])
        self.close_connection = True

    def _write(self, content: bytes) -> None:
        step = self.hub.speed // 20 or len(content) or 1
        for begin in range(0, len(content), step):
            self.wfile.write(content[begin : begin + step])
            self.wfile.flush()
            if self.hub.speed:
                time.sleep(0.05)


@contextlib.contextmanager
def serving_hub() -> Iterator[TestHub]:
    """A Hub on a free port, for as long as the block lasts."""
    hub = TestHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
