"""What a client may ask for in a minute."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daguerre import catalog, recipe
from daguerre.errors import InvalidRecipe, RateLimited
from daguerre.jobs.allowances import Allowances, cost
from daguerre.recipe import Recipe
from server import ROOT

MODEL = catalog.read(ROOT / "weights", "demo-xl").model()
WHOLE = recipe.resolve(recipe.parse({"prompt": "a lake"}), MODEL, 0, {})


def _costing(steps: int) -> Recipe:
    return msgspec.structs.replace(WHOLE, width=1000, height=1000, steps=steps, count=1)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the library and we see; a test moves them."""
    now = [60_000_000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    return now


def _play(scene: Callable[[], Awaitable[None]]) -> None:
    async def played() -> None:
        await scene()
        await asyncio.sleep(0)

    asyncio.run(played())


def test_cost_grows_with_pixels_steps_and_pictures() -> None:
    """Rounded up, so that nothing is free."""
    whole: dict[str, Any] = {"width": 1024, "height": 1024, "steps": 30}
    assert cost(msgspec.structs.replace(WHOLE, **whole)) == 32
    assert cost(msgspec.structs.replace(WHOLE, **whole, count=4)) == 126
    assert cost(msgspec.structs.replace(WHOLE, width=64, height=64, steps=1)) == 1


def test_each_client_has_its_own(clock: list[float]) -> None:
    """What one has used up is there for another."""

    async def scene() -> None:
        allowances = Allowances(100)
        await allowances.take("ada", _costing(100))
        with pytest.raises(RateLimited):
            await allowances.take("ada", _costing(1))
        await allowances.take("bea", _costing(60))
        left = await allowances.left("bea")
        assert left is not None
        assert (left.quota, left.window, left.remaining) == (100, 60, 40)

    _play(scene)


def test_what_can_never_be_is_told_so(clock: list[float]) -> None:
    """Waiting would not help, so it is no 429."""

    async def scene() -> None:
        with pytest.raises(InvalidRecipe, match="101 megapixel-steps"):
            await Allowances(100).take("ada", _costing(101))

    _play(scene)


def test_without_a_limit_nothing_is_counted(clock: list[float]) -> None:
    """0 stands for none."""

    async def scene() -> None:
        allowances = Allowances(0)
        await allowances.take("ada", _costing(10_000))
        assert await allowances.left("ada") is None

    _play(scene)


@given(
    uses=st.lists(st.tuples(st.integers(1, 60), st.floats(0, 40)), min_size=1, max_size=12), asked=st.integers(1, 60)
)
def test_who_waits_as_long_as_told_is_let_in(uses: list[tuple[int, float]], asked: int) -> None:
    """``retry_after`` is enough, and not much more than needed: a second before, the answer was still no."""

    async def scene(now: list[float]) -> None:
        allowances = Allowances(60)
        for amount, pause in uses:
            with contextlib.suppress(RateLimited):
                await allowances.take("ada", _costing(amount))
            now[0] += pause
        try:
            await allowances.take("ada", _costing(asked))
        except RateLimited as error:
            now[0] += max(0.0, error.retry_after - 1)
            if error.retry_after > 1:
                with pytest.raises(RateLimited):
                    await allowances.take("ada", _costing(asked))
            now[0] += min(1.0, error.retry_after) + 1e-3
            await allowances.take("ada", _costing(asked))

    with pytest.MonkeyPatch.context() as patch:
        now = [60_000_000.0]
        patch.setattr(time, "time", lambda: now[0])
        _play(lambda: scene(now))
