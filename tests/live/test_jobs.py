"""Jobs that nobody waits for on a connection: submitted, polled, fetched, called off, and there after a restart."""

import asyncio
import base64
import hashlib
import io
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from daguerre import catalog, recipe
from daguerre.job import Job, Status, new_id
from daguerre.store.db import Database
from daguerre.store.jobs import JobRows
from server import ROOT, Live, serving

SMALL: dict[str, Any] = {"prompt": "a lake", "width": 64, "height": 64, "steps": 2, "seed": 3}
LONG: dict[str, Any] = {"prompt": "a forest", "width": 256, "height": 256, "steps": 150, "seed": 1}
UNKNOWN = "00000000-0000-7000-8000-000000000000"


def _until_final(client: httpx.Client, job_id: str) -> dict[str, Any]:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        job: dict[str, Any] = client.get(f"/v1/jobs/{job_id}").json()
        if job["finished_at"] is not None:
            return job
        time.sleep(0.03)
    raise AssertionError(job)


@pytest.mark.parametrize("route", ["/v1/jobs", "/api/v1/jobs", "/generate/queue"])
def test_submit_poll_fetch(client: httpx.Client, route: str) -> None:
    """202 with where to look; then the job moves on to its picture, which is that of the synchronous route."""
    accepted = client.post(route, json=SMALL)
    job = accepted.json()
    assert accepted.status_code == 202
    assert accepted.headers["location"] == f"/v1/jobs/{job['id']}" == job["links"]["self"]
    assert job["status"] in ("queued", "running", "succeeded")
    done = _until_final(client, job["id"])
    assert (done["status"], done["attempts"], done["position"], done["eta_s"]) == ("succeeded", 1, None, None)
    assert done["progress"]["fraction"] == 1.0
    picture = client.get(job["links"]["result"])
    assert picture.headers["content-type"] == "image/png"
    assert picture.content == client.post("/generate", json=SMALL).content
    assert client.get(f"/result/{job['id']}").content == client.get(f"/image/{job['id']}").content == picture.content
    assert client.get(f"/queue/status/{job['id']}").json()["status"] == "succeeded"


def test_prefer_respond_async(client: httpx.Client) -> None:
    """Turns a synchronous request into a queued one."""
    answer = client.post("/generate", json=SMALL, headers={"prefer": "wait=3, respond-async"})
    assert answer.status_code == 202
    assert answer.headers["preference-applied"] == "respond-async"
    assert _until_final(client, answer.json()["id"])["status"] == "succeeded"


def test_several_pictures_by_their_index(client: httpx.Client) -> None:
    """And none beyond."""
    job = client.post("/v1/jobs", json={**SMALL, "count": 2}).json()
    assert len(_until_final(client, job["id"])["images"]) == 2
    result = job["links"]["result"]
    pictures = [client.get(result, params={"index": index}) for index in (0, 1)]
    assert [picture.headers["x-seed"] for picture in pictures] == ["3", "4"]
    assert pictures[0].content != pictures[1].content
    for index in ("2", "99999"):
        beyond = client.get(result, params={"index": index})
        assert (beyond.status_code, beyond.json()["code"]) == (404, "not_found")
    for index in ("-1", "x", "99999999", "²"):
        assert client.get(result, params={"index": index}).status_code == 422


def test_a_finished_picture_under_each_of_its_addresses(client: httpx.Client) -> None:
    """By name, to look at or to keep; by its job's id; the same bytes each time. Before there is one: 404."""
    job = client.post("/v1/jobs", json={**SMALL, "count": 2}).json()
    assert client.get(f"/v1/images/{job['id']}/file").status_code in (404, 200)
    first, second = _until_final(client, job["id"])["images"]
    shown = client.get(first["url"])
    for path in (f"/v1/images/{job['id']}/file", f"/api/v1/images/{first['filename']}/file"):
        assert client.get(path).content == shown.content
    kept = client.get(f"/download/{first['filename']}")
    assert (kept.content, kept.headers["content-type"]) == (shown.content, "image/png")
    assert kept.headers["content-disposition"] == f'attachment; filename="{first["filename"]}"'
    other = client.get(f"/v1/images/{job['id']}/file", params={"index": 1})
    assert hashlib.sha256(other.content).hexdigest() == second["sha256"]
    assert client.get(f"/v1/images/{job['id']}/file", params={"index": 2}).status_code == 404


def test_not_done_yet_then_called_off(client: httpx.Client) -> None:
    """202 and when to ask again, then 409 and why; a second call finds nothing to call off."""
    job = client.post("/v1/jobs", json=LONG).json()
    early = client.get(job["links"]["result"])
    assert early.status_code == 202
    assert int(early.headers["retry-after"]) >= 1
    assert early.json()["eta_s"] > 0
    assert client.post(job["links"]["cancel"]).json() == {"cancelled": True}
    assert client.delete(job["links"]["self"]).json() == {"cancelled": False}
    late = client.get(job["links"]["result"])
    assert (late.status_code, late.json()["code"], late.json()["title"]) == (409, "cancelled", "Job cancelled")
    assert client.get(job["links"]["self"]).json()["status"] == "cancelled"


def test_the_older_task_api(client: httpx.Client) -> None:
    """Its states and its result."""
    long = client.post("/generate/queue", json=LONG).json()
    assert client.get(f"/status/{long['id']}").json()["state"] in ("PENDING", "PROGRESS")
    client.delete(f"/v1/jobs/{long['id']}")
    assert client.get(f"/status/{long['id']}").json()["state"] == "FAILURE"
    short = client.post("/generate/queue", json=SMALL).json()
    _until_final(client, short["id"])
    task = client.get(f"/status/{short['id']}").json()
    assert task["state"] == "SUCCESS"
    assert client.get(task["result"]["images"][0]).status_code == 200


def test_lists_are_of_the_callers_own(live: Live, client: httpx.Client) -> None:
    """By pages, by status, the newest first; another address sees nothing of them."""
    mine = [client.post("/v1/jobs", json=SMALL).json()["id"] for _ in range(3)]
    for job_id in mine:
        _until_final(client, job_id)
    first = client.get("/v1/jobs", params={"limit": 2}).json()
    assert [job["id"] for job in first["data"]] == mine[:0:-1]
    second = client.get("/v1/jobs", params={"limit": 1, "cursor": first["next_cursor"]}).json()
    assert [job["id"] for job in second["data"]] == mine[:1]
    assert all(job["status"] == "cancelled" for job in client.get("/v1/jobs?status=cancelled").json()["data"])
    with live.ask(transport=httpx.HTTPTransport(local_address="127.0.0.3")) as other:
        assert other.get("/v1/jobs").json() == {"data": [], "next_cursor": None}
    assert client.get("/v1/jobs?status=late").status_code == 422
    assert client.get("/v1/jobs?limit=0").status_code == 422


def test_queue_status(client: httpx.Client) -> None:
    """How much there is to do, and the caller's own jobs."""
    job = client.post("/v1/jobs", json=LONG).json()
    status = client.get("/queue/status").json()
    assert status["size"] + status["running"] >= 1
    assert status["eta_s"] > 0
    assert job["id"] in [one["id"] for one in status["jobs"]]
    client.delete(f"/v1/jobs/{job['id']}")


@pytest.mark.parametrize("path", ["/v1/jobs/{}", "/result/{}", "/status/{}", "/queue/status/{}", "/image/{}"])
@pytest.mark.parametrize("job_id", [UNKNOWN, "x", "%00", "..%2f..%2fetc%2fpasswd"])
def test_unknown_ids(client: httpx.Client, path: str, job_id: str) -> None:
    """Are not found, whatever they look like."""
    assert client.get(path.format(job_id)).status_code == 404


def test_idempotency(client: httpx.Client) -> None:
    """The same key and body give the same job, another body is refused; other keys are other jobs."""
    headers = {"idempotency-key": "mine-1"}
    with ThreadPoolExecutor(8) as pool:
        posts = [pool.submit(client.post, "/v1/jobs", json=SMALL, headers=headers) for _ in range(16)]
        answers = [post.result() for post in posts]
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    refused = client.post("/v1/jobs", json={**SMALL, "seed": 4}, headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (422, "idempotency_key_reused")
    other = client.post("/v1/jobs", json=SMALL, headers={"idempotency-key": "mine-2"})
    assert other.json()["id"] != answers[0].json()["id"]
    for bad in ("", "x" * 256, "a b"):
        assert client.post("/v1/jobs", json=SMALL, headers={"idempotency-key": bad}).status_code == 400


def test_a_restart_goes_on(tmp_path: Path) -> None:
    """After SIGTERM: finished jobs are still there, the others are painted, in their order, once; keys are known."""
    outputs, same = tmp_path / "outputs", {**SMALL, "reproducible": True}
    with serving(outputs, grace_timeout="1", max_runs="1") as live, live.ask() as client:
        live.wait_ready()
        done = client.post("/v1/jobs", json=same).json()["id"]
        before = _until_final(client, done)
        # Longer than the grace time, so it is cut short; the rest is not even begun.
        running = client.post("/v1/jobs", json={**LONG, "steps": 60}).json()["id"]
        while client.get(f"/v1/jobs/{running}").json()["status"] == "queued":
            time.sleep(0.02)
        key = {"idempotency-key": "again"}
        image = {**SMALL, "image": _blue(), "strength": 0.9}
        rest = [
            client.post("/v1/jobs", json=fields, headers=headers).json()["id"]
            for fields, headers in ((same, {}), (image, key))
        ]
        assert live.stop() == 0
    with serving(outputs) as live, live.ask() as client:
        assert client.get(f"/v1/jobs/{done}").json() == before
        assert client.get(f"/result/{done}").status_code == 200
        assert client.post("/v1/jobs", json=image, headers=key).json()["id"] == rest[1]
        jobs = [_until_final(client, job_id) for job_id in (running, *rest)]
        assert [job["status"] for job in jobs] == ["succeeded"] * 3
        assert [job["attempts"] for job in jobs] == [1, 1, 1]
        assert jobs[1]["images"][0]["sha256"] == before["images"][0]["sha256"]
        assert len(list(outputs.glob("*.png"))) == 4


def _blue() -> str:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "blue").save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_queued_by_default(tmp_path: Path) -> None:
    """Where the operator wants it so, ``/generate`` answers at once; the routes that name a mode still wait."""
    with serving(tmp_path / "outputs", generate_default="queued") as live, live.ask() as client:
        live.wait_ready()
        answer = client.post("/generate", json=SMALL)
        assert answer.status_code == 202
        assert "preference-applied" not in answer.headers
        assert _until_final(client, answer.json()["id"])["status"] == "succeeded"
        assert client.post("/v1/txt2img", json=SMALL).status_code == 200


def test_what_the_server_can_do(client: httpx.Client) -> None:
    """Its limits are those that it keeps."""
    told = client.get("/v1/capabilities").json()
    assert told["modes"] == {mode: ["demo-xl"] for mode in ("txt2img", "img2img", "inpaint")}
    most = told["limits"]["count"]
    assert client.post("/v1/jobs", json={**SMALL, "count": most + 1}).status_code == 422
    assert {style["id"] for style in client.get("/v1/styles").json()["data"]} >= {"realistic", "anime", "sketch"}
    for style in client.get("/v1/styles").json()["data"]:
        assert "{prompt}" in style["prompt"]


def test_who_may_have_killed_the_process_is_painted_alone(tmp_path: Path) -> None:
    """So that the next death is one job's own doing, and those that ran beside it are not blamed for it."""
    outputs, data = tmp_path / "outputs", tmp_path / "outputs-data"
    whole = recipe.resolve(
        recipe.parse({**SMALL, "steps": 6}), catalog.read(ROOT / "weights", "demo-xl").model(), 0, {}
    )
    left = [
        Job(new_id(time.time() + at / 1000), whole, time.time(), "127.0.0.1", False, attempts, status)
        for at, (attempts, status) in enumerate(
            [(0, Status.QUEUED), (2, Status.RUNNING), (1, Status.RUNNING), (2, Status.RUNNING), (0, Status.QUEUED)]
        )
    ]
    database = Database(data / "daguerre.db")
    for job in left:
        asyncio.run(JobRows(database).add(job, None, None))
    database.close()
    with serving(outputs) as live, live.ask() as client:
        jobs = [_until_final(client, job.id) for job in left]
    assert [(job["status"], job["attempts"]) for job in jobs] == [("succeeded", job.attempts + 1) for job in left]
    times = [(job["started_at"], job["finished_at"]) for job in jobs]
    for at in (1, 3):
        others = times[:at] + times[at + 1 :]
        assert all(ended <= times[at][0] or began >= times[at][1] for began, ended in others), times


def test_results_expire(tmp_path: Path) -> None:
    """410 after their time; the picture's file stays."""
    with serving(tmp_path / "outputs", result_ttl="0.5") as live, live.ask() as client:
        live.wait_ready()
        job = client.post("/v1/jobs", json=SMALL).json()
        name = ""
        for _ in range(200):
            answer = client.get(job["links"]["self"])
            if answer.status_code == 410:
                break
            name = answer.json()["images"][0]["filename"] if answer.json()["images"] else name
            time.sleep(0.05)
        assert answer.json()["code"] == "expired"
        assert client.get(job["links"]["result"]).status_code == 410
        assert client.get(f"/outputs/{name}").status_code == 200


def test_files_go_after_their_own_time(tmp_path: Path) -> None:
    """The job still tells of its picture; whoever fetches it is told that it has gone."""
    with serving(tmp_path / "outputs", files_ttl="1") as live, live.ask() as client:
        live.wait_ready()
        job = _until_final(client, client.post("/v1/jobs", json=SMALL).json()["id"])
        (live.outputs / "mine.png").write_bytes(b"a file that the server has not written")
        (image,) = job["images"]
        client.get(image["thumbnail_url"])
        end = time.monotonic() + 30
        while client.get(image["url"]).status_code == 200:
            assert time.monotonic() < end
            time.sleep(0.1)
        assert client.get(image["url"]).status_code == 404
        assert client.get(image["thumbnail_url"]).status_code == 404
        gone = client.get(f"/result/{job['id']}")
        assert (gone.status_code, gone.json()["code"]) == (410, "expired")
        assert [path.name for path in live.outputs.iterdir() if path.is_file()] == ["mine.png"]


def test_a_full_disk_refuses_before_it_hurts(tmp_path: Path) -> None:
    """With 503 and when to come again; readiness says so, too. None of it waits for the model."""
    with serving(tmp_path / "outputs", least_disk=str(2**60)) as live, live.ask() as client:
        for route in ("/v1/jobs", "/generate"):
            answer = client.post(route, json=SMALL)
            assert (answer.status_code, answer.json()["code"]) == (503, "disk_low")
            assert answer.headers["retry-after"] == "60"
        assert client.get("/readyz").json()["code"] == "disk_low"


def test_a_full_queue(tmp_path: Path) -> None:
    """Takes what it promises, refuses the rest, and knows everyone's position."""
    count = 300
    settings = {"queue_limit": str(count - 50), "generate_default": "queued"}
    with serving(tmp_path / "outputs", **settings) as live, live.ask() as client:
        assert "preference-applied" not in client.post("/generate", json=LONG).headers
        with ThreadPoolExecutor(16) as pool:
            statuses = list(pool.map(lambda _: client.post("/generate", json=LONG).status_code, range(count)))
        assert set(statuses) == {202, 503}
        waiting = client.get("/queue/status").json()
        assert waiting["size"] == count - 50
        positions = [job["position"] for job in waiting["jobs"] if job["status"] == "queued"]
        assert positions == list(range(1, len(positions) + 1))
        live.process.kill()


def test_no_secret_of_the_machine_in_a_job(client: httpx.Client, live: Live) -> None:
    """Neither who asked nor where files lie."""
    job = client.post("/v1/jobs", json=SMALL)
    _until_final(client, job.json()["id"])
    text = client.get(job.json()["links"]["self"]).text
    assert "127.0.0.1" not in text
    assert str(live.outputs) not in text
    assert re.search(r'"client"|attached', text) is None


def test_waiting_and_polling_are_one(client: httpx.Client) -> None:
    """A synchronous job can be asked about while it runs, and is called off by whoever knows its id."""
    answers: list[httpx.Response] = []
    waiting = threading.Thread(target=lambda: answers.append(client.post("/generate", json=LONG)))
    waiting.start()
    jobs: list[dict[str, Any]] = []
    while not jobs:
        jobs = client.get("/v1/jobs?status=running").json()["data"]
        time.sleep(0.02)
    assert client.delete(jobs[0]["links"]["self"]).json() == {"cancelled": True}
    waiting.join(20)
    assert (answers[0].status_code, answers[0].json()["code"]) == (409, "cancelled")
