"""A server's life: starting, painting, losing clients, being full, running out of time, stopping."""

import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from server import ROOT, Live, serving

LONG: dict[str, Any] = {"prompt": "a forest at sunrise", "steps": 150, "seed": 1}
SHORT: dict[str, Any] = {"prompt": "a red circle", "width": 64, "height": 64, "steps": 2, "seed": 1}


def _idle(health: dict[str, Any]) -> bool:
    return bool(health["queue"]["running"] == 0 and health["queue"]["size"] == 0)


def _post_and_leave(live: Live, fields: dict[str, Any]) -> socket.socket:
    """Posts on a raw socket; closing it is leaving."""
    body = httpx.Request("POST", live.address, json=fields).content
    raw = socket.create_connection(("127.0.0.1", live.port), timeout=30)
    raw.sendall(
        b"POST /generate HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        + f"content-length: {len(body)}\r\n\r\n".encode()
        + body
    )
    return raw


def test_a_client_that_leaves_frees_the_engine(live: Live) -> None:
    """Running and waiting jobs of clients that have gone are gone too, and leave no file behind."""
    before = set(live.outputs.glob("*.png"))
    sockets = [_post_and_leave(live, LONG) for _ in range(3)]
    live.wait_for(lambda health: health["queue"]["running"] >= 1)
    time.sleep(0.5)
    for raw in sockets:
        raw.close()
    live.wait_for(_idle, seconds=20)
    with live.ask() as client:
        assert client.post("/generate", json=SHORT).status_code == 200
    assert len(set(live.outputs.glob("*.png")) - before) == 1


def test_the_next_picture_is_not_touched_by_a_cancelled_one(live: Live) -> None:
    """The same recipe gives the same bytes before and after somebody else's job was cut off."""
    with live.ask() as client:
        first = client.post("/generate", json=SHORT).content
        raw = _post_and_leave(live, LONG)
        live.wait_for(lambda health: health["queue"]["running"] >= 1)
        raw.close()
        live.wait_for(_idle, seconds=20)
        assert client.post("/generate", json=SHORT).content == first


def test_starting_ready_full_late_and_stopped(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One server through its states: not ready, painting for who came early, full, out of time, stopped at work."""
    limits = {"queue_limit": "2", "max_runs": "1", "job_timeout": "6", "grace_timeout": "1"}
    with serving(tmp_path_factory.mktemp("outputs"), **limits) as live, ThreadPoolExecutor(8) as pool:
        early = httpx.get(f"{live.address}/readyz")
        assert early.status_code == 503
        assert early.json()["code"] == "not_ready"
        assert int(early.headers["retry-after"]) >= 1
        assert httpx.get(f"{live.address}/livez").status_code == 200

        # Who comes while the model is loading waits for it, if the time allows; nobody is turned away for it.
        first = httpx.post(f"{live.address}/generate", json=SHORT, timeout=60)
        assert first.status_code in (200, 504)
        live.wait_ready()
        assert httpx.get(f"{live.address}/readyz").status_code == 200

        def post(fields: dict[str, Any]) -> httpx.Response:
            return httpx.post(f"{live.address}/generate", json=fields, timeout=60)

        running = pool.submit(post, {**LONG, "width": 512, "height": 512})
        live.wait_for(lambda health: health["queue"]["running"] == 1)
        waiting = [pool.submit(post, {**LONG, "seed": seed}) for seed in (2, 3)]
        live.wait_for(lambda health: health["queue"]["size"] == 2)
        full = post(SHORT)
        assert full.status_code == 503
        assert full.json()["code"] == "queue_full"
        assert int(full.headers["retry-after"]) >= 1

        late = [job.result() for job in (running, *waiting)]
        assert [answer.status_code for answer in late] == [504] * 3
        assert {answer.json()["code"] for answer in late} == {"timeout"}
        live.wait_for(_idle)

        # Stopped at work: what cannot be finished in the grace time is answered, not dropped.
        last = [pool.submit(post, {**LONG, "width": 512, "height": 512, "seed": seed}) for seed in (4, 5)]
        live.wait_for(lambda health: health["queue"]["running"] + health["queue"]["size"] == 2)
        assert live.stop() == 0
        assert [job.result().json()["code"] for job in last] == ["draining"] * 2
        assert not list(live.outputs.glob(".unfinished*"))
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{live.address}/ping")


def test_stopping_lets_jobs_finish(tmp_path_factory: pytest.TempPathFactory) -> None:
    """With time enough, everybody who waits gets a picture before the process ends."""
    with serving(tmp_path_factory.mktemp("outputs")) as live, ThreadPoolExecutor(4) as pool:
        live.wait_ready()
        jobs = [
            pool.submit(httpx.post, f"{live.address}/generate", json={**SHORT, "steps": 30, "seed": seed}, timeout=60)
            for seed in range(4)
        ]
        live.wait_for(lambda health: health["queue"]["running"] + health["queue"]["size"] >= 4)
        assert live.stop() == 0
        assert [job.result().status_code for job in jobs] == [200] * 4


def test_stopping_while_loading(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A server that has not finished starting can be stopped, also by somebody impatient."""
    with serving(tmp_path_factory.mktemp("outputs")) as live:
        assert live.stop(signals=2) == 0


@pytest.mark.parametrize(
    ("arguments", "environment", "named"),
    [
        (["--host", "0.0.0.0"], {}, "--insecure"),  # noqa: S104 - that it is refused is the point
        ([], {"DAGUERRE_PORTT": "1"}, "portt"),
        ([], {"DAGUERRE_PORT": "high"}, "port"),
        (["--device", "tpu"], {}, "device"),
        (["--config", "nowhere.toml"], {}, "nowhere.toml"),
        (["--model", "nobody"], {}, "nobody"),
    ],
    ids=["exposed", "unknown", "not-a-number", "device", "config", "model"],
)
def test_a_wrong_start_ends_in_one_line(arguments: list[str], environment: dict[str, str], named: str) -> None:
    """It ends at once, says why in a line, and shows no traceback."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("DAGUERRE_")}
    command = [sys.executable, "-m", "daguerre", "serve", "--port", "0", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=clean | environment, capture_output=True, text=True, timeout=60)
    assert done.returncode in (1, 2)
    assert named in done.stderr
    assert "Traceback" not in done.stderr


def test_a_short_job_does_not_wait_for_long_ones(live: Live) -> None:
    """A 2-step picture that comes while 150-step ones are being painted is there before them."""
    sockets = [_post_and_leave(live, {**LONG, "seed": seed}) for seed in range(3)]
    live.wait_for(lambda health: health["queue"]["running"] >= 3)
    with live.ask() as client:
        assert client.post("/generate", json=SHORT).status_code == 200
        assert client.get("/health").json()["queue"]["running"] >= 3
    for raw in sockets:
        raw.close()
    live.wait_for(_idle, seconds=20)


def test_the_loop_turns_while_the_engine_works(live: Live) -> None:
    """/ping is answered again and again while a picture is painted."""
    fields = {**LONG, "steps": 40}
    painting = threading.Thread(target=lambda: httpx.post(f"{live.address}/generate", json=fields, timeout=120))
    painting.start()
    live.wait_for(lambda health: health["queue"]["running"] >= 1)
    with live.ask() as client:
        pings = 0
        while painting.is_alive() and pings < 50:
            assert client.get("/ping").json() == {"status": "ok"}
            pings += 1
    painting.join()
    assert pings >= 10


def test_the_generate_command_paints_a_file(tmp_path: Path) -> None:
    """The command prints where the picture is, and shows its progress elsewhere."""
    out = tmp_path / "circle.webp"
    command = [
        sys.executable,
        "-m",
        "daguerre",
        "generate",
        "a red circle",
        "--steps",
        "2",
        "--size",
        "64x64",
        "--out",
        str(out),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(out)
    assert out.read_bytes()[8:12] == b"WEBP"


def test_the_doctor_finds_this_machine_well(tmp_path: Path) -> None:
    """Here everything that a start needs is there; without the models it says so and fails."""
    command = [sys.executable, "-m", "daguerre", "doctor"]
    well = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert well.returncode == 0, well.stdout
    assert "demo-xl" in well.stdout
    ill = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert ill.returncode == 1
    assert "BAD  models" in ill.stdout
