"""The kinds of fault that a server is to survive: each happens, is looked at while it lasts, and is over."""

import contextlib
import random
import resource
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gauges
import httpx
import soaktraffic
from receiver import Receiver
from supervised import Supervised

LONG: dict[str, Any] = soaktraffic.RECIPES["plain"] | {"steps": 40}
WEIGHTS = Path("unet", "diffusion_pytorch_model.safetensors")


@dataclass
class Ground:
    """Where faults happen: a server, its folders, and the seconds for which it is stopped when it is stopped."""

    server: Supervised
    faults: Path
    outputs: Path
    data: Path
    weights: Path
    receiver: Receiver
    chance: random.Random
    stop_seconds: float
    step_timeout: float

    def ask(self, timeout: float = 120) -> httpx.Client:
        """A client."""
        return httpx.Client(base_url=self.server.address, timeout=timeout)

    def put(self, fault: str, text: str = "") -> None:
        """From now on it is due."""
        unfinished = self.faults / f"{fault}.new"
        unfinished.write_text(text)
        unfinished.rename(self.faults / fault)

    def wait_until(self, holds: Callable[[], bool], what: str, seconds: float = 60) -> None:
        """Waits for something to come true."""
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, f"{what} did not come true"
            time.sleep(0.05)

    def is_over(self, fault: str) -> bool:
        """Whether it has happened."""
        return not (self.faults / fault).exists()

    def begin(self, recipe: dict[str, Any] | None = None) -> str:
        """A job that takes a while, begun; gives its id."""
        with self.ask() as client:
            job_id = str(client.post("/v1/jobs", json=recipe or LONG).raise_for_status().json()["id"])
            self.wait_until(lambda: client.get(f"/v1/jobs/{job_id}").json()["status"] != "queued", "its beginning")
        return job_id

    def end_of(self, job_id: str, seconds: float = 150) -> dict[str, Any]:
        """The job when it has ended, in whatever process."""
        found: dict[str, Any] = {}

        def has_ended() -> bool:
            with contextlib.suppress(httpx.TransportError), self.ask() as client:
                found.update(client.get(f"/v1/jobs/{job_id}").json())
            return found.get("finished_at") is not None

        self.wait_until(has_ended, f"the end of {job_id}", seconds)
        return found

    def paint(self, **more: Any) -> httpx.Response:
        """One picture."""
        with self.ask() as client:
            return client.post("/generate", json=soaktraffic.RECIPES["plain"] | more)


Kind = Callable[[Ground], None]


def disk_full(ground: Ground) -> None:
    """Not a byte is left for pictures: nothing new is taken, and the reason is told; then there is room."""
    with _full(ground.outputs):
        assert ground.paint().json()["code"] == "disk_low"
        with ground.ask() as client:
            assert client.get("/readyz").status_code == 503
            assert client.get("/livez").status_code == 200


def disk_fills(ground: Ground) -> None:
    """The disk of the pictures fills up while one is painted."""
    job_id = ground.begin()
    with _full(ground.outputs):
        job = ground.end_of(job_id)
    assert (job["status"], job["error"]["code"]) == ("failed", "disk_low"), job


def data_full(ground: Ground) -> None:
    """Nothing can be written down, so nothing is accepted."""
    with _full(ground.data):
        # There may be room for a few rows in pages that the log has already.
        ground.wait_until(lambda: ground.paint().status_code == 503, "a refusal")
        answer = ground.paint()
        assert answer.json()["code"] == "storage_failed", answer.text


@contextlib.contextmanager
def _full(folder: Path) -> Iterator[None]:
    """The folder's disk has no room, to the last page."""
    ballast = folder / "ballast"
    try:
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"\0" * 4096)
        yield
    finally:
        ballast.unlink(missing_ok=True)


def write_error(ground: Ground) -> None:
    """The disk breaks in the middle of a picture, then of a commit: the one job fails, nothing half is left."""
    for fault, code in (("eio", "generation_failed"), ("enospc", "disk_low")):
        job_id = _faulted(ground, fault)
        if job_id is not None:
            assert ground.end_of(job_id)["error"]["code"] == code
    ground.put("commit")
    ground.wait_until(lambda: ground.paint().status_code in (200, 503) and ground.is_over("commit"), "a commit")
    assert not list(ground.outputs.glob(".unfinished-*")) or ground.server.exits


def _faulted(ground: Ground, fault: str) -> str | None:
    """A job that met the fault, if it was not another one that did."""
    job_id = ground.begin(soaktraffic.RECIPES["plain"] | {"steps": 10})
    ground.put(fault)
    job = ground.end_of(job_id)
    ground.wait_until(lambda: ground.is_over(fault) or ground.paint() is None, fault)
    return job_id if job["status"] == "failed" else None


def out_of_memory(ground: Ground) -> None:
    """A step finds no memory: with company it is tried with less of it, alone it fails and says so."""
    ground.put("memory")
    ground.wait_until(lambda: ground.paint().status_code in (200, 500) and ground.is_over("memory"), "a step")


def hang(ground: Ground) -> None:
    """A step never ends: the process leaves with code 70, and the job is done by the next."""
    _dies(ground, "hang", 70)


def device_lost(ground: Ground) -> None:
    """The device answers nothing but errors: the same."""
    _dies(ground, "device", 70)


def killed(ground: Ground) -> None:
    """``kill -9`` while it paints."""
    _dies(ground, None, -signal.SIGKILL)


def _dies(ground: Ground, fault: str | None, code: int) -> None:
    deaths, job_id = len(ground.server.exits), ground.begin()
    if fault is None:
        ground.server.signal(signal.SIGKILL)
    else:
        ground.put(fault)
    ground.server.wait_for_exit(deaths + 1, ground.step_timeout + 60)
    assert ground.server.exits[deaths] == code, (ground.server.exits, list(ground.server.log)[-5:])
    ground.server.wait_ready()
    job = ground.end_of(job_id)
    # A device that is lost takes the job with it that found this out; others are done by the next process.
    assert job["status"] == "succeeded" or fault == "device", job


def corrupt_lora(ground: Ground) -> None:
    """A LoRA's file is cut off, then has numbers that are none: refused by its name; mended, it is used again."""
    path = ground.weights / "loras" / "spare.safetensors"
    good = (ground.weights / "loras" / "balloon.safetensors").read_bytes()
    try:
        for number, bad in enumerate((good[: len(good) // 2], good[:-4096] + b"\xff" * 4096)):
            _replace(path, bad)
            answer = ground.paint(loras=[{"name": "spare"}])
            assert answer.status_code == 422, (number, answer.text)
            assert "spare" in answer.text
        _replace(path, good)
        assert ground.paint(loras=[{"name": "spare"}]).status_code == 200
    finally:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _spare(ground: Ground) -> Iterator[Path]:
    """A model more, for as long as the context lasts."""
    folder = ground.weights / "spare"
    shutil.copytree(ground.weights / "sd15", folder)
    try:
        yield folder
    finally:
        with ground.ask() as client:
            client.post("/v1/models/unload", json={"model_id": "spare"})
        shutil.rmtree(folder)


def corrupt_model(ground: Ground) -> None:
    """A model's weights are cut off, then noise, then numbers that are none: refused; mended, it paints."""
    good = (ground.weights / "sd15" / WEIGHTS).read_bytes()
    with _spare(ground) as folder:
        for bad in (good[: len(good) // 2], random.Random(1).randbytes(len(good)), good[:-4096] + b"\xff" * 4096):
            _replace(folder / WEIGHTS, bad)
            answer = ground.paint(model="spare")
            assert answer.json()["code"] == "bad_catalog", answer.text
        _replace(folder / WEIGHTS, good)
        answer = ground.paint(model="spare")
        assert answer.status_code == 200, answer.text


def swapped(ground: Ground) -> None:
    """A model's weights change between the look at them and their reading, by a rename or in their place."""
    for change in (_replace, _overwrite):
        with _spare(ground) as folder, ground.ask() as client, _held(ground):
            client.post("/v1/models/load", json={"model_id": "spare"}).raise_for_status()
            ground.wait_until((ground.faults / "held").exists, "a load")
            change(folder / WEIGHTS, random.Random(2).randbytes(5000))
            (ground.faults / "held").unlink()
            assert ground.paint(model="spare").json()["code"] == "bad_catalog"


@contextlib.contextmanager
def _held(ground: Ground) -> Iterator[None]:
    """The next load waits before it reads."""
    ground.put("hold")
    try:
        yield
    finally:
        for name in ("hold", "held"):
            (ground.faults / name).unlink(missing_ok=True)


def overwritten(ground: Ground) -> None:
    """A model's weights are cut off in their place while it is painted with: what was read before is what counts."""
    deaths = len(ground.server.exits)
    wish = soaktraffic.RECIPES["other"] | {"model": "spare", "steps": 40}
    with _spare(ground) as folder:
        before = ground.end_of(ground.begin(wish))
        job_id = ground.begin(wish)
        _overwrite(folder / WEIGHTS, b"\0" * 100)
        after = ground.end_of(job_id)
    assert len(ground.server.exits) == deaths, ground.server.exits
    assert after["status"] == "succeeded", after
    assert after["images"][0]["sha256"] == before["images"][0]["sha256"]


def _replace(path: Path, data: bytes) -> None:
    """As a careful program puts a file in another's place."""
    unfinished = path.with_name("unfinished")
    unfinished.write_bytes(data)
    unfinished.replace(path)


def _overwrite(path: Path, data: bytes) -> None:
    """As ``cp`` does it."""
    path.write_bytes(data)


def clock_jump(ground: Ground) -> None:
    """The wall clock goes a day ahead while a job is painted, then a day back: neither ends the job."""
    job_ids = [ground.begin()]
    try:
        for offset in (86_400, -86_400):
            ground.put("clock", str(offset))
            time.sleep(0.3)
            job_ids.append(ground.begin())
            assert ground.paint().status_code == 200
    finally:
        (ground.faults / "clock").unlink(missing_ok=True)
    time.sleep(0.3)
    for job_id in job_ids:
        job = ground.end_of(job_id)
        assert job["status"] == "succeeded", job


def full_pipe(ground: Ground) -> None:
    """Nobody reads the log: the pipe fills up, and nobody waits for it."""
    ground.server.is_reading.clear()
    try:
        with ground.ask(20) as client:
            for _ in range(100):  # two lines each: more than a pipe holds
                answer = client.post("/v1/jobs", json=LONG)
                assert answer.status_code in (202, 503), answer.text
                if answer.status_code == 202:
                    client.delete(f"/v1/jobs/{answer.json()['id']}")
            assert client.get("/livez").status_code == 200
    finally:
        ground.server.is_reading.set()


def stopped(ground: Ground) -> None:
    """The process is stopped for longer than a step may take, in the middle of one, and goes on."""
    deaths, job_id = len(ground.server.exits), ground.begin()
    ground.server.signal(signal.SIGSTOP)
    time.sleep(ground.stop_seconds)
    ground.server.signal(signal.SIGCONT)
    assert ground.end_of(job_id)["status"] == "succeeded"
    assert len(ground.server.exits) == deaths


def vanishing(ground: Ground) -> None:
    """Clients tear their connections down at any moment, some in the middle of their answers."""
    for _ in range(10):
        soaktraffic.leave(ground.server.address, httpx.Request("POST", "http://x", json=LONG).content, 0.02)
    picture = ground.paint(reproducible=False)
    name = picture.headers["content-disposition"].split('"')[1] if "content-disposition" in picture.headers else ""
    for _ in range(20):
        with _connected(ground) as raw:
            raw.sendall(f"GET /outputs/{name} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode())
            raw.recv(16)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def slow_readers(ground: Ground) -> None:
    """Clients that ask and do not read, that read a little, and that never finish asking."""
    ask = b"GET /openapi.json HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
    raws = [_connected(ground) for _ in range(60)]
    try:
        for number, raw in enumerate(raws):
            with contextlib.suppress(OSError):
                raw.sendall(ask * 40 if number % 3 else ask[:20])
        assert ground.paint().status_code == 200
        for raw in raws[::2]:
            with contextlib.suppress(OSError):
                raw.recv(10)
        time.sleep(1)
    finally:
        for raw in raws:
            raw.close()


def no_descriptors(ground: Ground) -> None:
    """The process may open nothing more: who is connected is served, who is not waits, and all is well afterwards."""
    pid = ground.server.pid
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    with ground.ask() as client:
        assert client.get("/livez").status_code == 200
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (gauges.descriptors(pid), hard))
        raws = [_connected(ground) for _ in range(30)]
        try:
            for _ in range(10):
                assert client.get("/livez", timeout=10).status_code == 200
                client.post("/v1/jobs", json=soaktraffic.RECIPES["balloon"])
                client.get("/v1/models")
                time.sleep(0.3)
        finally:
            for raw in raws:
                raw.close()
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
    assert ground.paint(model="sd15").status_code == 200


def hanging_webhook(ground: Ground) -> None:
    """The receivers of webhooks do not answer: jobs go on without them."""
    ground.receiver.status = _slowly
    try:
        with ground.ask() as client:
            for _ in range(6):
                recipe = soaktraffic.RECIPES["plain"] | {"webhook": ground.receiver.url}
                assert client.post("/v1/jobs", json=recipe).status_code == 202
        assert ground.paint().status_code == 200
    finally:
        ground.receiver.status = lambda _: 200


def _slowly(_number: int) -> int:
    time.sleep(4)
    return 200


def garbage(ground: Ground) -> None:
    """Noise on many connections, and requests that are nearly good."""
    for _ in range(100):
        with _connected(ground) as raw, contextlib.suppress(OSError):
            raw.sendall(ground.chance.randbytes(ground.chance.randrange(1, 3000)))
    kinds = ("application/json", "text/plain", "multipart/form-data")
    with ground.ask() as client:
        for number in range(100):
            body = ground.chance.randbytes(200) if number % 2 else b'{"prompt": ' + b"[" * 5000
            answer = client.post("/generate", content=body, headers={"content-type": kinds[number % 3]})
            assert 400 <= answer.status_code < 500, answer.text


def model_storm(ground: Ground) -> None:
    """One model after the other, each let go of at once: every picture has to wait for the disk."""
    names = ground.chance.sample(("other", "plain", "third"), 3)
    with ground.ask() as client:
        for name in names:
            recipe = soaktraffic.RECIPES[name]
            assert client.post("/generate", json=recipe).status_code == 200
            answer = client.post("/v1/models/unload", json={"model_id": recipe["model"]})
            assert answer.status_code in (200, 202, 409), answer.text


def lora_churn(ground: Ground) -> None:
    """LoRAs come, are used once, and go."""
    good = (ground.weights / "loras" / "balloon.safetensors").read_bytes()
    for number in range(4):
        path = ground.weights / "loras" / f"churned-{number}.safetensors"
        try:
            _replace(path, good)
            answer = ground.paint(loras=[{"name": path.stem, "weight": ground.chance.choice((0.3, 0.9))}])
            assert answer.status_code == 200, answer.text
            with ground.ask() as client:  # else it is kept until two gigabytes of LoRAs are
                client.post("/v1/loras/unload", json={"name": path.stem})
        finally:
            path.unlink()


def _connected(ground: Ground) -> socket.socket:
    return socket.create_connection(("127.0.0.1", ground.server.port), timeout=10)


#: Those that end the process.
DEADLY: tuple[Kind, ...] = (hang, device_lost, killed)
#: Those that need a disk of their own.
ON_DISKS: tuple[Kind, ...] = (disk_full, disk_fills, data_full)
#: Those that a process survives.
SURVIVED: tuple[Kind, ...] = (
    write_error,
    out_of_memory,
    corrupt_lora,
    corrupt_model,
    swapped,
    overwritten,
    clock_jump,
    full_pipe,
    stopped,
    vanishing,
    slow_readers,
    no_descriptors,
    hanging_webhook,
    garbage,
    model_storm,
    lora_churn,
)
