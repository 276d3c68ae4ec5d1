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
from daguerre.job import Failure, Image, Job, Status, new_id
from daguerre.recipe import Recipe
from daguerre.store.db import MOST, Database
from daguerre.store.jobs import JobRows, Key, Pictures
from daguerre.store.usage import Usage

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
        assert await rows.client_of(job.id) is not None
        rows.drop(20.1)
        assert await rows.client_of(job.id) is None
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


@pytest.mark.parametrize("is_guest", [True, False])
def test_a_guest_leaves_the_log_to_its_host(database: Database, tmp_path: Path, *, is_guest: bool) -> None:
    """Two that fold it in at the same moment damage the file, before SQLite 3.51.3; whoever is no guest does fold."""
    path = tmp_path / "folder" / "daguerre.db"
    database.post(lambda connection: connection.execute("CREATE TABLE more (text)")).result()
    before = path.stat().st_size
    other = Database(path, is_guest=is_guest)
    for _ in range(20):
        other.post(lambda connection: connection.execute("INSERT INTO more VALUES (?)", ("x" * 400_000,))).result()
    has_folded = path.stat().st_size > before
    assert has_folded is not is_guest
    database.post(lambda connection: connection.execute("DROP TABLE more")).result()
    other.close()


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


STEPS = Path(__file__).parents[2] / "src" / "daguerre" / "store" / "migrations"


def _open_with(path: Path, steps: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Opens a file as a Daguerre with these steps would; gives the file's tables."""
    folder = path.parent / f"steps-{len(list(path.parent.iterdir()))}"
    (folder / "migrations").mkdir(parents=True)
    for name, text in steps.items():
        (folder / "migrations" / name).write_text(text)
    with monkeypatch.context() as patch:
        patch.setattr("daguerre.store.db.resources.files", lambda _: folder)
        Database(path).close()
    connection = sqlite3.connect(path)
    tables = _tables(connection)
    connection.close()
    return tables


def test_an_old_file_is_copied_then_brought_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step by step; a file from a newer version is refused as it is."""
    path = tmp_path / "daguerre.db"
    Database(path).close()
    shipped = {file.name: file.read_text() for file in STEPS.iterdir()}
    steps = shipped | {"9999_more.sql": "CREATE TABLE more (a INTEGER) STRICT;"}
    assert "more" in _open_with(path, steps, monkeypatch)
    copy = sqlite3.connect(tmp_path / f"daguerre.before-{len(steps)}.db")
    assert "jobs" in _tables(copy)
    assert "more" not in _tables(copy)
    copy.close()
    before = path.read_bytes()
    with pytest.raises(StorageFailed, match="newer"):
        Database(path)
    assert path.read_bytes() == before


def test_a_step_that_comes_in_late_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two versions that grew side by side: whichever was first, the file ends with the tables of both."""
    one, other = {"0002_b.sql": "CREATE TABLE b (a INTEGER);"}, {"0003_c.sql": "CREATE TABLE c (a INTEGER);"}
    first = {"0001.sql": (STEPS / "0001.sql").read_text()}
    for order, early in (("one", one), ("other", other)):
        path = tmp_path / order / "daguerre.db"
        path.parent.mkdir()
        assert len(_open_with(path, first | early, monkeypatch) & {"b", "c"}) == 1
        for _ in range(2):
            assert _open_with(path, first | one | other, monkeypatch) >= {"jobs", "b", "c"}


def test_a_file_from_before_the_steps_had_names_is_known_by_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says how many it has been through; with more than there are, it is newer."""
    path = tmp_path / "daguerre.db"
    first = (STEPS / "0001.sql").read_text()
    connection = sqlite3.connect(path)
    connection.executescript(f"BEGIN; {first}; PRAGMA user_version = 1; COMMIT;")
    connection.close()
    assert "more" in _open_with(path, {"0001.sql": first, "0002.sql": "CREATE TABLE more (a INTEGER);"}, monkeypatch)
    connection = sqlite3.connect(tmp_path / "newer.db")
    connection.execute("PRAGMA user_version = 9")
    connection.close()
    with pytest.raises(StorageFailed, match="newer"):
        Database(tmp_path / "newer.db")


def test_what_clients_have_used_is_added_up(tmp_path: Path) -> None:
    """By the jobs that succeeded, each once, of each client apart, and for the next process too."""
    image = Image("a.png", 1, 64, 32, "png", 10, "")

    def done(client: str, status: Status = Status.SUCCEEDED) -> Job:
        finished = {"finished_at": 7.0, "steps": 4, "images": (image, image), "device_seconds": 0.5}
        return _job(client=client, status=status, **finished)

    for _ in range(2):
        database = Database(tmp_path / "daguerre.db")
        rows = JobRows(database)
        for job in (done("ada"), done("ada"), done("bob"), done("ada", Status.CANCELLED)):
            rows.put(job)
        used = asyncio.run(rows.usage("ada"))
        assert asyncio.run(rows.usage("nobody")) == Usage()
        database.close()
    assert used == Usage(since=7.0, jobs=4, images=8, steps=16, pixels=8 * 64 * 32, device_seconds=2.0)


@pytest.mark.parametrize("content", [b"no database" * 100, b"SQLite format 3\0" + b"\xff" * 4000])
def test_a_broken_file_is_told(tmp_path: Path, content: bytes) -> None:
    """By its name, without its folder."""
    (tmp_path / "daguerre.db").write_bytes(content)
    with pytest.raises(StorageFailed) as caught:
        Database(tmp_path / "daguerre.db")
    assert str(tmp_path) not in caught.value.message


def test_pictures_of_before_have_their_owners(tmp_path: Path) -> None:
    """The step that gives pictures owners takes them from the jobs that are there."""
    path = tmp_path / "daguerre.db"
    first = Path(__file__).parents[2] / "src" / "daguerre" / "store" / "migrations" / "0001.sql"
    connection = sqlite3.connect(path)
    connection.executescript(f"{first.read_text()}; PRAGMA user_version = 1;")
    images = (Image("a.png", 1, 64, 64, "png", 9, ""), Image("b.png", 2, 64, 64, "png", 9, ""))
    for job in (_job(client="ada", images=images), _job(client="bea")):
        body = msgspec.json.encode(job)
        connection.execute("INSERT INTO jobs VALUES (?, ?, ?, ?)", (job.id, job.status.value, None, body))
    connection.commit()
    connection.close()
    database = Database(path)
    rows = JobRows(database)
    assert [asyncio.run(rows.client_of_picture(name)) for name in ("a.png", "b.png", "c.png")] == ["ada", "ada", None]
    later = _job(client="cleo")
    asyncio.run(rows.add(later, None, None))
    rows.put(msgspec.structs.replace(later, images=(Image("c.png", 1, 64, 64, "png", 9, ""),))).result()
    assert asyncio.run(rows.client_of_picture("c.png")) == "cleo"
    database.close()
