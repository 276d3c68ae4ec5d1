"""Owns a server that is started again whenever it ends, on the same port and folders, as a supervisor does it."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx

from server import ROOT

FAULTY = Path(__file__).with_name("faulty.py")
#: Seconds before another start.
BACKOFF = 0.2
#: Seconds for a start, on a machine that has other things to do.
PATIENCE = 180.0


class Supervised:
    """The server at hand, how each one before it ended, and the last lines of their logs."""

    def __init__(self, faults: Path, settings: Mapping[str, str]) -> None:
        self.port = _free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.exits: list[int] = []
        self.log: deque[str] = deque(maxlen=5000)
        self.is_reading = threading.Event()
        self.is_reading.set()
        self._faults = faults
        self._settings = settings
        self._is_wanted = True
        self._process = self._start()
        self._thread = threading.Thread(target=self._supervise, daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        """Of the server at hand."""
        return self._process.pid

    def _start(self) -> "subprocess.Popen[str]":
        environment = {name: value for name, value in os.environ.items() if not name.startswith("DAGUERRE_")}
        environment |= {f"DAGUERRE_{name.upper()}": value for name, value in self._settings.items()}
        environment["FAULTS"] = str(self._faults)
        command = [sys.executable, str(FAULTY), "serve", "--port", str(self.port)]
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        threading.Thread(target=self._read, args=(process,), daemon=True).start()
        return process

    def _read(self, process: "subprocess.Popen[str]") -> None:
        assert process.stderr is not None
        for line in process.stderr:
            self.log.append(line)
            self.is_reading.wait()
        process.stderr.close()

    def _supervise(self) -> None:
        while True:
            code = self._process.wait()
            if not self._is_wanted:
                return
            self.exits.append(code)
            time.sleep(BACKOFF)
            self._process = self._start()

    def wait_ready(self) -> None:
        """Waits until it would paint."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.address}/readyz", timeout=10).status_code == 200:
                    return
            time.sleep(0.1)
        raise AssertionError(list(self.log)[-20:])

    def wait_for_exit(self, count: int, seconds: float) -> None:
        """Waits until so many servers have ended."""
        end = time.monotonic() + seconds
        while len(self.exits) < count:
            assert time.monotonic() < end, f"{len(self.exits)} of {count} have ended"
            time.sleep(0.05)

    def signal(self, number: signal.Signals) -> None:
        """Sends one to the server at hand."""
        os.kill(self.pid, number)

    def stop(self) -> int:
        """Ends it for good; gives its exit code."""
        self._is_wanted = False
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(60)
        finally:
            self._process.kill()
            self._thread.join(5)


@contextlib.contextmanager
def supervising(faults: Path, **settings: str) -> Iterator[Supervised]:
    """A server that is there for as long as the context lasts; that it ends cleanly then is part of the test."""
    supervised = Supervised(faults, settings)
    try:
        supervised.wait_ready()
        yield supervised
    finally:
        supervised.is_reading.set()
        code = supervised.stop()
    assert code == 0, code


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
