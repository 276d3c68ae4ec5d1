"""The server that most live tests share."""

from collections.abc import Iterator

import httpx
import pytest

from server import Live, serving


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server that is ready; ending it cleanly at the end is part of the test."""
    with serving(tmp_path_factory.mktemp("outputs"), receive_timeout="3", body_limit=str(4 * 1024 * 1024)) as server:
        server.wait_ready()
        yield server
        assert server.stop() == 0


@pytest.fixture
def client(live: Live) -> Iterator[httpx.Client]:
    """A client of the shared server."""
    with live.ask() as client:
        yield client
