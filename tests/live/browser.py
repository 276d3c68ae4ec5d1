"""Owns a real browser: Debian's Chromium without a window, driven over its DevTools protocol."""

import base64
import contextlib
import io
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from PIL import Image
from websockets.sync.client import ClientConnection, connect

CHROMIUM = shutil.which("chromium")
#: Seconds that a page may take for anything.
PATIENCE = 30.0


class Browser:
    """A page, and all that it asked for or complained of."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._calls = 0
        self.requests: list[str] = []
        self.complaints: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the protocol, and its result; what the page does meanwhile is written down."""
        self._calls += 1
        self._socket.send(json.dumps({"id": self._calls, "method": method, "params": parameters}))
        while True:
            told = json.loads(self._socket.recv(timeout=PATIENCE))
            if told.get("id") == self._calls:
                assert "error" not in told, (method, told)
                result: dict[str, Any] = told["result"]
                return result
            self._heard(told["method"], told["params"])

    def _heard(self, method: str, told: dict[str, Any]) -> None:
        match method:
            case "Network.requestWillBeSent":
                self.requests.append(told["request"]["url"])
            case "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(told["exceptionDetails"]))
            case "Runtime.consoleAPICalled":
                self.complaints.append(json.dumps(told["args"]))
            case "Log.entryAdded":
                self.complaints.append(told["entry"]["text"])

    def open(self, url: str) -> None:
        """Goes to a page that is another one than the present."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def value(self, expression: str) -> Any:
        """What an expression is in the page."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, expression: str) -> None:
        """Waits until it is true."""
        end = time.monotonic() + PATIENCE
        while not self.value(expression):
            assert time.monotonic() < end, f"never came true: {expression}"
            time.sleep(0.05)

    def press(self, key: str, text: str = "") -> None:
        """A key, as from a keyboard."""
        code = {"Tab": 9, "Enter": 13, "Delete": 46}.get(key, 0)
        told = {"key": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **told)
        self.call("Input.dispatchKeyEvent", type="keyUp", **told)

    def resize(self, width: int, height: int) -> None:
        """The window, in pixels."""
        told = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **told)

    def prefer(self, scheme: str) -> None:
        """Light or dark."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def picture(self, path: Path | None = None) -> Image.Image:
        """What is to be seen of the page; kept where a path is given."""
        data = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        if path is not None:
            path.write_bytes(data)
        return Image.open(io.BytesIO(data)).convert("RGB")


@contextlib.contextmanager
def browsing(profile: Path, address: str) -> Iterator[Browser]:
    """A browser with an empty page, for which there is no other host than that of the address."""
    host = urlsplit(address).hostname
    assert CHROMIUM is not None
    arguments = ["--headless", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars"]
    arguments += ["--remote-debugging-port=0", f"--user-data-dir={profile}", "--disable-background-networking"]
    arguments += [f"--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE {host}"]
    if os.getuid() == 0:
        arguments.append("--no-sandbox")  # which Chromium cannot have as root
    process = subprocess.Popen([CHROMIUM, *arguments, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        with connect(_page(profile), max_size=None, proxy=None) as socket:
            yield Browser(socket)
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE)


def _page(profile: Path) -> str:
    """The address of the DevTools of its only page."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        with contextlib.suppress(OSError, ValueError, httpx.TransportError, StopIteration):
            port = int((profile / "DevToolsActivePort").read_text().split()[0])
            pages = httpx.get(f"http://127.0.0.1:{port}/json/list", trust_env=False).json()
            return str(next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page"))
        time.sleep(0.05)
    raise AssertionError("the browser did not start")
