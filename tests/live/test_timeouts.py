"""Timeouts of waiting, of running and of a single step; that of both together is in `test_life`."""

import time
from pathlib import Path
from typing import Any

import httpx

from server import serving

LONG: dict[str, Any] = {"prompt": "a forest", "width": 512, "height": 512, "steps": 150, "seed": 1}
SHORT: dict[str, Any] = {"prompt": "a lake", "width": 64, "height": 64, "steps": 2, "seed": 3}


def _end(client: httpx.Client, job_id: str) -> dict[str, Any]:
    """The job, when it has ended."""
    until = time.monotonic() + 90
    while time.monotonic() < until:
        job: dict[str, Any] = client.get(f"/v1/jobs/{job_id}").json()
        if job["finished_at"] is not None:
            return job
        time.sleep(0.05)
    raise AssertionError(job)


def test_waiting_and_running_have_a_limit_each(tmp_path: Path) -> None:
    """Whoever waits is ended by the one while another runs, who is ended by the other; then the server goes on."""
    with serving(tmp_path / "outputs", max_runs="1", wait_timeout="3", run_timeout="6") as live, live.ask() as client:
        live.wait_ready()
        running = client.post("/v1/jobs", json=LONG).json()["id"]
        live.wait_for(lambda health: health["queue"]["running"] == 1)
        waiting = client.post("/v1/jobs", json=LONG).json()["id"]
        late = _end(client, waiting)
        assert (late["status"], late["error"]["code"], late["started_at"]) == ("failed", "timeout", None)
        assert client.get(f"/v1/jobs/{running}").json()["status"] == "running"
        late = _end(client, running)
        assert (late["status"], late["error"]["code"]) == ("failed", "timeout")
        assert late["started_at"] is not None
        told = client.get(late["links"]["result"])
        assert (told.status_code, told.json()["title"], told.json()["code"]) == (409, "Job failed", "timeout")
        assert client.post("/generate", json=SHORT).status_code == 200


def test_a_step_that_hangs(tmp_path: Path) -> None:
    """The process leaves with code 70 and says where its threads stood; the next one paints the job all the same."""
    folder = tmp_path / "outputs"
    with serving(folder, step_timeout="0.3") as live:
        live.wait_ready()
        large = {**SHORT, "width": 768, "height": 768, "steps": 1}
        job_id = httpx.post(f"{live.address}/v1/jobs", json=large).json()["id"]
        assert live.process.wait(60) == 70
    told = "".join(live.log)
    assert "a step has taken too long; leaving with code 70" in told
    assert "most recent call first" in told
    with serving(folder) as live, live.ask() as client:
        live.wait_ready()
        job = _end(client, job_id)
        assert (job["status"], job["attempts"]) == ("succeeded", 2)
