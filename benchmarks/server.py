"""Owns the servers that are measured, each in a process of its own, and the client that measures them."""

import contextlib
import http.client
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.machine import ROOT, device

LISTENING = re.compile(r"listening on http://127\.0\.0\.1:(\d+)")
PATIENCE = 120.0  # seconds for a server to open its port, and for it to get ready


class Answer(NamedTuple):
    """An answer and the client's seconds from before the connection to the body's last byte."""

    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes
    seconds: float


class Running(NamedTuple):
    """A server that listens, and the moment at which it said so, on the clock of ``time.perf_counter``."""

    port: int
    listening_at: float
    pid: int

    def ask(self, method: str, path: str, fields: Mapping[str, Any] | None = None) -> Answer:
        """One request over a connection of its own, as a client that has just come makes it."""
        body = None if fields is None else json.dumps(fields).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        with contextlib.closing(connection):
            start = time.perf_counter()
            connection.request(method, path, body, {"content-type": "application/json"})
            response = connection.getresponse()
            content = response.read()
            seconds = time.perf_counter() - start
        return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, content, seconds)

    def paint(self, fields: Mapping[str, Any]) -> Answer:
        """One picture; anything but a picture ends the benchmark."""
        answer = self.ask("POST", "/generate", fields)
        if answer.status != 200:
            raise RuntimeError(f"/generate answered {answer.status}: {answer.body[:300]!r}")
        return answer

    def wait_until(self, path: str, every: float = 0.02) -> float:
        """The moment at which this route first answers 200."""
        give_up = time.perf_counter() + PATIENCE
        while time.perf_counter() < give_up:
            if self.ask("GET", path).status == 200:
                return time.perf_counter()
            time.sleep(every)
        raise TimeoutError(f"{path} did not answer 200 within {PATIENCE:.0f} s")


@contextlib.contextmanager
def daguerre(**settings: str) -> Iterator[Running]:
    """Our server as a user starts it, with these settings and folders that are thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["-m", "daguerre", "serve", "--port", "0", "--device", device(), "--outputs", f"{folder}/outputs"]
        with _started(command, data=f"{folder}/data", **settings) as server:
            yield server


@contextlib.contextmanager
def naive() -> Iterator[Running]:
    """The reference server of `benchmarks.naive`."""
    with _started(["-m", "benchmarks.naive"]) as server:
        yield server


@contextlib.contextmanager
def _started(arguments: Sequence[str], **settings: str) -> Iterator[Running]:
    environment = os.environ | {f"DAGUERRE_{name.upper()}": value for name, value in settings.items()}
    command = [sys.executable, *arguments]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        yield _heard(process)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stderr is not None
        process.stderr.close()


def _heard(process: "subprocess.Popen[str]") -> Running:
    """Reads the log up to the line that tells the port; a thread throws the rest away, lest the pipe fill."""
    assert process.stderr is not None
    said: list[str] = []
    for line in process.stderr:
        found = LISTENING.search(line)
        if found is not None:
            listening_at = time.perf_counter()
            threading.Thread(target=_discard, args=(process.stderr,), daemon=True).start()
            return Running(int(found[1]), listening_at, process.pid)
        said.append(line)
    raise RuntimeError("the server ended before it listened:\n" + "".join(said[-20:]))


def _discard(lines: Any) -> None:
    with contextlib.suppress(ValueError):  # closed meanwhile
        for _ in lines:
            pass


def phases(answer: Answer) -> dict[str, float]:
    """The milliseconds of the server's own clock: the Server-Timing header."""
    parts = (part.strip().split(";dur=") for part in answer.headers["server-timing"].split(","))
    return {name: float(milliseconds) for name, milliseconds in parts}


def milliseconds(values: Sequence[float]) -> float:
    """The median of seconds, in milliseconds."""
    return round(1000 * statistics.median(values), 1)
