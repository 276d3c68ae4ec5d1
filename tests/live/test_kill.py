"""``kill -9`` at random moments while clients submit: nothing accepted is lost, doubled, or left over as a file."""

import hashlib
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from daguerre.jobs.service import ATTEMPTS
from server import Live, serving

SEEDS = range(6)
#: Reproducible, since which jobs share a forward, and so the last bit of a pixel, is another matter after each death.
RECIPE: dict[str, Any] = {"width": 64, "height": 64, "steps": 2, "reproducible": True}


def _submit(client: httpx.Client, seed: int) -> str | None:
    """A job's id if it was accepted; a client whose server died does not know."""
    fields = {**RECIPE, "prompt": f"lake {seed % 3}", "seed": seed % len(SEEDS)}
    try:
        answer = client.post("/v1/jobs", json=fields)
    except httpx.TransportError:
        return None
    assert answer.status_code == 202
    return str(answer.json()["id"])


def _look(client: httpx.Client, job_id: str | None) -> int:
    """Looks at the thumbnails of a job, as far as it has any; gives how many."""
    images = client.get(f"/v1/jobs/{job_id}").json().get("images", [])
    for image in images:
        answer = client.get(image["thumbnail_url"])
        assert answer.headers["content-type"] == "image/webp"
    return len(images)


def _finish(client: httpx.Client, job_id: str) -> dict[str, Any]:
    end = time.monotonic() + 300
    while time.monotonic() < end:
        job: dict[str, Any] = client.get(f"/v1/jobs/{job_id}").json()
        if job["finished_at"] is not None:
            return job
        time.sleep(0.05)
    raise AssertionError(job)


def _play(folder: Path, kills: int, seed: int) -> None:
    """Kills a server again and again, and then sees that one which lives makes everything good."""
    chance, outputs, accepted = random.Random(seed), folder / "outputs", []
    for _ in range(kills):
        with serving(outputs, spill_every="0.05") as live, live.ask() as client:
            if chance.random() < 0.6:  # while it paints; else while it starts
                live.wait_ready()
            end = time.monotonic() + chance.uniform(0.1, 2.0)
            while time.monotonic() < end:
                accepted.append(_submit(client, chance.randrange(10**6)))
                time.sleep(chance.uniform(0, 0.3))
                _look(client, chance.choice(accepted))
            live.process.kill()
            live.process.wait()
            accepted += [_submit(client, 1)]  # to nobody
    ids = [job_id for job_id in accepted if job_id is not None]
    with serving(outputs, queue_limit="10000", spill_every="0.05") as live, live.ask() as client:
        jobs = [_finish(client, job_id) for job_id in ids]
        # Those that were accepted a moment before a kill, and of whom no client knows.
        for job in _all(client):
            _finish(client, job["id"])
        # Chance may kill the process three times while it paints one job. Then that is promised to end, and is told.
        poisoned = [job for job in jobs if (job["status"], (job["error"] or {}).get("code")) == ("failed", "poison")]
        assert [job["attempts"] for job in poisoned] == [ATTEMPTS] * len(poisoned)
        assert len(poisoned) <= kills - ATTEMPTS + 1  # suspects are painted alone: one a death, from the third on
        jobs = [job for job in jobs if job not in poisoned]
        assert Counter((job["status"], job["error"] and job["error"]["code"]) for job in jobs) == {
            ("succeeded", None): len(jobs)
        }
        assert max(job["attempts"] for job in jobs) <= ATTEMPTS
        bytes_of: dict[tuple[str, int], set[str]] = {}
        for job in jobs:
            bytes_of.setdefault((job["recipe"]["prompt"], job["recipe"]["seed"]), set()).add(job["images"][0]["sha256"])
        assert all(len(hashes) == 1 for hashes in bytes_of.values())
        assert len(bytes_of) < len(jobs)  # some recipes were painted by several processes
        for (prompt, number), hashes in bytes_of.items():
            calm = client.post("/generate", json={**RECIPE, "prompt": prompt, "seed": number})
            assert {hashlib.sha256(calm.content).hexdigest()} == hashes
        files = [path.name for path in outputs.iterdir() if path.is_file()]
        told = {image["filename"] for job in _all(client) for image in job["images"]}
        assert sorted(files) == sorted(told)
        # Thumbnails are made when somebody looks: some have been, by processes that were killed.
        thumbnails = outputs / ".thumbnails"
        assert {path.stem for path in thumbnails.iterdir()} <= {Path(name).stem for name in told}
        for job in _all(client):
            assert _look(client, job["id"]) == len(job["images"])
        assert sorted(path.name for path in thumbnails.iterdir()) == sorted(f"{Path(name).stem}.webp" for name in told)
        assert all(re.fullmatch(r"\d{8}_\d{6}_demo-xl_[0-9a-f]{8}\.png", name) for name in files)
    assert list((folder / "outputs-data" / "spills").glob("*")) == []


def _all(client: httpx.Client) -> list[dict[str, Any]]:
    """Every job that the server knows of this client."""
    page = client.get("/v1/jobs", params={"limit": 200}).json()
    found: list[dict[str, Any]] = page["data"]
    while page["next_cursor"]:
        page = client.get("/v1/jobs", params={"limit": 200, "cursor": page["next_cursor"]}).json()
        found += page["data"]
    return found


def _forwards(live: Live) -> int:
    """How many this process has computed."""
    found = re.search(r"daguerre_forward_rows_count (\d+)", httpx.get(f"{live.address}/metrics").text)
    assert found is not None
    return int(found[1])


def _kill(live: Live) -> None:
    live.process.kill()


def _stop(live: Live) -> None:
    assert live.stop() == 0


@pytest.mark.parametrize(("end", "spill_every"), [(_kill, "0.05"), pytest.param(_stop, "3600", marks=pytest.mark.long)])
def test_a_job_goes_on_in_the_next_process(tmp_path: Path, end: Callable[[Live], None], spill_every: str) -> None:
    """Where it was: its first steps are not computed again, and the picture is the one that a calm server paints.

    A server that is told to stop writes what it has, however long it would not have written otherwise.
    """
    recipe = {**RECIPE, "prompt": "a lake", "seed": 1, "width": 128, "height": 128, "steps": 100}
    spills = tmp_path / "outputs-data" / "spills"
    with serving(tmp_path / "outputs", spill_every=spill_every, grace_timeout="0.1") as live, live.ask() as client:
        live.wait_ready()
        job_id = client.post("/v1/jobs", json=recipe).json()["id"]
        until = time.monotonic() + 60
        while client.get(f"/v1/jobs/{job_id}").json()["progress"]["step"] < 20:
            assert time.monotonic() < until
            time.sleep(0.005)
        end(live)
        live.process.wait()
    with serving(tmp_path / "outputs", spill_every=spill_every) as live, live.ask() as client:
        job = _finish(client, job_id)
        assert job["status"] == "succeeded"
        done_before = recipe["steps"] - _forwards(live)
        assert done_before >= (20 if end is _stop else 5)
        calm = client.post("/generate", json=recipe)
        assert hashlib.sha256(calm.content).hexdigest() == job["images"][0]["sha256"]
        assert list(spills.glob("*")) == []


def test_kills(tmp_path: Path) -> None:
    """A few times."""
    _play(tmp_path, kills=3, seed=1)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(2, 12))
def test_many_kills(tmp_path: Path, seed: int) -> None:
    """Many times."""
    _play(tmp_path, kills=20, seed=seed)
