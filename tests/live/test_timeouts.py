"""The four timeouts, each in a server of its own: waiting, running, both together, and a single step that hangs."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from server import serving

LONG: dict[str, Any] = {"prompt": "a forest", "width": 256, "height": 256, "steps": 150, "seed": 1}
SHORT: dict[str, Any] = {"prompt": "a lake", "width": 64, "height": 64, "steps": 2, "seed": 3}


def _end(client: httpx.Client, job_id: str) -> dict[str, Any]:
    """The job, when it has ended."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        job: dict[str, Any] = client.get(f"/v1/jobs/{job_id}").json()
        if job["finished_at"] is not None:
            return job
        time.sleep(0.05)
    raise AssertionError(job)


@pytest.mark.parametrize("limit", ["wait_timeout", "run_timeout", "job_timeout"])
def test_jobs_that_take_too_long(tmp_path: Path, limit: str) -> None:
    """The one that waits is ended by its wait, the one that runs by its run, both by the whole; the server goes on."""
    with serving(tmp_path / "outputs", max_runs="1", **{limit: "1"}) as live, live.ask() as client:
        live.wait_ready()
        running = client.post("/v1/jobs", json={**LONG, "width": 512, "height": 512}).json()["id"]
        live.wait_for(lambda health: health["queue"]["running"] == 1)
        waiting = client.post("/v1/jobs", json=LONG).json()["id"]
        if limit != "run_timeout":
            late = _end(client, waiting)
            assert (late["status"], late["error"]["code"], late["started_at"]) == ("failed", "timeout", None)
        if limit == "wait_timeout":
            assert client.get(f"/v1/jobs/{running}").json()["status"] == "running"
            client.delete(f"/v1/jobs/{running}")
        else:
            late = _end(client, running)
            assert (late["status"], late["error"]["code"]) == ("failed", "timeout")
            assert late["started_at"] is not None
        client.delete(f"/v1/jobs/{waiting}")
        live.wait_for(lambda health: health["queue"]["running"] + health["queue"]["size"] == 0)
        assert client.post("/generate", json=SHORT).status_code == 200


def test_a_step_that_hangs(tmp_path: Path) -> None:
    """The process leaves with code 70 and says where its threads stood; the next one paints the job all the same."""
    folder = tmp_path / "outputs"
    with serving(folder, step_timeout="0.2") as live, live.ask() as client, ThreadPoolExecutor(1) as pool:
        live.wait_ready()
        large = {**SHORT, "width": 1024, "height": 1024}
        job_id = client.post("/v1/jobs", json=large).json()["id"]
        waiting = pool.submit(lambda: httpx.post(f"{live.address}/generate", json=large, timeout=60))
        assert live.process.wait(60) == 70
        assert isinstance(waiting.exception(), httpx.TransportError)
    told = "".join(live.log)
    assert "a step has taken too long; leaving with code 70" in told
    assert "most recent call first" in told
    with serving(folder) as live, live.ask() as client:
        job = _end(client, job_id)
        assert (job["status"], job["attempts"]) == ("succeeded", 2)
