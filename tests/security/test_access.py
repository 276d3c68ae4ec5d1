"""The gate from outside: every route and socket, every kind of bad credentials, every spelling."""

import logging
import time

import doors
import httpx
import probes
import pytest
from doors import Gated
from starlette.routing import Route, WebSocketRoute
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from daguerre.http.access import Access, guarded
from daguerre.http.routes import ROUTES
from daguerre.http.scopes import SCOPES, needed

log = logging.getLogger(__name__)

PARAMS = {"id": "00000000-0000-7000-8000-000000000000", "filename": "a.png"}
KINDS = (
    "none",
    "empty",
    "malformed",
    "malformed basic",
    "another scheme",
    "not ASCII",
    "huge",
    "unknown key",
    "forged key",
    "the id alone",
    "expired key",
    "revoked key",
    "revoked key as a password",
    "key as a user name",
    "under-scoped key",
    "two that differ",
    "cookie",
    "unknown Hub token",
    "Hub account on no list",
    "JWT without algorithm",
    "JWT without signature",
    "JWT of another secret",
    "JWT of another algorithm",
    "JWT of a foreign issuer",
    "JWT for another audience",
    "JWT that has expired",
    "JWT that is not valid yet",
    "JWT for ever",
    "JWT of no issuer",
    "JWT of no audience",
    "JWT of nobody",
    "JWT without scopes",
    "JWT with a key of its own",
)


def test_every_route_says_what_it_needs() -> None:
    """One that is in no table lets in nobody, so it would be of no use; one that is gone needs no entry."""
    paths = {route.path for route in ROUTES if isinstance(route, Route | WebSocketRoute)}
    assert {path for path in paths if needed(path) is None} == set()
    assert set(SCOPES) - paths == set()


def test_every_route_but_the_open_ones_is_behind_the_check() -> None:
    """The layer stands around the route itself, whether it is HTTP or a WebSocket."""
    for route in guarded(ROUTES):
        assert isinstance(route, Route | WebSocketRoute)
        assert isinstance(route.app, Access) == (route.path not in probes.OPEN), route.path


def test_the_kinds_are_all_tried(gated: Gated) -> None:
    """The list that the walk goes through is that of the probes; what all of it comes to is told."""
    assert tuple(probes.bad_credentials(gated.keys)) == KINDS
    closed = [route for route in ROUTES if isinstance(route, Route | WebSocketRoute) and route.path not in probes.OPEN]
    places = sum(len(getattr(route, "methods", None) or ("WS",)) for route in closed)
    tries, tricks = places * len(KINDS), len(probes.tricky())
    log.info("%d routes and sockets x %d bad credentials = %d tries, %d tricks", places, len(KINDS), tries, tricks)
    assert tries > 3000


@pytest.mark.parametrize("kind", KINDS)
def test_bad_credentials_open_nothing(gated: Gated, kind: str) -> None:
    """All routes and sockets: 401 or 403, and nothing else."""
    headers = probes.bad_credentials(gated.keys)[kind]
    assert probes.walk(gated.live.address, ROUTES, PARAMS, headers) == []


def test_keys_for_painting_change_no_models(gated: Gated) -> None:
    """403 for each route of another scope, with the scope that it needs."""
    with gated.ask(gated.keys["painter"]) as client:
        for kind in ("models", "loras"):
            for change in ("load", "unload"):
                answer = client.post(f"/v1/{kind}/{change}", json={"model_id": "demo-xl"})
                assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
                assert 'scope="models"' in answer.headers["www-authenticate"]
    with gated.ask(gated.keys["keeper"]) as client:
        assert client.post("/v1/models/load", json={"model_id": "demo-xl"}).status_code == 200
        assert client.get("/v1/models").status_code == 200
        assert client.post("/generate", json={"prompt": "x"}).status_code == 403


@pytest.mark.parametrize("how", ["bearer", "lower case", "x-api-key", "basic", "both the same"])
def test_good_keys_open(gated: Gated, how: str) -> None:
    """In each of the places where a key may stand."""
    key = gated.keys["painter"]
    headers = {
        "bearer": doors.bearer(key),
        "lower case": {"authorization": f"bearer  {key}"},
        "x-api-key": {"x-api-key": key},
        "basic": doors.basic(key),
        "both the same": doors.bearer(key) | {"x-api-key": key},
    }[how]
    assert httpx.get(f"{gated.live.address}/v1/jobs", headers=headers).status_code == 200


@pytest.mark.parametrize("credential", [doors.HUB_USER, doors.HUB_MEMBER])
def test_hub_tokens_of_the_lists_open(gated: Gated, credential: str) -> None:
    """A user who is named, and a member of an organisation that is; for painting, not for more."""
    with gated.ask(credential) as client:
        assert client.get("/v1/jobs").status_code == 200
        assert client.post("/v1/models/load", json={"model_id": "demo-xl"}).status_code == 403


def test_jwts_open_what_their_scope_says(gated: Gated) -> None:
    """Several scopes in one claim; what means nothing here is left out."""
    with gated.ask(doors.token(scope="openid models")) as client:
        assert client.post("/v1/models/load", json={"model_id": "demo-xl"}).status_code == 200
        assert client.get("/v1/jobs").status_code == 403


def test_a_key_is_refused_as_soon_as_it_is_revoked(gated: Gated) -> None:
    """By another process, while the server runs; no cache lets it in once more."""
    key = doors.make_keys(gated.data, {"brief": (["generate"], None)})["brief"]
    with gated.ask(key) as client:
        assert client.get("/v1/jobs").status_code == 200
        doors.revoke(gated.data, "brief")
        assert client.get("/v1/jobs").status_code == 401


def test_a_socket_that_is_open_takes_nothing_from_a_key_that_was_revoked(gated: Gated) -> None:
    """Nor from a token that has run out meanwhile: the recipe begins no job."""
    key = doors.make_keys(gated.data, {"leaving": (["generate"], None)})["leaving"]
    url = gated.live.address.replace("http", "ws", 1) + "/v1/stream"
    with connect(url, additional_headers=doors.bearer(key)) as socket:
        doors.revoke(gated.data, "leaving")
        socket.send('{"prompt": "x", "width": 64, "height": 64, "steps": 1}')
        with pytest.raises(ConnectionClosed):
            socket.recv(timeout=10)
    assert socket.close_code == 1008


def test_the_last_use_is_kept(gated: Gated) -> None:
    """Once a minute at most; the command lists it."""
    from daguerre.store.db import Database
    from daguerre.store.keys import KeyRows

    before = time.time()
    key = doors.make_keys(gated.data, {"seldom": (["generate"], None)})["seldom"]
    with gated.ask(key) as client:
        client.get("/v1/jobs")
        client.get("/v1/jobs/none")  # looked for by the thread that makes the note, after it
    database = Database(gated.data / "daguerre.db", is_guest=True)
    row = next(row for row in KeyRows(database).all() if row.name == "seldom")
    database.close()
    assert row.last_used_at is not None
    assert before <= row.last_used_at <= time.time()


def test_spellings_methods_and_disguises_lead_nowhere(gated: Gated) -> None:
    """What is checked is the route that serves, so no spelling comes between the two."""
    assert probes.tricks(gated.live.port) == []


def test_an_ambiguous_end_ends_the_connection(gated: Gated) -> None:
    """What stands behind it is not read as another request."""
    assert probes.smuggled(gated.live.port, gated.keys["painter"]) == []


def test_a_handshake_that_cannot_be_read_is_ended(gated: Gated) -> None:
    """400 and the end, not a connection that stays open for ever."""
    lines = ["GET /v1/stream HTTP/1.1", "host: localhost", "connection: upgrade", "upgrade: websocket"]
    lines += [
        "sec-websocket-version: 13",
        "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==",
        f"authorization: {'x' * 20_000}",
    ]
    assert probes.raw(gated.live.port, "\r\n".join([*lines, "", ""]).encode()).startswith(b"HTTP/1.1 400")


def test_a_browser_opens_sockets_by_a_subprotocol(gated: Gated) -> None:
    """It offers the key beside our own name; only the name comes back. An address is no place for a key."""
    key = gated.keys["painter"]
    url = gated.live.address.replace("http", "ws", 1) + "/v1/stream"
    with connect(url, subprotocols=["daguerre", f"daguerre.{key}"]) as socket:  # type: ignore[list-item]
        assert socket.subprotocol == "daguerre"
    assert probes.shake(gated.live.address, "/v1/stream", {}, ["daguerre"]) == 401
    assert probes.shake(gated.live.address, f"/v1/stream?key={key}", {}) == 401
    assert httpx.get(f"{gated.live.address}/v1/jobs?key={key}").status_code == 401


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost", "http://127.0.0.1", "x"])
def test_pages_of_other_sites_are_refused(gated: Gated, origin: str) -> None:
    """Whatever they send, and over sockets; with good credentials too, which a browser may have kept."""
    headers = doors.bearer(gated.keys["painter"]) | {"origin": origin}
    for kind in (
        "application/json",
        "text/plain",
        "multipart/form-data; boundary=x",
        "application/x-www-form-urlencoded",
    ):
        for path in ("/v1/jobs", "/v1/images/edits", "/sdapi/v1/interrupt"):
            answer = httpx.post(gated.live.address + path, content=b"{}", headers=headers | {"content-type": kind})
            assert (answer.status_code, answer.json()["code"]) == (403, "origin_not_allowed")
            assert "access-control-allow-origin" not in answer.headers
    assert probes.shake(gated.live.address, "/v1/stream", headers) == 403


def test_pages_of_friends_are_not(gated: Gated) -> None:
    """CORS for the origins that the settings name, and for our own."""
    friend = {"origin": "https://friend.example"}
    asked = friend | {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    answer = httpx.options(f"{gated.live.address}/v1/jobs", headers=asked)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://friend.example"
    assert "access-control-allow-credentials" not in answer.headers
    foe = httpx.options(f"{gated.live.address}/v1/jobs", headers=asked | {"origin": "https://evil.example"})
    assert (foe.status_code, foe.headers.get("access-control-allow-origin")) == (400, None)
    good = doors.bearer(gated.keys["painter"]) | friend
    answer = httpx.get(f"{gated.live.address}/v1/jobs", headers=good)
    assert answer.headers["access-control-allow-origin"] == "https://friend.example"
    assert "x-job-id" in answer.headers["access-control-expose-headers"].lower()
    assert probes.shake(gated.live.address, "/v1/stream", good) == 101
    own = doors.bearer(gated.keys["painter"]) | {"origin": gated.live.address}
    assert httpx.post(f"{gated.live.address}/sdapi/v1/interrupt", headers=own).status_code == 200


def test_each_dialect_refuses_in_its_own_words(gated: Gated) -> None:
    """OpenAI's envelope, AUTOMATIC1111's detail and its Basic challenge, a problem everywhere else."""
    ours = httpx.post(f"{gated.live.address}/v1/jobs", json={})
    assert (ours.headers["content-type"], ours.json()["code"]) == ("application/problem+json", "unauthenticated")
    assert ours.headers["www-authenticate"].startswith("Bearer ")
    openai = httpx.post(f"{gated.live.address}/v1/images/generations", json={})
    assert openai.json()["error"]["code"] == "unauthenticated"
    assert openai.headers["x-should-retry"] == "false"
    theirs = httpx.get(f"{gated.live.address}/sdapi/v1/options")
    assert theirs.json()["detail"]
    assert theirs.headers["www-authenticate"].startswith("Basic ")
    for answer in (ours, openai, theirs):
        assert answer.status_code == 401
        assert answer.headers["x-request-id"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"


def test_answers_are_for_one_client_alone(gated: Gated) -> None:
    """A cache between us keeps none of them for others; X-API-Key means nothing to it."""
    answer = httpx.get(f"{gated.live.address}/v1/models", headers={"x-api-key": gated.keys["painter"]})
    assert answer.headers["cache-control"] in ("private", "no-store")


def test_going_first_is_for_those_who_may(gated: Gated) -> None:
    """403 for others, and the job of one who may says so by its place."""
    recipe, header = {"prompt": "x", "width": 64, "height": 64, "steps": 1}, {"daguerre-priority": "high"}
    with gated.ask(gated.keys["painter"]) as client:
        refused = client.post("/v1/jobs", json=recipe, headers=header)
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
        assert client.post("/generate", json=recipe, headers=header).status_code == 403
    with gated.ask(gated.keys["hasty"]) as client:
        assert client.post("/v1/jobs", json=recipe, headers=header).status_code == 202


def test_what_was_refused_is_told_in_the_log(gated: Gated) -> None:
    """With the reason, the address and the route; and never often."""
    with gated.ask() as client:
        for _ in range(40):
            client.get("/v1/jobs", headers=doors.bearer("dgr_x"))
    lines = [line for line in gated.live.log if "refused" in line and "malformed" in line and "/v1/jobs" in line]
    assert lines
    assert all("127.0.0.1" in line for line in lines)
    assert sum("refused" in line for line in gated.live.log) < 200


def test_who_changed_models_is_told_in_the_log(gated: Gated) -> None:
    """Who, from where, what, and how it was answered."""
    with gated.ask(gated.keys["keeper"]) as client:
        client.post("/v1/models/load", json={"model_id": "demo-xl"})
    assert any("key:keeper at 127.0.0.1: POST /v1/models/load answered 200" in line for line in gated.live.log)
