"""Tokens of the Hub, against a Hub of the test's own: asked about seldom, and known ones survive its outages."""

import asyncio
from collections.abc import Iterator

import doors
import pytest

from daguerre.auth import hub as hub_module
from daguerre.auth import remote
from daguerre.auth.hub import HubTokens
from daguerre.errors import AuthUnavailable, Forbidden, Unauthenticated
from daguerre.principal import Principal


@pytest.fixture
def hub() -> Iterator[doors.WebServer]:
    """A Hub."""
    with doors.web_server() as server:
        yield server


def _tokens(hub: doors.WebServer) -> HubTokens:
    return HubTokens(hub.address, ["ADA"], ["studio"])


def test_a_token_is_asked_for_once(hub: doors.WebServer) -> None:
    """By all who come at the same time together, and not again while the answer is fresh; bad ones neither."""
    hub.seconds = 0.1

    async def scene() -> None:
        tokens = _tokens(hub)
        found = await asyncio.gather(*(tokens.identify(doors.HUB_USER) for _ in range(100)))
        assert set(found) == {Principal("hub:Ada", frozenset(["generate"]))}
        await tokens.identify(doors.HUB_USER)
        assert hub.asked == [doors.HUB_USER]
        for _ in range(3):
            with pytest.raises(Unauthenticated):
                await tokens.identify("hf_NobodyKnowsThis1")
        assert hub.asked == [doors.HUB_USER, "hf_NobodyKnowsThis1"]
        await tokens.close()

    asyncio.run(scene())


def test_who_leaves_does_not_spoil_the_answer_for_others(hub: doors.WebServer) -> None:
    """The one question under way is nobody's own."""
    hub.seconds = 0.2

    async def scene() -> None:
        tokens = _tokens(hub)
        first = asyncio.ensure_future(tokens.identify(doors.HUB_USER))
        await asyncio.sleep(0.05)
        second = asyncio.ensure_future(tokens.identify(doors.HUB_USER))
        await asyncio.sleep(0.01)
        first.cancel()
        assert (await second).client == "hub:Ada"
        assert len(hub.asked) == 1
        await tokens.close()

    asyncio.run(scene())


def test_only_those_on_the_lists_are_let_in(hub: doors.WebServer) -> None:
    """Any account of the Hub has a good token."""

    async def scene() -> None:
        tokens = _tokens(hub)
        assert (await tokens.identify(doors.HUB_MEMBER)).client == "hub:bea"
        with pytest.raises(Forbidden):
            await tokens.identify(doors.HUB_OTHER)
        await tokens.close()

    asyncio.run(scene())


@pytest.mark.parametrize(
    "answer",
    [
        {},
        [],
        "ada",
        {"name": "ada"},
        {"type": "org", "name": "ada"},
        {"type": "user", "name": ["ada"]},
        {"type": "user", "name": ""},
        {"type": "user", "name": "a\nb", "orgs": [{"name": "studio"}]},
        {"type": "user", "name": "x" * 500, "orgs": [{"name": "studio"}]},
    ],
)
def test_answers_that_name_nobody_let_nobody_in(hub: doors.WebServer, answer: object) -> None:
    """The Hub's answer is not trusted to be what it should be."""
    hub.document = answer

    async def scene() -> None:
        tokens = _tokens(hub)
        with pytest.raises(Unauthenticated):
            await tokens.identify(doors.HUB_USER)
        await tokens.close()

    asyncio.run(scene())


@pytest.mark.parametrize("orgs", [None, "studio", ["studio"], [{"name": ["studio"]}], [{"id": "studio"}]])
def test_organisations_that_are_none_let_nobody_in(hub: doors.WebServer, orgs: object) -> None:
    """A stranger with a list that cannot be read is a stranger."""
    hub.document = {"type": "user", "name": "stranger", "orgs": orgs}

    async def scene() -> None:
        tokens = _tokens(hub)
        with pytest.raises(Forbidden):
            await tokens.identify(doors.HUB_USER)
        await tokens.close()

    asyncio.run(scene())


@pytest.mark.parametrize("failure", ["gone", "500", "429", "404", "302", "slow", "broken", "long"])
def test_an_outage_is_survived_by_those_who_are_known(
    hub: doors.WebServer, failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who was let in before still is; who is unknown is told to come again, which is no 401."""
    monkeypatch.setattr(hub_module, "FRESH", 0.0)
    monkeypatch.setattr(remote, "TIMEOUT", 0.3)

    async def scene() -> None:
        tokens = _tokens(hub)
        await tokens.identify(doors.HUB_USER)
        match failure:
            case "gone":
                hub.close()
            case "slow":
                hub.seconds = 1.0
            case "broken":
                hub.document = ...  # no JSON: the connection breaks off
            case "long":
                hub.document = {"type": "user", "name": "ada", "more": "x" * 300_000}
            case status:
                hub.status = int(status)
        assert (await tokens.identify(doors.HUB_USER)).client == "hub:Ada"
        with pytest.raises(AuthUnavailable) as caught:
            await tokens.identify("hf_NobodyKnowsThis1")
        assert caught.value.retry_after >= 1
        monkeypatch.setattr(hub_module, "GRACE", 0.0)
        with pytest.raises(AuthUnavailable):
            await tokens.identify(doors.HUB_USER)
        await tokens.close()

    asyncio.run(scene())


def test_a_hub_that_fails_is_left_alone_for_a_while(hub: doors.WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """After three failures nothing is asked, until the pause is over."""
    hub.status = 500

    async def scene() -> None:
        tokens = _tokens(hub)
        for _ in range(20):
            with pytest.raises(AuthUnavailable):
                await tokens.identify(doors.HUB_USER)
        assert len(hub.asked) == remote.FAILURES
        hub.status = 0
        tokens._remote._closed_until = 0.0  # the pause is over
        assert (await tokens.identify(doors.HUB_USER)).client == "hub:Ada"
        await tokens.close()

    asyncio.run(scene())


def test_guesses_do_not_flood_the_hub_or_the_memory(hub: doors.WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many questions at once and no more; guesses are forgotten before those who are known."""
    monkeypatch.setattr(hub_module, "MOST", 8)
    hub.seconds = 0.2

    async def scene() -> None:
        tokens = _tokens(hub)
        await tokens.identify(doors.HUB_USER)
        tries = (tokens.identify(f"hf_{number:020}") for number in range(60))
        ends = await asyncio.gather(*tries, return_exceptions=True)
        assert sum(isinstance(end, Unauthenticated) for end in ends) == hub_module.MOST_ASKED
        assert sum(isinstance(end, AuthUnavailable) for end in ends) == 60 - hub_module.MOST_ASKED
        assert len(tokens._known) == 8
        asked = len(hub.asked)
        await tokens.identify(doors.HUB_USER)
        assert len(hub.asked) == asked
        await tokens.close()

    asyncio.run(scene())


def test_a_token_is_kept_as_its_digest_only(hub: doors.WebServer) -> None:
    """And goes to the Hub's own address alone: a redirect would carry it elsewhere."""

    async def scene() -> None:
        tokens = _tokens(hub)
        await tokens.identify(doors.HUB_USER)
        assert doors.HUB_USER not in repr(tokens._known)
        assert not tokens._remote._client.follow_redirects
        await tokens.close()

    asyncio.run(scene())


@pytest.mark.parametrize("token", ["hf_", "hf_short", f"hf_{'x' * 300}", "hf_with space1", "hf_wïth_accent"])
def test_what_is_no_token_is_never_sent(hub: doors.WebServer, token: str) -> None:
    """The Hub is not asked."""

    async def scene() -> None:
        tokens = _tokens(hub)
        with pytest.raises(Unauthenticated):
            await tokens.identify(token)
        assert hub.asked == []
        await tokens.close()

    asyncio.run(scene())
