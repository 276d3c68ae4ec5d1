"""Owns the real server that the tests talk to: a process of its own on a free port."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import declared
import httpx

ROOT = Path(__file__).parent.parent.parent
LISTENING = re.compile(r"listening on (http://127\.0\.0\.1:(\d+))")


@dataclass
class Live:
    """A running server: its address, its outputs folder and what it has said so far."""

    process: "subprocess.Popen[str]"
    outputs: Path
    log: list[str] = field(default_factory=list)
    address: str = ""
    port: int = 0

    def ask(self, **options: object) -> httpx.Client:
        """A client for it, which fails the test that meets an answer not told of in the OpenAPI document."""
        hooks = {"response": [declared.check]}
        return httpx.Client(base_url=self.address, timeout=60, event_hooks=hooks, **options)  # type: ignore[arg-type]

    def wait_ready(self) -> None:
        """Waits until it can paint."""
        self.wait_for(lambda health: health["status"] == "ok")

    def wait_for(self, holds: object, seconds: float = 180) -> None:
        """Waits until something holds of its health."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            health = httpx.get(f"{self.address}/health", timeout=10).json()
            if holds(health):  # type: ignore[operator]
                return
            time.sleep(0.05)
        raise AssertionError(f"never came true; health is {health}")

    def memory_peak(self) -> int:
        """The most memory that the process has held, in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]

    def stop(self, signals: int = 1) -> int:
        """Ends it as a supervisor would; gives its exit code."""
        for _ in range(signals):
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(40)


@contextlib.contextmanager
def serving(outputs: Path, *arguments: str, **settings: str) -> Iterator[Live]:
    """The server with these settings, from its open port on; it may still be loading its model."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DAGUERRE_")}
    environment |= {f"DAGUERRE_{name.upper()}": value for name, value in settings.items()}
    environment.setdefault("DAGUERRE_DATA", str(outputs.with_name(f"{outputs.name}-data")))
    command = [sys.executable, "-m", "daguerre", "serve", "--port", "0", "--outputs", str(outputs), *arguments]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    live = Live(process, outputs)
    listening = threading.Event()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            live.log.append(line)
            found = LISTENING.search(line)
            if found:
                live.address, live.port = found[1], int(found[2])
                listening.set()
        process.stderr.close()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        assert listening.wait(120), live.log
        yield live
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        reader.join(5)
