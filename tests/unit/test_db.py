"""The database: what is told to be durable is, one bad change is undone alone, and old files are brought up to date."""

import asyncio
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from daguerre.errors import StorageFailed
from daguerre.job import Failure, Job, Status, new_id
from daguerre.recipe import Recipe
from daguerre.store.db import MOST, Database
from daguerre.store.jobs import JobRows, Key, Pictures

RECIPE = Recipe(
    mode="txt2img",
    prompt="a lake \N{CRAB}",
    negative_prompt="",
    model="demo-xl",
    style=None,
    width=64,
    height=64,
    steps=2,
    guidance_scale=5.0,
    seed=2**63 - 1,
    count=1,
    scheduler="euler",
    prompt_syntax="compel",
    clip_skip=0,
    strength=None,
    format="png",
    quality=90,
    reproducible=False,
    metadata={"mine": [1, {"a": None}]},
)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """A new one."""
    made = Database(tmp_path / "folder" / "daguerre.db")
    yield made
    made.close()


def _job(**fields: Any) -> Job:
    given: dict[str, Any] = {"id": new_id(), "recipe": RECIPE, "created_at": 1.5, "is_attached": False}
    return Job(**given | fields)


def _tables(connection: sqlite3.Connection) -> set[str]:
    return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def test_a_job_comes_back_as_it_was(database: Database) -> None:
    """Whatever its prompt and metadata hold; with the pictures that it starts from, until it is done."""
    rows, job, key = JobRows(database), _job(), Key("ada", "k", "digest")

    async def play() -> None:
        await rows.add(job, Pictures(b"image", None), key)
        assert await rows.remembered(10.0) == [job]
        assert await rows.pictures(job.id) == Pictures(b"image", None)
        assert await rows.keys() == [(key, job.id)]
        done = msgspec.structs.replace(job, status=Status.FAILED, finished_at=20.0, error=Failure("poison", "…"))
        rows.put(done)
        assert await rows.remembered(20.0) == [done]
        assert await rows.remembered(20.1) == []
        assert await rows.pictures(job.id) is None
        assert await rows.is_known(job.id)
        rows.drop(20.1)
        assert not await rows.is_known(job.id)
        assert await rows.keys() == []

    asyncio.run(play())


def test_jobs_come_back_in_their_order(database: Database) -> None:
    """Ids sort by their age."""
    rows, jobs = JobRows(database), [_job() for _ in range(20)]
    jobs.sort(key=lambda job: job.id)

    async def play() -> list[Job]:
        await asyncio.gather(*(rows.add(job, None, None) for job in reversed(jobs)))
        return await rows.remembered(0.0)

    assert asyncio.run(play()) == jobs


def test_what_is_told_to_be_durable_is(database: Database, tmp_path: Path) -> None:
    """Another process that opens the file at that moment sees it."""
    rows = JobRows(database)

    async def play() -> None:
        for _ in range(5):
            job = _job()
            await rows.add(job, None, None)
            other = sqlite3.connect(tmp_path / "folder" / "daguerre.db")
            assert other.execute("SELECT 1 FROM jobs WHERE id = ?", (job.id,)).fetchone() == (1,)
            other.close()

    asyncio.run(play())


def test_it_syncs_at_every_commit(database: Database) -> None:
    """WAL alone would lose the last commits at a power cut."""

    async def pragma(name: str) -> Any:
        return (await database.write(lambda c: c.execute(f"PRAGMA {name}").fetchone()))[0]

    assert asyncio.run(pragma("journal_mode")) == "wal"
    assert asyncio.run(pragma("synchronous")) == 2
    assert asyncio.run(pragma("foreign_keys")) == 1


def test_changes_that_wait_share_a_commit(database: Database) -> None:
    """Else the disk's syncs would bound how many jobs are accepted."""
    go = threading.Event()
    commits: list[int] = []
    database.post(lambda connection: connection.set_trace_callback(lambda sql: commits.append(sql == "COMMIT")))
    database.post(lambda _: go.wait(5))
    rows = JobRows(database)
    last = [rows.put(_job()) for _ in range(MOST)][-1]
    go.set()
    last.result(10)
    assert sum(commits) <= 3


def test_a_bad_change_is_undone_alone(database: Database) -> None:
    """Its neighbours in the same commit are made."""
    rows, twice = JobRows(database), _job()

    async def play() -> list[Any]:
        jobs = [_job(), twice, twice, _job()]
        return await asyncio.gather(*(rows.add(job, None, None) for job in jobs), return_exceptions=True)

    assert [type(outcome) for outcome in asyncio.run(play())] == [type(None), type(None), StorageFailed, type(None)]
    assert len(asyncio.run(rows.remembered(0.0))) == 3


def test_a_full_disk_fails_the_change_and_nothing_else(database: Database) -> None:
    """When there is room again, changes are made again."""
    rows = JobRows(database)
    large = _job(recipe=msgspec.structs.replace(RECIPE, metadata={"long": "x" * 200_000}))

    async def pages(count: int) -> None:
        await database.write(lambda connection: connection.execute(f"PRAGMA max_page_count = {count}").fetchone())

    async def play() -> None:
        await pages(20)
        with pytest.raises(StorageFailed):
            await rows.add(large, None, None)
        await pages(10_000)
        await rows.add(large, None, None)
        assert await rows.remembered(0.0) == [large]

    asyncio.run(play())


def test_a_closed_database_says_so(tmp_path: Path) -> None:
    """What was posted before is there; what comes after fails at once, and does not wait for ever."""
    database = Database(tmp_path / "daguerre.db")
    rows, job = JobRows(database), _job()

    async def play() -> None:
        adding = asyncio.ensure_future(rows.add(job, None, None))
        await asyncio.sleep(0)
        database.close()
        await adding
        with pytest.raises(StorageFailed):
            await rows.settled()

    asyncio.run(play())
    again = Database(tmp_path / "daguerre.db")
    assert asyncio.run(JobRows(again).remembered(0.0)) == [job]
    again.close()


def test_an_old_file_is_copied_then_brought_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step by step, by their numbers, which may have gaps; a file from a newer version is refused as it is."""
    path, steps = tmp_path / "daguerre.db", tmp_path / "migrations"
    steps.mkdir()
    first = Path(__file__).parents[2] / "src" / "daguerre" / "store" / "migrations" / "0001.sql"
    (steps / "0001.sql").write_text(first.read_text())
    monkeypatch.setattr("daguerre.store.db.resources.files", lambda _: tmp_path)
    Database(path).close()
    (steps / "0004.sql").write_text("CREATE TABLE more (a INTEGER) STRICT;")
    for _ in range(2):  # what is done is not done again
        Database(path).close()
    connection = sqlite3.connect(path)
    assert "more" in _tables(connection)
    connection.close()
    copy = sqlite3.connect(tmp_path / "daguerre.before-4.db")
    assert "jobs" in _tables(copy)
    assert "more" not in _tables(copy)
    copy.close()
    (steps / "0004.sql").unlink()
    with pytest.raises(StorageFailed, match="newer"):
        Database(path)


@pytest.mark.parametrize("content", [b"no database" * 100, b"SQLite format 3\0" + b"\xff" * 4000])
def test_a_broken_file_is_told(tmp_path: Path, content: bytes) -> None:
    """By its name, without its folder."""
    (tmp_path / "daguerre.db").write_bytes(content)
    with pytest.raises(StorageFailed) as caught:
        Database(tmp_path / "daguerre.db")
    assert str(tmp_path) not in caught.value.message
