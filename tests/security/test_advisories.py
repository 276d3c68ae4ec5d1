"""What broke systems of this kind, tried on a server that asks nobody for credentials. README.md has the table."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trials
import trials_input
from declared import DOCUMENT

from daguerre.http.routes import ROUTES
from server import Live, serving

pytestmark = pytest.mark.timeout(300)  # a busy machine takes its time to load a model

CONNECTIONS = 60
LIMIT = 1024 * 1024


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """It has files that must not be served among its pictures; that it lives and ends cleanly is part of each trial."""
    outputs = tmp_path_factory.mktemp("outputs")
    trials.plant(outputs)
    limits = {"body_limit": str(LIMIT), "receive_timeout": "2", "connection_limit": str(CONNECTIONS)}
    with serving(outputs, **limits) as live:
        live.wait_for(lambda health: health["status"] == "ok", 240)
        yield live
        live.wait_ready()
        assert live.stop() == 0
        assert not [line for line in live.log if "Traceback" in line or '"level": "error"' in line], "".join(live.log)[
            -9000:
        ]


@pytest.fixture(scope="module")
def job(live: Live) -> dict[str, Any]:
    """A finished job of one picture."""
    with live.ask() as client:
        answer = client.post("/generate", json=trials.SMALL, headers={"accept": "application/json"})
        found: dict[str, Any] = answer.json()
        return found


def _cpu(live: Live) -> trials.Cpu:
    return lambda: trials.cpu_of(live.process.pid)


def test_no_name_is_a_path_and_no_configuration_is_served(live: Live) -> None:
    """Each spelling on each route of files; links, folders and other files among the pictures are not there."""
    assert trials.traversals(live.port) == []


def test_pictures_are_nothing_but_pictures(live: Live, job: dict[str, Any]) -> None:
    """Each answer that is one: never sniffed, in a sandbox, with a name."""
    image = job["images"][0]
    for path in (image["url"], image["thumbnail_url"], f"/v1/jobs/{job['id']}/result", f"/image/{job['id']}"):
        assert trials.unprotected(live.address, path) == [], path


def test_ranges_cost_nothing(live: Live, job: dict[str, Any]) -> None:
    """On the picture and on a file of the page."""
    for path in (job["images"][0]["url"], job["images"][0]["thumbnail_url"], "/docs/page.js", "/docs"):
        assert trials.ranges(live.port, path, _cpu(live)) == [], path


def test_the_picture_says_what_it_may(live: Live, job: dict[str, Any]) -> None:
    """No path, address, header or key."""
    key = "dgr_00000000_canary-of-a-key"
    answer = httpx.post(f"{live.address}/generate", json=trials.SMALL, headers={"authorization": f"Bearer {key}"})
    assert trials.told(answer.content, [key, "canary-of-a-key", str(live.outputs), "127.0.0.1", "localhost"]) == []


def test_pages_of_other_sites_change_nothing(live: Live) -> None:
    """Without credentials the browser's network is the only guard, so Origin and content type are ours."""
    assert trials.crossings(live.address) == []


def test_names_that_are_not_ours(live: Live) -> None:
    """Whoever could rebind one could read what is here."""
    assert trials.foreign_hosts(live.port) == []


def test_bodies_that_are_no_json(live: Live) -> None:
    """And JSON that can be read in two ways, or hardly at all."""
    assert trials_input.bodies(live.address, _cpu(live)) == []


def test_numbers_out_of_bounds(live: Live) -> None:
    """Not finite, too large, of another type."""
    assert trials_input.numbers(live.address) == []


#: Pictures in base64, which the body limit bounds, and what is a name of ours or nothing.
BARE = frozenset({"image", "init_image", "mask", "mask_image", "metadata"})


def test_every_number_list_and_text_has_its_bounds() -> None:
    """In the document, which the fuzzers hold the server to."""
    schemas = DOCUMENT["components"]["schemas"]
    assert trials_input.unbounded(schemas["Draft"], "Draft", BARE) == []
    for name in ("LoraWish", "ReferenceWish"):
        assert trials_input.unbounded(schemas[name], name, BARE) == []


def test_addresses_are_no_pictures(live: Live) -> None:
    """Nothing that a request names is fetched, on any route that takes pictures."""
    assert trials_input.fetched(live.address) == []


def test_no_field_says_where_to_write(live: Live, tmp_path: Path) -> None:
    """By none of the names that others have for it."""
    assert trials_input.written(live.address, tmp_path) == []


def test_pickles_are_not_read(live: Live, tmp_path: Path) -> None:
    """As a body, a picture, a file of a form."""
    assert trials_input.unpickled(live.address, tmp_path / "canary") == []


def test_forms_that_take_long(live: Live) -> None:
    """Each part is looked at once."""
    assert trials_input.forms(live.address, _cpu(live)) == []


def test_bodies_over_the_limit(live: Live) -> None:
    """Announced or not."""
    assert trials_input.oversized(live.address, 4 * LIMIT) == []


def test_three_formats_and_no_others(live: Live) -> None:
    """Of the forty that Pillow would read."""
    assert len(trials_input.strange_files()) >= 20
    assert trials_input.strange_formats(live.address) == []


def test_pictures_of_no_pixels_and_of_very_many(live: Live) -> None:
    """Painted from or refused."""
    assert trials_input.odd_shapes(live.address) == []


def test_prompts_that_no_header_holds(live: Live) -> None:
    """Painted, and no header forged."""
    assert trials.broken_answers(live.address) == []


def test_nobody_makes_series(live: Live) -> None:
    """Paths, methods, models and keys that nobody has heard of are all the same one."""
    assert trials.new_series(live.address) == []


def test_sockets_do_not_unpack(live: Live) -> None:
    """No compressor, and a bound on what one frame may hold."""
    assert trials.deflated(live.address) == []
    assert trials.large_frames(live.address, 2 * LIMIT) == []


def test_half_a_request_is_ended(live: Live) -> None:
    """After the deadline, whatever is missing."""
    assert trials.half_open(live.port, 4.0) == []


def test_connections_are_bounded(live: Live) -> None:
    """What is beyond is not served."""
    assert trials.crowd(live.port, CONNECTIONS) == []


def test_keys_without_any_key_let_nobody_in(tmp_path: Path) -> None:
    """Authentication that is on and has nothing to check with is not off (LitServe's key that was read too early)."""
    with serving(tmp_path / "outputs", auth="keys") as live, live.ask() as client:
        for credential in ({}, {"authorization": "Bearer"}, {"authorization": "Bearer None"}, {"x-api-key": ""}):
            assert client.get("/v1/jobs", headers=credential).status_code == 401
            assert client.post("/generate", json=trials.SMALL, headers=credential).status_code == 401
        assert live.stop() == 0


def test_models_are_not_pulled_unless_it_is_allowed(live: Live) -> None:
    """Whoever may paint, or anybody where nobody has to say who he is, brings no files onto this machine."""
    names = {getattr(route, "path", "") for route in ROUTES}
    assert not [name for name in names if any(word in name for word in ("upload", "install", "register", "update"))]
    with live.ask() as client:
        absent = [model["id"] for model in client.get("/v1/models").json()["data"] if model["state"] == "absent"]
        for name in absent:
            answer = client.post("/v1/models/load", json={"model_id": name})
            assert (answer.status_code, answer.json()["code"]) == (404, "model_not_pulled")
        for name in ("https://huggingface.co/evil/model", "evil/model", "file:///tmp/model.ckpt"):
            assert client.post("/v1/models/load", json={"model_id": name}).status_code == 404
    assert absent
