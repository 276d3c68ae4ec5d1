"""Listeners of a job: what is told to many is made once, and a slow one misses steps but never the end."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import msgspec

from daguerre import catalog, recipe
from daguerre.http.stream import from_start
from daguerre.job import Job, Status
from daguerre.jobs.hub import Hub, News

MODEL = catalog.read(Path(__file__).parents[2] / "weights", "demo-xl").model()
JOB = Job("one", recipe.resolve(recipe.parse({"prompt": "a lake"}), MODEL, 0, {}), 0.0, status=Status.RUNNING)


def _at(step: int, **changes: object) -> Job:
    return msgspec.structs.replace(JOB, step=step, steps=100, **changes)


def test_news_are_made_once_for_all() -> None:
    """Two hundred listeners, three steps and an end: four passes of the encoder, and everybody has the same text."""
    made: list[int] = []

    async def listen(hub: Hub) -> list[str]:
        heard = []
        async for news in hub.follow(_at(0)):

            async def make(news: News = news) -> str:
                made.append(news.job.step)
                await asyncio.sleep(0.001)  # as a picture is read
                return f"{news.job.status} {news.job.step}"

            heard.append(await news.once("text", make))
        return heard

    async def play() -> list[list[str]]:
        hub = Hub()
        listeners = [asyncio.ensure_future(listen(hub)) for _ in range(200)]
        for step in (1, 2):
            await asyncio.sleep(0.05)
            hub.publish(_at(step))
        await asyncio.sleep(0.05)
        hub.publish(_at(3, status=Status.SUCCEEDED))
        return await asyncio.gather(*listeners)

    heard = asyncio.run(play())
    assert made == [0, 1, 2, 3]
    assert heard == [["running 0", "running 1", "running 2", "succeeded 3"]] * 200


def test_one_that_leaves_takes_nothing_from_the_others() -> None:
    """The one who asked first is cancelled while it waits; the others are given what was being made."""

    async def play() -> str:
        news, made = News(_at(1)), 0

        async def make() -> str:
            nonlocal made
            made += 1
            await asyncio.sleep(0.02)
            return f"made {made}"

        first = asyncio.ensure_future(news.once("text", make))
        second = asyncio.ensure_future(news.once("text", make))
        await asyncio.sleep(0)
        first.cancel()
        return await second

    assert asyncio.run(play()) == "made 1"


def test_a_slow_listener_misses_steps_but_not_the_end() -> None:
    """Nor the latest preview, whichever step it came with."""

    async def play() -> list[News]:
        hub, heard = Hub(), []
        async for news in hub.follow(_at(0)):
            heard.append(news)
            if len(heard) == 1:  # while this one is being sent, much happens
                for step in range(1, 50):
                    hub.publish(_at(step), b"preview" if step == 7 else None)
            elif len(heard) == 2:
                hub.publish(_at(100, status=Status.SUCCEEDED))
        hub.publish(_at(100, status=Status.SUCCEEDED))  # nobody is left
        return heard

    heard = asyncio.run(play())
    assert [news.job.step for news in heard] == [0, 49, 100]
    assert [news.preview for news in heard] == [None, b"preview", None]


def test_a_start_that_nobody_saw_is_told() -> None:
    """A job that waited and then is steps ahead, or done, has started in between; one followed later has not."""

    async def told(*jobs: Job) -> list[str]:
        async def states() -> AsyncGenerator[News, None]:
            for job in jobs:
                yield News(job)

        return [f"{news.job.status} {news.job.step}" async for news in from_start(states())]

    waiting, ahead, done = _at(0, status=Status.QUEUED), _at(3), _at(9, status=Status.SUCCEEDED)
    assert asyncio.run(told(waiting, waiting, ahead)) == ["queued 0", "queued 0", "running 0", "running 3"]
    assert asyncio.run(told(waiting, done)) == ["queued 0", "running 0", "succeeded 9"]
    assert asyncio.run(told(waiting, _at(0), ahead)) == ["queued 0", "running 0", "running 3"]
    assert asyncio.run(told(ahead, done)) == ["running 3", "succeeded 9"]
    assert asyncio.run(told(waiting, _at(0, status=Status.CANCELLED))) == ["queued 0", "cancelled 0"]
