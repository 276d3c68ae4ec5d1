"""Each probe finds what it is there to find: against naive servers, and against Daguerre with its gate left open."""

import asyncio
import time
from pathlib import Path
from typing import Any

import probes
import pytest

import naive
from daguerre.http.routes import ROUTES
from server import serving

PARAMS = {"id": "a", "filename": "a.png"}
NAMES = ("painter", "expired", "revoked", "nobody", "keeper")
KEYS = {name: f"dgr_0000000{number}_{'k' * 43}" for number, name in enumerate(NAMES)}
#: The kinds that are refused by whoever has a list of keys at all.
REFUSED_BY_ANYBODY = {
    "none",
    "empty",
    "malformed",
    "malformed basic",
    "another scheme",
    "huge",
    "unknown key",
    "forged key",
    "the id alone",
    "revoked key as a password",
    "key as a user name",
    "cookie",
    "unknown Hub token",
}


def test_the_walk_finds_what_a_prefix_leaves_open() -> None:
    """No credentials at all, and sockets, the older routes and AUTOMATIC1111's are all open."""
    with naive.served(naive.by_prefix()) as port:
        passed = probes.walk(f"http://127.0.0.1:{port}", ROUTES, PARAMS, {})
    assert "WS /v1/stream: 101" in passed
    assert "POST /generate: 200" in passed
    assert "GET /sdapi/v1/options: 200" in passed
    assert "POST /api/v1/models/unload: 200" in passed
    assert "GET /v1/jobs: 200" not in passed


@pytest.mark.parametrize("kind", sorted(probes.bad_credentials(KEYS)))
def test_the_walk_finds_credentials_that_are_taken_on_trust(kind: str) -> None:
    """Expired, revoked, under-scoped, unsigned, foreign: each opens a server that does not look closely.

    What is not ASCII breaks it.
    """
    headers = probes.bad_credentials(KEYS)[kind]
    route = [route for route in ROUTES if getattr(route, "path", "") in ("/v1/jobs", "/v1/stream")]
    with naive.served(naive.credulous(KEYS)) as port:
        passed = probes.walk(f"http://127.0.0.1:{port}", route, PARAMS, headers)
    assert bool(passed) == (kind not in REFUSED_BY_ANYBODY)


def test_tricks_find_what_is_decoded_after_the_check() -> None:
    """Merged slashes and decoded letters lead around a check of the raw path."""
    with naive.served(naive.by_raw_path()) as port:
        passed = probes.tricks(port)
    assert "GET //v1/jobs" in passed
    assert "GET /%76%31/jobs" in passed
    assert "GET /v1/jobs" not in passed


def test_tricks_find_an_address_made_of_a_header() -> None:
    """The Host header says which path is checked, but not which one is served."""
    with naive.served(naive.by_prefix()) as port:
        passed = probes.tricks(port)
    assert any(name.startswith("host localhost/ping") for name in passed)


def test_smuggling_finds_a_server_that_reads_on() -> None:
    """uvicorn as it comes answers what stands behind an ambiguous end."""
    with naive.served(naive.credulous(KEYS)) as port:
        passed = probes.smuggled(port, KEYS["painter"])
    assert "length and chunked" in passed


def test_without_the_gate_every_way_leads_to_everybodys_jobs(tmp_path: Path) -> None:
    """Daguerre itself where nobody has to authenticate: whoever knows an id gets what it stands for."""
    keys = {f"user{number}": "x" for number in range(5)}
    small = {"prompt": "a lake", "width": 64, "height": 64, "steps": 1, "guidance_scale": 1}
    jobs: list[dict[str, Any]] = []
    with serving(tmp_path / "outputs") as live, live.ask() as client:
        for _ in keys:
            job = client.post("/v1/jobs", json=small).json()
            while job["status"] in ("queued", "running"):
                time.sleep(0.05)
                job = client.get(job["links"]["self"]).json()
            jobs.append(job)
        passed = asyncio.run(probes.crosswise(live.address, keys, jobs))
        assert len(passed) == 2 * 5 * 4
        assert {passage.split()[1] for passage in passed} == {"GET", "DELETE", "POST"}
        reading = [route for route in ROUTES if "GET" in getattr(route, "methods", ["GET"])]
        named = {"id": jobs[0]["id"], "filename": jobs[0]["images"][0]["filename"]}
        assert "WS /v1/stream: 101" in probes.walk(live.address, reading, named, {})
        assert probes.tricks(live.port)
