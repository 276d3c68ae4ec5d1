"""What a new process makes of the database and the files that the one before left behind."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from daguerre import catalog, recipe
from daguerre.embeddings import Embeddings
from daguerre.errors import JobNotFound, KeyReused, QueueFull, ResultExpired
from daguerre.job import Job, Status, new_id
from daguerre.jobs.acceptance import Limits
from daguerre.jobs.deadlines import Timeouts
from daguerre.jobs.inputs import Inputs
from daguerre.jobs.service import ATTEMPTS, JobService
from daguerre.jobs.sources import Sources
from daguerre.loras import Loras
from daguerre.references import References
from daguerre.store.db import Database
from daguerre.store.files import Files
from daguerre.store.jobs import JobRows, Key

WEIGHTS = Path(__file__).parents[2] / "weights"
DRAFT = recipe.parse({"prompt": "a lake", "width": 64, "height": 64, "steps": 2, "seed": 3})


def _play(folder: Path, play: Callable[[JobService, JobRows], Awaitable[None]], queue_limit: int = 20_000) -> None:
    """Runs a scene with a service on a database of that folder, which it opens and closes as a process would."""

    async def scene() -> None:
        database, models = Database(folder / "daguerre.db"), catalog.read(WEIGHTS, "demo-xl")
        rows = JobRows(database)
        service = JobService(
            models,
            Loras(WEIGHTS),
            rows,
            Files(folder / "outputs"),
            lambda _id, _error: None,
            sources=Sources(References(WEIGHTS), Embeddings(WEIGHTS)),
            limits=Limits(queue_limit, 0),
            timeouts=Timeouts(60, 60, 60),
            result_ttl=60,
        )
        try:
            await play(service, rows)
        finally:
            await asyncio.to_thread(database.close)

    asyncio.run(scene())


def _job(**fields: Any) -> Job:
    model = catalog.read(WEIGHTS, "demo-xl").model()
    whole = recipe.resolve(DRAFT, model, 0, {})
    given: dict[str, Any] = {"id": new_id(), "recipe": whole, "created_at": time.time(), "is_attached": False}
    return Job(**given | fields)


def test_jobs_are_taken_up_in_their_order(tmp_path: Path) -> None:
    """Running or waiting, each once; those of clients that waited on a connection are ended."""
    left = [_job(), _job(status=Status.RUNNING, attempts=1), _job(is_attached=True), _job()]
    left.sort(key=lambda job: job.id)

    async def before(_service: JobService, rows: JobRows) -> None:
        for job in left:
            await rows.add(job, None, None)

    async def after(service: JobService, rows: JobRows) -> None:
        await service.recover()
        mine = [job.id for job in left if not job.is_attached]
        assert [await service.queue.take() for _ in mine] == mine
        assert [job.status for job in service.unfinished] == [Status.QUEUED] * 3
        (gone,) = [job.id for job in left if job.is_attached]
        assert (await service.expect(gone, None)).status is Status.CANCELLED
        await service.settled()
        assert {job.status for job in await rows.remembered(0) if job.id == gone} == {Status.CANCELLED}

    _play(tmp_path, before)
    _play(tmp_path, after)


@pytest.mark.parametrize("deaths", range(1, ATTEMPTS + 1))
def test_a_job_that_kills_its_process_ends(tmp_path: Path, deaths: int) -> None:
    """Two deaths may be bad luck; the third is the job's own, and no fourth process begins it."""
    job = _job()

    async def submit(_service: JobService, rows: JobRows) -> None:
        await rows.add(job, None, None)

    async def begin_and_die(service: JobService, _rows: JobRows) -> None:
        await service.recover()
        service.began(await service.queue.take())
        await service.settled()  # the process dies here, as far as the database can tell

    async def after(service: JobService, _rows: JobRows) -> None:
        await service.recover()
        found = await service.expect(job.id, None)
        assert found.attempts == deaths
        if deaths < ATTEMPTS:
            assert found.status is Status.QUEUED
        else:
            assert found.status is Status.FAILED
            assert found.error is not None
            assert found.error.code == "poison"

    _play(tmp_path, submit)
    for _ in range(deaths):
        _play(tmp_path, begin_and_die)
    _play(tmp_path, after)


@pytest.mark.parametrize("status", [Status.QUEUED, Status.RUNNING, Status.CANCELLED, Status.FAILED])
def test_pictures_that_nobody_is_told_of_are_removed(tmp_path: Path, status: Status) -> None:
    """A crash between a picture's file and its row leaves one, whatever became of the job; others stay."""
    files, now = Files(tmp_path / "outputs"), time.time()
    job = _job(status=status, finished_at=now if status.is_final else None)
    done = _job(status=Status.SUCCEEDED, finished_at=now)
    names = [files.name(_moment(now), "demo-xl", each.id) for each in (job, done)]
    # Ids are 128 bits, the digits in a name 32: somebody's picture of last year may well have the same.
    old = files.name(_moment(now - 365 * 86400), "demo-xl", job.id)
    for name in (*names, old):
        files.write(name, b"a picture")

    async def before(_service: JobService, rows: JobRows) -> None:
        await rows.add(job, None, None)
        await rows.add(done, None, None)

    async def after(service: JobService, _rows: JobRows) -> None:
        await service.recover()

    _play(tmp_path, before)
    _play(tmp_path, after)
    assert {path.name for path in (tmp_path / "outputs").iterdir()} == {names[1], old}


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def test_no_one_is_told_of_a_job_before_it_is_durable(tmp_path: Path) -> None:
    """Not even a client that comes second with the same key, while the first one's pictures are being packed."""

    async def play(service: JobService, rows: JobRows) -> None:
        key = Key("ada", "k", "digest")
        inputs = Inputs(Image.effect_noise((1024, 1024), 50).convert("RGBA"), None)
        draft = recipe.parse({"prompt": "a lake", "image": "x", "width": 64, "height": 64})
        first = asyncio.ensure_future(service.submit(draft, inputs, "ada", key, is_attached=False))
        await asyncio.sleep(0)
        second = asyncio.ensure_future(service.submit(draft, inputs, "ada", key, is_attached=False))
        job = await second
        assert await rows.client_of(job.id) is not None
        assert (await first).id == job.id
        with pytest.raises(KeyReused):
            await service.submit(draft, inputs, "ada", Key("ada", "k", "another"), is_attached=False)

    _play(tmp_path, play)


def test_places_are_those_of_a_line(tmp_path: Path) -> None:
    """Positions count up from one and times never get shorter."""

    async def play(service: JobService, _rows: JobRows) -> None:
        jobs = await asyncio.gather(*(service.submit(DRAFT, is_attached=False) for _ in range(50)))
        places = [service.place(job) for job in service.unfinished]
        assert [place.position for place in places] == list(range(1, 51))
        etas = [place.eta for place in places]
        assert etas == sorted(etas)
        assert service.all_done == etas[-1]
        service.began(jobs[0].id)
        assert service.place(service.unfinished[0]).position == 0
        assert service.place(jobs[1]).position == 1
        assert (service.waiting, service.running) == (49, 1)

    _play(tmp_path, play)


def test_reference_images_survive_the_process(tmp_path: Path) -> None:
    """Those that came with a job are there for the next process, in their order, and gone when it is done."""
    shown = tuple(Image.new("RGBA", (8, 8 + i), (40 * i, 0, 0, 255)) for i in range(3))
    ids: list[str] = []

    async def before(service: JobService, _rows: JobRows) -> None:
        await service.recover()
        job = await service.submit(DRAFT, Inputs(None, None, shown), "ada", is_attached=False)
        ids.append(job.id)

    async def after(service: JobService, rows: JobRows) -> None:
        await service.recover()
        inputs = service.inputs(ids[0])
        assert inputs is not None
        assert inputs.image is None
        assert [one.tobytes() for one in inputs.references] == [one.tobytes() for one in shown]
        service.cancel(ids[0])
        await rows.settled()
        assert await rows.pictures(ids[0]) is None

    _play(tmp_path, before)
    _play(tmp_path, after)


def test_places_follow_the_turns_of_clients(tmp_path: Path) -> None:
    """The first job of a client who comes late stands before the second of one who came early; urgent ones lead."""

    async def scene(service: JobService, _rows: JobRows) -> None:
        early = [await service.submit(DRAFT, client="ada", is_attached=False) for _ in range(3)]
        late = await service.submit(DRAFT, client="bea", is_attached=False)
        assert [service.place(job).position for job in (*early, late)] == [1, 3, 4, 2]
        urgent = await service.submit(DRAFT, client="cleo", is_attached=False, is_urgent=True)
        assert [service.place(job).position for job in (*early, late, urgent)] == [2, 4, 5, 3, 1]
        assert [await service.queue.take() for _ in range(3)] == [urgent.id, early[0].id, late.id]

    _play(tmp_path, scene)


def test_an_owner_sees_what_is_his_own(tmp_path: Path) -> None:
    """Another is answered as for a job that never was, even once it has expired and its row alone is left."""

    async def before(service: JobService, rows: JobRows) -> None:
        old = _job(client="ada", status=Status.SUCCEEDED, finished_at=time.time() - 120)
        await rows.add(old, None, None)
        await service.recover()
        for owner, expected in (("ada", ResultExpired), (None, ResultExpired), ("bea", JobNotFound)):
            with pytest.raises(expected):
                await service.expect(old.id, owner)
        job = await service.submit(DRAFT, client="ada", is_attached=False)
        assert await service.expect(job.id, "ada") == await service.expect(job.id, None) == job
        with pytest.raises(JobNotFound):
            await service.expect(job.id, "bea")

    _play(tmp_path, before)


@pytest.mark.parametrize("days", [1, -1])
def test_a_clock_that_is_set_ends_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int) -> None:
    """Deadlines and forecasts go by a clock that nobody sets."""
    real = time.time

    async def scene(service: JobService, _rows: JobRows) -> None:
        job = await service.submit(DRAFT)
        assert await service.queue.take() == job.id
        monkeypatch.setattr(time, "time", lambda: real() + 86400 * days)
        service.began(job.id)
        await asyncio.sleep(0.1)
        assert [one.status for one in service.unfinished] == [Status.RUNNING]
        monkeypatch.setattr(time, "time", lambda: real() + 2 * 86400 * days)
        assert await service.succeeded(job.id, images=())
        await service.submit(DRAFT)
        with pytest.raises(QueueFull) as refused:
            await service.submit(DRAFT)
        assert refused.value.retry_after < 60

    _play(tmp_path, scene, queue_limit=1)
