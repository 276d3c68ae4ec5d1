"""Fifty users and their jobs, crosswise: nobody sees, hears of, or ends what is another's."""

import asyncio
import json
import time
from typing import Any

import doors
import probes
import pytest
from doors import USERS, Gated
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

SMALL = {"prompt": "a lake", "width": 64, "height": 64, "steps": 1, "guidance_scale": 1}


@pytest.fixture(scope="module")
def jobs(gated: Gated) -> list[dict[str, Any]]:
    """A finished job of each user."""
    found = []
    for number in range(USERS):
        with gated.ask(gated.keys[f"user{number}"]) as client:
            found.append(client.post("/v1/jobs", json=SMALL).json())
    for number, job in enumerate(found):
        with gated.ask(gated.keys[f"user{number}"]) as client:
            while (state := client.get(job["links"]["self"]).json())["status"] in ("queued", "running"):
                time.sleep(0.05)
            assert state["status"] == "succeeded"
            found[number] = state
    return found


def test_no_way_leads_to_anothers_job_or_picture(gated: Gated, jobs: list[dict[str, Any]]) -> None:
    """404, the very answer for an id that there never was; and the owner still has all of it afterwards."""
    assert asyncio.run(probes.crosswise(gated.live.address, gated.keys, jobs)) == []
    with gated.ask(gated.keys["user0"]) as intruder, gated.ask(gated.keys["user1"]) as owner:
        never = intruder.get("/v1/jobs/00000000-0000-7000-8000-000000000000").json()
        others = intruder.get(jobs[1]["links"]["self"]).json()
        assert {**never, "request_id": ""} == {**others, "request_id": ""}
        for method, path in probes.WAYS:
            named = path.format(id=jobs[1]["id"], filename=jobs[1]["images"][0]["filename"])
            assert owner.request(method, named).status_code == 200, (method, path)


def test_no_socket_leads_to_anothers_job(gated: Gated, jobs: list[dict[str, Any]]) -> None:
    """A frame that says that there is none, and the end."""
    url = gated.live.address.replace("http", "ws", 1)
    for number in range(USERS):
        job = jobs[(number + 1) % USERS]
        headers = doors.bearer(gated.keys[f"user{number}"])
        with connect(f"{url}/v1/jobs/{job['id']}/events", additional_headers=headers) as socket:
            frame = json.loads(socket.recv(timeout=10))
            assert (frame["type"], frame["error"]["code"]) == ("failed", "job_not_found")
            with pytest.raises(ConnectionClosed):
                socket.recv(timeout=10)


def test_lists_have_only_ones_own(gated: Gated, jobs: list[dict[str, Any]]) -> None:
    """Whatever lists jobs."""
    for number in (0, 7, USERS - 1):
        with gated.ask(gated.keys[f"user{number}"]) as client:
            assert {job["id"] for job in client.get("/v1/jobs").json()["data"]} == {jobs[number]["id"]}
            assert client.get("/queue/status").json()["jobs"] == []
            assert client.get("/sdapi/v1/progress").json()["state"]["job"] == ""


def test_what_ends_ones_own_jobs_ends_nobody_elses(gated: Gated) -> None:
    """Interrupt and skip; and the same Idempotency-Key of two users stands for two jobs."""
    slow = {**SMALL, "steps": 150, "width": 256, "height": 256, "guidance_scale": 5}
    with gated.ask(gated.keys["user2"]) as mine, gated.ask(gated.keys["user3"]) as theirs:
        header = {"idempotency-key": "the-same"}
        first = mine.post("/v1/jobs", json=slow, headers=header).json()
        second = theirs.post("/v1/jobs", json=slow, headers=header).json()
        assert first["id"] != second["id"]
        assert mine.post("/v1/jobs", json=slow, headers=header).json()["id"] == first["id"]
        theirs.post("/sdapi/v1/interrupt")
        theirs.post("/sdapi/v1/skip")
        assert theirs.get(second["links"]["self"]).json()["status"] == "cancelled"
        assert mine.get(first["links"]["self"]).json()["status"] in ("queued", "running")
        assert mine.delete(first["links"]["self"]).json() == {"cancelled": True}


def test_keys_of_one_name_are_one_client(gated: Gated) -> None:
    """So that a key can be changed for a new one without losing what was painted."""
    old = doors.make_keys(gated.data, {"movers": (["generate"], None)})["movers"]
    new = doors.make_keys(gated.data, {"movers": (["generate"], None)})["movers"]
    with gated.ask(old) as before, gated.ask(new) as after:
        job = before.post("/v1/jobs", json=SMALL).json()
        assert after.get(job["links"]["self"]).status_code == 200


def test_a_token_of_the_same_name_is_another_client(gated: Gated) -> None:
    """user0 of the keys, and whoever calls himself user0 or key:user0 elsewhere."""
    with gated.ask(gated.keys["user0"]) as client:
        job = client.post("/v1/jobs", json=SMALL).json()
    for subject in ("user0", "key:user0"):
        with gated.ask(doors.token(sub=subject)) as client:
            assert client.get(job["links"]["self"]).status_code == 404
