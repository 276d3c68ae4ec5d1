"""Owns the receiver of webhooks that the tests listen with: an HTTP server on a thread, told how to fail."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Post:
    """What came in."""

    at: float
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """A listening receiver, and what it got so far."""

    port: int
    posts: list[Post] = field(default_factory=list)
    #: Gives the status for the post of that number, counted from 0; it may take its time.
    status: Callable[[int], int] = lambda _: 200

    @property
    def url(self) -> str:
        """Where to post to."""
        return f"http://127.0.0.1:{self.port}/hook?token=canary-in-a-url"

    def wait_for(self, count: int, seconds: float = 30) -> list[Post]:
        """Waits until so many posts have come."""
        end = time.monotonic() + seconds
        while len(self.posts) < count:
            assert time.monotonic() < end, f"{len(self.posts)} of {count} came"
            time.sleep(0.01)
        return self.posts


@contextlib.contextmanager
def receiving(port: int = 0) -> Iterator[Receiver]:
    """A receiver on 127.0.0.1."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            number = len(receiver.posts)
            headers = {name.lower(): value for name, value in self.headers.items()}
            receiver.posts.append(Post(time.time(), headers, body))
            with contextlib.suppress(ConnectionError):
                self.send_response(receiver.status(number))
                self.send_header("content-length", "0")
                self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    receiver = Receiver(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
