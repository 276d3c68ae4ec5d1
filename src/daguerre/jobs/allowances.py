"""Owns allowances: how much each client may ask for in a minute, weighed by what it costs to paint.

A sliding window (``limits``): what was used in the minute before counts less as this one passes.
"""

import math
import time
from typing import NamedTuple

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage

from daguerre.errors import FieldError, InvalidRecipe, RateLimited
from daguerre.recipe import Recipe

#: Seconds of the window.
WINDOW = 60


class Left(NamedTuple):
    """What a client may still ask for: of so much in a window of seconds, so much, and seconds until there is more."""

    quota: int
    window: int
    remaining: int
    seconds: int


def cost(recipe: Recipe) -> int:
    """Megapixel-steps, rounded up: what painting takes grows with pixels, steps and pictures."""
    return math.ceil(recipe.width * recipe.height * recipe.steps * recipe.count / 1e6)


class Allowances:
    """One allowance for each client; 0 stands for no limit. Used on the event loop only."""

    def __init__(self, quota: int) -> None:
        self._quota = quota
        self._item = RateLimitItemPerMinute(max(1, quota))
        self._storage = MemoryStorage()

    async def take(self, client: str, recipe: Recipe) -> None:
        """Uses up what the recipe costs.

        Raises:
            RateLimited: there is not that much left; ``retry_after`` says when there will be.
            InvalidRecipe: there never will be.
        """
        amount = cost(recipe)
        if not self._quota:
            return
        if amount > self._quota:
            message = f"costs {amount} megapixel-steps; one client may ask for {self._quota} in a minute"
            raise InvalidRecipe([FieldError("steps", message)])
        key = self._item.key_for(client)
        if not await self._storage.acquire_sliding_window_entry(key, self._quota, WINDOW, amount):
            wait = await self._wait(client, amount)
            message = f"costs {amount} megapixel-steps, of {self._quota} in a minute too few are left"
            raise RateLimited(message, retry_after=wait)

    async def left(self, client: str) -> Left | None:
        """What a client may still ask for; nothing where there is no limit."""
        if not self._quota:
            return None
        before, before_left, now, _ = await self._counts(client)
        remaining = max(0, self._quota - math.floor(before * before_left / WINDOW + now))
        seconds = math.ceil(await self._wait(client, min(self._quota, remaining + 1)))
        return Left(self._quota, WINDOW, remaining, seconds)

    async def _wait(self, client: str, amount: int) -> float:
        """Seconds until so much is left, if nothing is used meanwhile."""
        before, before_left, now, _ = await self._counts(client)
        room = self._quota - amount
        if before * before_left / WINDOW + now < room + 1:
            return 0.0
        if now <= room:  # what was used before this window is the obstacle, and fades with it
            return before_left - (room + 1 - now) * WINDOW / before
        # In the next window what was used in this one fades.
        rest = WINDOW - time.time() % WINDOW
        return rest + max(0.0, WINDOW - (room + 1) * WINDOW / now)

    async def _counts(self, client: str) -> tuple[int, float, int, float]:
        """Used in the window before, seconds for which that still counts, used in this one."""
        return await self._storage.get_sliding_window(self._item.key_for(client), WINDOW)
