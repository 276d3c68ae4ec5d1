"""A backup of a server under load, and another machine that goes on from it."""

import hashlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx

from server import ROOT, serving

RECIPE: dict[str, Any] = {"prompt": "a lake at sunrise", "width": 64, "height": 64, "reproducible": True}


def _daguerre(*arguments: object, **settings: Path) -> "subprocess.CompletedProcess[str]":
    """Runs the command with these folders."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DAGUERRE_")}
    environment |= {f"DAGUERRE_{name.upper()}": str(value) for name, value in settings.items()}
    command = [sys.executable, "-m", "daguerre", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


def _finish(client: httpx.Client, job_id: str) -> dict[str, Any]:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        job: dict[str, Any] = client.get(f"/v1/jobs/{job_id}").json()
        if job.get("finished_at") is not None:
            return job
        time.sleep(0.05)
    raise AssertionError(job)


def test_what_was_queued_goes_on_elsewhere(tmp_path: Path) -> None:
    """Every job that was accepted before the backup began is painted after it, by whichever of the two machines."""
    archive, old, new = tmp_path / "kept.tar", tmp_path / "old", tmp_path / "new"
    accepted: list[str] = []
    is_over = threading.Event()

    def submit(address: str) -> None:
        with httpx.Client(base_url=address, timeout=30) as client:
            while not is_over.is_set():
                answer = client.post("/v1/jobs", json=RECIPE | {"steps": 4, "seed": len(accepted) % 5})
                if answer.status_code == 202:
                    accepted.append(answer.json()["id"])
                time.sleep(0.02)

    with serving(old, queue_limit="10000") as live:
        live.wait_ready()
        submitter = threading.Thread(target=submit, args=(live.address,))
        submitter.start()
        while len(accepted) < 30:
            time.sleep(0.05)
        with live.ask() as client:
            _finish(client, accepted[0])
            long = client.post("/v1/jobs", json=RECIPE | {"steps": 100, "seed": 0}).json()["id"]
        before = [*accepted, long]
        folders = {"data": tmp_path / "old-data", "outputs": old}
        made = _daguerre("backup", archive, **folders)
        assert made.returncode == 0, made.stderr
        refused = _daguerre("restore", archive, "--force", **folders)
        assert refused.returncode == 1
        assert "another Daguerre has the data folder" in refused.stderr
        is_over.set()
        submitter.join()
        live.process.kill()
        live.process.wait()
    folders = {"data": tmp_path / "new-data", "outputs": new, "weights": tmp_path / "new-weights"}
    restored = _daguerre("restore", archive, **folders)
    assert restored.returncode == 0, restored.stderr
    assert (tmp_path / "new-weights" / "catalog.toml").read_bytes() == (ROOT / "weights" / "catalog.toml").read_bytes()
    again = _daguerre("restore", archive, **folders)
    assert (again.returncode, "not empty" in again.stderr) == (1, True)
    with serving(new, queue_limit="10000") as live, live.ask() as client:
        states = [client.get(f"/v1/jobs/{job_id}").json()["status"] for job_id in before]
        jobs = [_finish(client, job_id) for job_id in before]
        assert {job["status"] for job in jobs} == {"succeeded"}
        for job in jobs:
            picture = client.get(f"/v1/jobs/{job['id']}/result")
            assert hashlib.sha256(picture.content).hexdigest() == job["images"][0]["sha256"]
        pictures = {(job["recipe"]["steps"], job["recipe"]["seed"], job["images"][0]["sha256"]) for job in jobs}
        assert len(pictures) == 6  # both machines painted the same
        assert live.stop() == 0
    assert (states[0], states[-1]) == ("succeeded", "queued")  # one was done before, one goes on here


def test_two_servers_on_one_folder(tmp_path: Path) -> None:
    """The second does not start; it says why."""
    with serving(tmp_path / "outputs") as live:
        second = _daguerre("serve", "--port", "0", data=tmp_path / "outputs-data", outputs=tmp_path / "other")
        assert second.returncode == 1
        assert "another Daguerre has the data folder" in second.stderr
        assert httpx.get(f"{live.address}/livez").status_code == 200
