"""What one client may take, live: an allowance by cost, so many jobs, so many at once; and that others have theirs."""

import time
from collections.abc import Iterator
from pathlib import Path

import doors
import httpx
import pytest

from server import Live, serving

SMALL = {"prompt": "a lake", "width": 64, "height": 64, "steps": 1, "guidance_scale": 1}
SLOW = {**SMALL, "width": 256, "height": 256, "steps": 150, "guidance_scale": 5}  # 10 megapixel-steps


@pytest.fixture(scope="module")
def keys_and_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, str], Live]]:
    """A server that lets a client have 3 unfinished jobs, 1 of them at once, and 100 megapixel-steps in a minute."""
    outputs = tmp_path_factory.mktemp("limited")
    users: dict[str, doors.Wanted] = {name: (["generate"], None) for name in ("ada", "bea", "cleo", "dora")}
    keys = doors.make_keys(outputs.with_name(f"{outputs.name}-data"), users)
    with serving(outputs, auth="keys", client_limit="3", client_runs="1", rate_limit="100") as live:
        with live.ask() as client:
            while client.get("/readyz").status_code != 200:
                time.sleep(0.1)
        yield keys, live
        assert live.stop() == 0


def test_an_allowance_by_cost(keys_and_server: tuple[dict[str, str], Live]) -> None:
    """Told in each answer, and in each dialect once it is used up; another client is not concerned."""
    keys, live = keys_and_server
    with live.ask(headers=doors.bearer(keys["ada"])) as client:
        first = client.get("/v1/jobs")
        assert first.headers["ratelimit-policy"] == '"megapixel-steps";q=100;w=60'
        assert first.headers["ratelimit"].startswith('"megapixel-steps";r=100;t=')
        too_much = client.post("/v1/jobs", json={**SLOW, "width": 1024, "height": 1024})
        assert (too_much.status_code, too_much.json()["errors"][0]["field"]) == (422, "steps")
        assert "158 megapixel-steps" in too_much.json()["detail"]
        for _ in range(9):
            job = client.post("/v1/jobs", json=SLOW).json()
            client.delete(job["links"]["self"])
        refused = client.post("/v1/jobs", json={**SLOW, "width": 512})
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
        assert 1 <= int(refused.headers["retry-after"]) <= 120
        assert refused.headers["ratelimit"].startswith('"megapixel-steps";r=10;')
        openai = client.post("/v1/images/generations", json={"prompt": "x", "size": "512x256", "steps": 150})
        assert (openai.status_code, openai.json()["error"]["type"]) == (429, "rate_limit_error")
        assert openai.headers["x-should-retry"] == "true"
        assert int(openai.headers["retry-after"]) >= 1
        theirs = client.post("/sdapi/v1/txt2img", json={**SLOW, "width": 512})
        assert (theirs.status_code, bool(theirs.json()["detail"])) == (429, True)
        assert client.post("/generate", json=SMALL).status_code == 200  # as small as that there is room for
    with live.ask(headers=doors.bearer(keys["bea"])) as client:
        assert client.post("/generate", json=SMALL).status_code == 200


def test_the_same_key_and_body_cost_once(keys_and_server: tuple[dict[str, str], Live]) -> None:
    """Who asks again for what is on its way uses up nothing."""
    keys, live = keys_and_server
    with live.ask(headers=doors.bearer(keys["dora"])) as client:
        for _ in range(5):
            answer = client.post("/v1/jobs", json=SLOW, headers={"idempotency-key": "again"})
            assert answer.status_code == 202
        assert '"megapixel-steps";r=90;' in answer.headers["ratelimit"]
        client.delete(f"/v1/jobs/{answer.json()['id']}")


def test_so_many_jobs_and_so_many_at_once(keys_and_server: tuple[dict[str, str], Live]) -> None:
    """429 for the fourth; of the three one is painted; another client's does not wait for them."""
    keys, live = keys_and_server
    with live.ask(headers=doors.bearer(keys["cleo"])) as client:
        jobs = [client.post("/v1/jobs", json=SLOW).json() for _ in range(3)]
        refused = client.post("/v1/jobs", json=SMALL)
        assert (refused.status_code, refused.json()["code"]) == (429, "client_limit")
        assert int(refused.headers["retry-after"]) >= 1
        statuses: list[str] = []
        for _ in range(100):
            statuses = [client.get(job["links"]["self"]).json()["status"] for job in jobs]
            if "running" in statuses:
                break
            time.sleep(0.02)
        assert statuses == ["running", "queued", "queued"]
        with live.ask(headers=doors.bearer(keys["bea"])) as other:
            assert other.post("/generate", json=SMALL).status_code == 200
        assert [client.get(job["links"]["self"]).json()["status"] for job in jobs[1:]] == ["queued", "queued"]
        for job in jobs:
            assert client.delete(job["links"]["self"]).json() == {"cancelled": True}
        assert client.post("/generate", json=SMALL).status_code == 200


def test_without_authentication_the_address_is_the_client(tmp_path: Path) -> None:
    """As the trusted proxy in front says it; credentials that come along mean nothing."""
    with serving(tmp_path / "outputs", client_limit="1", trusted_proxies="127.0.0.1") as live, live.ask() as client:
        first = client.post("/v1/jobs", json=SLOW, headers={"x-forwarded-for": "203.0.113.1"})
        assert first.status_code == 202
        again = client.post("/v1/jobs", json=SLOW, headers={"x-forwarded-for": "203.0.113.1"})
        assert again.status_code == 429
        other = client.post("/v1/jobs", json=SLOW, headers={"x-forwarded-for": "203.0.113.2", **doors.bearer("x")})
        assert other.status_code == 202
        mine = httpx.get(f"{live.address}/v1/jobs", headers={"x-forwarded-for": "203.0.113.2"}).json()["data"]
        assert [job["id"] for job in mine] == [other.json()["id"]]
        # Whoever knows an id may ask for it, as long as nobody has to say who he is.
        assert client.get(first.json()["links"]["self"]).status_code == 200
