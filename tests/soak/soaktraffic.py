"""Owns mixed traffic: clients that ask for all sorts of things, and hold each picture against the one made alone."""

import base64
import contextlib
import hashlib
import io
import json
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
from PIL import Image
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

#: Seconds after which a client gives up.
PATIENCE = 150.0
#: How a job may end, and why it may be refused, on a server that has faults. ``internal_error`` is none of these.
KNOWN = {
    "cancelled",
    "client_limit",
    "disk_low",
    "draining",
    "generation_failed",
    "not_ready",
    "out_of_memory",
    "poison",
    "queue_full",
    "request_timeout",
    "storage_failed",
    "timeout",
}


def _start() -> str:
    picture = io.BytesIO()
    Image.linear_gradient("L").resize((64, 64)).convert("RGB").save(picture, "PNG")
    return base64.b64encode(picture.getvalue()).decode()


def _recipe(model: str, prompt: str, seed: int, **more: Any) -> dict[str, Any]:
    return {
        "model": model,
        "prompt": prompt,
        "seed": seed,
        "width": 64,
        "height": 64,
        "steps": 2,
        "reproducible": True,
        **more,
    }


#: What is asked for: each is a picture of its own, the same bytes whenever it is painted.
RECIPES: dict[str, dict[str, Any]] = {
    "plain": _recipe("demo-xl", "a lake at dawn", 1),
    "more": _recipe("demo-xl", "a forest, a red house", 2, steps=5, negative_prompt="snow"),
    "wide": _recipe("demo-xl", "a meadow", 3, width=128),
    "weighted": _recipe("demo-xl", "a (red)1.4 circle", 4, scheduler="ddim"),
    "balloon": _recipe("demo-xl", "a lake", 5, loras=[{"name": "balloon"}]),
    "blueprint": _recipe("demo-xl", "a house", 6, loras=[{"name": "blueprint", "weight": 0.7}]),
    "both": _recipe("demo-xl", "a hill", 7, loras=[{"name": "balloon"}, {"name": "blueprint", "weight": 0.5}]),
    "begun": _recipe("demo-xl", "a beach", 8, image=_start(), strength=0.6, steps=4),
    "other": _recipe(
        "sd15",
        "a bridge",
        9,
    ),
    "third": _recipe(
        "sdxl",
        "a tower",
        10,
    ),
}
#: How often each is asked for: models other than the usual one cost a switch.
WEIGHTS = [1 if name in ("other", "third") else 8 for name in RECIPES]


class Traffic:
    """Clients on threads, from ``begin`` to ``end``; ``seen`` counts what they met, ``wrong`` must stay empty.

    ``pause``: the seconds, at most, for which each does nothing between two of its wishes.
    """

    def __init__(self, address: str, webhook: str, seed: int, pause: float) -> None:
        self.seen: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._address = address
        self._webhook = webhook
        self._right: dict[str, str] = {}
        self._pause = pause
        self._chance = random.Random(seed)
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._has_ended = threading.Event()

    def learn(self) -> None:
        """Paints each recipe alone, on a server that nothing happens to."""
        with self._client() as client:
            for name, recipe in RECIPES.items():
                answer = client.post("/generate", json=recipe)
                assert answer.status_code == 200, (name, answer.text)
                self._right[name] = hashlib.sha256(answer.content).hexdigest()
        assert len(set(self._right.values())) == len(RECIPES)

    def begin(self, clients: int) -> None:
        """So many clients begin."""
        self._has_ended.clear()
        seeds = [self._chance.randrange(2**32) for _ in range(clients)]
        self._threads = [threading.Thread(target=self._live, args=(seed,), daemon=True) for seed in seeds]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Each client finishes what it is at."""
        self._has_ended.set()
        for thread in self._threads:
            thread.join(PATIENCE + 30)
            assert not thread.is_alive()

    def is_right(self, name: str, picture: bytes) -> bool:
        """Whether these are the bytes that were learned."""
        return hashlib.sha256(picture).hexdigest() == self._right[name]

    def _client(self) -> httpx.Client:
        return httpx.Client(base_url=self._address, timeout=PATIENCE)

    def _live(self, seed: int) -> None:
        chance = random.Random(seed)
        with self._client() as client:
            while not self._has_ended.is_set():
                act = chance.choices(list(_ACTS), list(_ACTS.values()))[0]
                name = chance.choices(list(RECIPES), WEIGHTS)[0]
                try:
                    met = act(self, client, name)
                except (httpx.TransportError, WebSocketException, OSError):
                    met = "lost"
                    time.sleep(0.2)
                except Exception as error:
                    met = "wrong"
                    self.wrong.append(f"{act.__name__}: {error!r}")
                with self._lock:
                    self.seen[f"{act.__name__}: {met}"] += 1
                time.sleep(chance.uniform(0.0, self._pause))

    def _told(self, answer: httpx.Response) -> str:
        """The code of a refusal; whatever is no problem of ours is wrong."""
        code = str(answer.json()["code"])
        if code not in KNOWN:
            raise AssertionError(f"{answer.status_code} {answer.text}")
        return code

    def _judged(self, name: str, picture: bytes) -> str:
        if not self.is_right(name, picture):
            raise AssertionError(f"{name} came out as another picture")
        return "right"

    # What clients do. Each gives what it met.

    def paint(self, client: httpx.Client, name: str) -> str:
        """Waits for a picture on the connection."""
        answer = client.post("/generate", json=RECIPES[name])
        return self._judged(name, answer.content) if answer.status_code == 200 else self._told(answer)

    def queue(self, client: httpx.Client, name: str, **more: Any) -> str:
        """Has a job done, and asks for it until it is."""
        answer = client.post("/v1/jobs", json=RECIPES[name] | more)
        if answer.status_code != 202:
            return self._told(answer)
        job, end = answer.json(), time.monotonic() + PATIENCE
        while job["finished_at"] is None:
            assert time.monotonic() < end, job
            time.sleep(0.1)
            with contextlib.suppress(httpx.TransportError):  # the server may die meanwhile: the job does not
                job = client.get(f"/v1/jobs/{job['id']}").json()
        if job["status"] != "succeeded":
            assert job["error"]["code"] in KNOWN, job
            return str(job["error"]["code"])
        answer = client.get(f"/v1/jobs/{job['id']}/result")
        # The operator removes pictures, too: their disk is small here.
        return self._judged(name, answer.content) if answer.status_code == 200 else f"result {answer.status_code}"

    def be_posted(self, client: httpx.Client, name: str) -> str:
        """The same, with a webhook."""
        return self.queue(client, name, webhook=self._webhook)

    def stream(self, _client: httpx.Client, name: str) -> str:
        """Follows its job over a WebSocket."""
        with connect(f"{self._address.replace('http', 'ws')}/v1/stream", open_timeout=PATIENCE) as socket:
            socket.send(json.dumps(RECIPES[name]))
            while True:
                frame = json.loads(socket.recv(timeout=PATIENCE))
                if frame["type"] == "completed":
                    return self._judged(name, base64.b64decode(frame["image"]))
                if frame["type"] in ("failed", "cancelled"):
                    code = str(frame["error"]["code"])
                    assert code in KNOWN, frame
                    return code

    def follow(self, client: httpx.Client, name: str) -> str:
        """Follows a job by server-sent events."""
        answer = client.post("/v1/jobs", json=RECIPES[name])
        if answer.status_code != 202:
            return self._told(answer)
        kinds = ("completed", "failed", "cancelled")
        with client.stream("GET", f"/v1/jobs/{answer.json()['id']}/events") as events:
            for line in events.iter_lines():
                if line.startswith("event: ") and line.removeprefix("event: ") in kinds:
                    return line.removeprefix("event: ")
        return "left"  # the server was stopped

    def call_off(self, client: httpx.Client, name: str) -> str:
        """Has second thoughts."""
        answer = client.post("/v1/jobs", json=RECIPES[name] | {"steps": 60})
        if answer.status_code != 202:
            return self._told(answer)
        return str(client.delete(f"/v1/jobs/{answer.json()['id']}").status_code)

    def leave(self, _client: httpx.Client, name: str) -> str:
        """Goes while it is painted for."""
        body = json.dumps(RECIPES[name] | {"steps": 40}).encode()
        leave(self._address, body, 0.2)
        return "left"

    def look(self, client: httpx.Client, _name: str) -> str:
        """Looks around."""
        for path in ("/livez", "/health", "/metrics", "/v1/models", "/v1/loras", "/v1/jobs?limit=5"):
            answer = client.get(path)
            if answer.status_code != 200:
                return f"{path} {self._told(answer)}"
        for job in answer.json()["data"]:
            for image in job["images"]:
                client.get(image["thumbnail_url"])
        return "200"

    def ask_amiss(self, client: httpx.Client, name: str) -> str:
        """Makes mistakes."""
        for mistake, status in (({"steps": 10**9}, 422), ({"model": "not-there"}, 404)):
            answer = client.post("/generate", json=RECIPES[name] | mistake)
            if answer.status_code != status:
                return self._told(answer)
        return "told"


#: How often each is done.
_ACTS: dict[Callable[[Traffic, httpx.Client, str], str], int] = {
    Traffic.paint: 8,
    Traffic.queue: 4,
    Traffic.be_posted: 1,
    Traffic.stream: 2,
    Traffic.follow: 2,
    Traffic.call_off: 1,
    Traffic.leave: 1,
    Traffic.look: 2,
    Traffic.ask_amiss: 1,
}


def leave(address: str, body: bytes, after: float) -> None:
    """Posts a recipe on a connection and tears it down, so that what is sent to it is answered with a reset."""
    url = httpx.URL(address)
    with socket.create_connection((url.host, url.port), timeout=PATIENCE) as raw:
        head = f"POST /generate HTTP/1.1\r\nhost: {url.host}\r\ncontent-length: {len(body)}\r\n"
        raw.sendall(f"{head}content-type: application/json\r\n\r\n".encode() + body)
        time.sleep(after)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
