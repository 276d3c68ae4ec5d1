"""Mixed traffic with faults: after each kind of fault the next picture is right, and nothing grows.

The long version takes half an hour, or the minutes that ``SOAK_MINUTES`` says.
"""

import contextlib
import os
import random
import shutil
import statistics
import subprocess
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faultkinds
import gauges
import httpx
import pytest
import soaktraffic
import tiny
from faultkinds import Ground, Kind
from receiver import receiving
from soaktraffic import Traffic
from supervised import supervising

from server import ROOT

MINUTES = float(os.environ.get("SOAK_MINUTES", "30"))
#: Of these, how many at least until caches are full and allocators have their shape.
SETTLING = min(5.0, MINUTES / 6)
#: Megabytes a minute.
STEEPEST = 1.0
#: Seconds for the next picture after a fault; the machine has other things to do.
NEXT = 60.0
STEP_TIMEOUT = 12.0
SETTINGS = {
    "device_memory": "1",  # one model at a time: each change is a switch
    "least_disk": str(256 * 1024),
    "private_hosts": "127.0.0.1",
    "receive_timeout": "5",
    "result_ttl": "60",
    "step_timeout": str(STEP_TIMEOUT),
    "webhook_secret": "a secret of the soak test",
    "webhook_timeout": "2",
    "webhook_tries": "2",
    "webhook_wait": "1",
}


@contextlib.contextmanager
def _disk(folder: Path, megabytes: int) -> Iterator[bool]:
    """A disk of its own at that folder; says whether there is one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        print(f"no disk for {folder.name}: {done.stderr.strip()}")  # noqa: T201 - a reason for a kind that is skipped
    try:
        yield done.returncode == 0
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _weights(folder: Path) -> Path:
    """What ships, and two tiny models beside it."""
    shutil.copytree(ROOT / "weights", folder)
    tiny.write_all(folder, {name: tiny.BUILDERS[name] for name in ("sd15", "sdxl")})
    return folder


class Soak:
    """Traffic and faults on one ground, and what was measured."""

    def __init__(self, ground: Ground, traffic: Traffic, kinds: list[Kind]) -> None:
        self.ground = ground
        self.traffic = traffic
        self.kinds = kinds
        self.happened: Counter[str] = Counter()
        self.problems: list[str] = []
        self.slowest = 0.0
        self.quiet: list[tuple[int, int, int]] = []  # descriptors, threads and tasks, whenever nothing was going on
        self.sampler = gauges.Sampler(lambda: ground.server.pid)

    def suffer(self, kind: Kind, calm: float, clients: int = 3) -> None:
        """Traffic for some seconds, a fault in the middle of it, and the next picture. Others follow in any case."""
        self.traffic.begin(clients)
        time.sleep(calm)
        try:
            kind(self.ground)
            began = time.monotonic()
            self._paint_next()
            self.slowest = max(self.slowest, time.monotonic() - began)
        except Exception:
            last = "".join(line for line in self.ground.server.log if '"level": "info"' not in line)[-4000:]
            self.problems.append(f"{kind.__name__}: {traceback.format_exc(limit=-3)}{last}")
        self.happened[kind.__name__] += 1
        self.traffic.end()
        self.problems += [f"traffic during {kind.__name__}: {what}" for what in self.traffic.wrong]
        self.traffic.wrong.clear()
        self._tidy()

    def _paint_next(self) -> None:
        """What comes after a fault may be refused for a moment, but must be right."""
        end = time.monotonic() + NEXT
        with contextlib.closing(httpx.Client(base_url=self.ground.server.address, timeout=NEXT)) as client:
            while True:
                answer = client.post("/generate", json=soaktraffic.RECIPES["plain"])
                if answer.status_code != 503 or time.monotonic() > end:
                    break
                time.sleep(0.1)
        assert answer.status_code == 200, answer.text
        assert self.traffic.is_right("plain", answer.content)

    def _tidy(self) -> None:
        """What an operator's cron job does: pictures go, the disk is small."""
        for path in self.ground.outputs.glob("*.png"):
            path.unlink(missing_ok=True)

    def rest(self) -> None:
        """Waits until nothing is going on, and looks."""
        ground = self.ground

        def is_idle() -> bool:
            queue = httpx.get(f"{ground.server.address}/health", timeout=30).json()["queue"]
            return bool(queue["size"] == queue["running"] == 0)

        ground.wait_until(is_idle, "rest", 120)
        time.sleep(6)  # connections that are kept alive end, and deliveries
        pid = ground.server.pid
        tasks = int((ground.faults / "tasks").read_text())
        self.quiet.append((gauges.descriptors(pid), gauges.threads(pid), tasks))

    def report(self) -> dict[str, Any]:
        """What happened."""
        return {
            "faults": dict(self.happened),
            "problems": self.problems,
            "seconds_to_next": round(self.slowest, 1),
            "exits": self.ground.server.exits,
            "seen": dict(sorted(self.traffic.seen.items())),
            "descriptors_threads_tasks": self.quiet,
        }


@contextlib.contextmanager
def _soaking(folder: Path, stop_seconds: float, seed: int, pause: float) -> Iterator[Soak]:
    faults, outputs, data = folder / "faults", folder / "outputs", folder / "data"
    faults.mkdir()
    weights = _weights(folder / "weights")
    with _disk(outputs, 4) as has_outputs, _disk(data, 64) as has_data, receiving() as receiver:
        settings = SETTINGS | {"outputs": str(outputs), "data": str(data), "weights": str(weights)}
        chance = random.Random(seed)
        with supervising(faults, **settings) as server:
            ground = Ground(server, faults, outputs, data, weights, receiver, chance, stop_seconds, STEP_TIMEOUT)
            traffic = Traffic(server.address, receiver.url, seed, pause)
            traffic.learn()
            kinds = [*faultkinds.SURVIVED, *(faultkinds.ON_DISKS if has_outputs and has_data else ())]
            soak = Soak(ground, traffic, kinds)
            try:
                yield soak
            finally:
                soak.sampler.close()
                print(soak.report())  # noqa: T201 - figures are what this is for


#: Kinds that take a second or two; the others are met by other tests, one by one.
QUICK = (faultkinds.write_error, faultkinds.out_of_memory, faultkinds.clock_jump, faultkinds.no_descriptors)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("is_whole", [False, pytest.param(True, marks=pytest.mark.long)])
def test_each_fault_once(tmp_path: Path, is_whole: bool) -> None:
    """And the next picture is right."""
    with _soaking(tmp_path, stop_seconds=STEP_TIMEOUT + 2, seed=1, pause=2.0) as soak:
        for kind in (*soak.kinds, faultkinds.hang, faultkinds.killed) if is_whole else QUICK:
            soak.suffer(kind, calm=0.0, clients=1)
        assert not soak.problems, "\n".join(soak.problems)
        assert len(soak.happened) >= (12 if is_whole else len(QUICK))


@pytest.mark.long
@pytest.mark.timeout(int(MINUTES * 120 + 1800))
def test_nothing_grows(tmp_path: Path) -> None:
    """Faults again and again, those that end the process at the beginning and at the end; between them one process."""
    with _soaking(tmp_path, stop_seconds=60, seed=2, pause=0.3) as soak:
        began = time.monotonic()
        for kind in faultkinds.DEADLY:
            soak.suffer(kind, calm=5)
        pid = soak.ground.server.pid
        for kind in soak.kinds:  # each leaves its high-water mark once
            soak.suffer(kind, calm=1)
        settled = max(time.monotonic(), began + SETTLING * 60)
        kinds: list[Kind] = []
        while time.monotonic() < settled + (MINUTES - SETTLING) * 60:
            kinds = kinds or soak.ground.chance.sample(soak.kinds, len(soak.kinds))
            soak.suffer(kinds.pop(), calm=5)
            if time.monotonic() > settled:
                soak.rest()
        assert soak.ground.server.pid == pid
        slope = soak.sampler.megabytes_a_minute(pid, settled)
        minutes = (time.monotonic() - settled) / 60
        print("megabytes, every two minutes:", soak.sampler.curve(pid, 120))  # noqa: T201
        print(f"{slope:.3f} MB a minute over {minutes:.1f} minutes")  # noqa: T201
        for kind in faultkinds.DEADLY:
            soak.suffer(kind, calm=5)
        assert not soak.problems, "\n".join(soak.problems)
        assert slope <= STEEPEST
        third = max(1, len(soak.quiet) // 3)
        for what, first, last in zip(
            ("descriptors", "threads", "tasks"),
            zip(*soak.quiet[:third], strict=True),
            zip(*soak.quiet[-third:], strict=True),
            strict=True,
        ):
            assert statistics.median(last) <= statistics.median(first) + 2, (what, first, last)
