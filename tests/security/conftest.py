"""The server behind a gate that the tests of the gate share."""

import time
from collections.abc import Iterator

import doors
import pytest
from doors import USERS, Gated

from server import Live, serving


def _wait_ready(live: Live) -> None:
    """By the route that is open, since all the others are not."""
    with live.ask() as client:
        for _ in range(600):
            if client.get("/readyz").status_code == 200:
                return
            time.sleep(0.1)
    raise AssertionError(live.log)


@pytest.fixture(scope="session")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gated]:
    """It is ready; ending it cleanly at the end is part of the test."""
    outputs = tmp_path_factory.mktemp("gated")
    data = outputs.with_name(f"{outputs.name}-data")
    wanted: dict[str, doors.Wanted] = {
        "painter": (["generate"], None),
        "keeper": (["models"], 30),
        "hasty": (["generate", "priority"], 30),
        "nobody": (["priority"], None),
        "expired": (["generate", "models", "admin"], -1),
        "revoked": (["generate", "models", "admin"], None),
    }
    users: dict[str, doors.Wanted] = {f"user{number}": (["generate"], None) for number in range(USERS)}
    keys = doors.make_keys(data, wanted | users)
    doors.revoke(data, "revoked")
    with doors.web_server() as hub:
        settings = {
            "auth": "keys,hub,jwt",
            "hub_whoami": hub.address,
            "hub_users": "ada",
            "hub_organisations": "studio",
            "jwt_secret": doors.SECRET,
            "jwt_issuer": doors.ISSUER,
            "jwt_audience": doors.AUDIENCE,
            "queue_limit": "1000",
            "cors_origins": "https://friend.example",
        }
        with serving(outputs, **settings) as live:
            _wait_ready(live)
            yield Gated(live, data, keys, hub)
            assert live.stop() == 0
