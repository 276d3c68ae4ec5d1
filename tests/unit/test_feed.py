"""The feeding of the engine goes on whatever becomes of a job's model."""

import asyncio
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from daguerre import catalog
from daguerre.embeddings import Embeddings
from daguerre.engine import Engine, Event
from daguerre.errors import ModelNotFound
from daguerre.jobs.acceptance import Limits
from daguerre.jobs.deadlines import Timeouts
from daguerre.jobs.dispatch import Dispatch
from daguerre.jobs.service import JobService
from daguerre.jobs.sources import Sources
from daguerre.loras import Loras
from daguerre.recipe import Draft
from daguerre.references import References
from daguerre.store.db import Database
from daguerre.store.files import Files
from daguerre.store.jobs import JobRows

DEMO = Path(__file__).parent.parent.parent / "weights" / "demo-xl"


def test_a_model_that_goes_while_its_job_waits_fails_that_job_alone(tmp_path: Path) -> None:
    """The job ends with the reason; the next one is handed over."""
    for name in ("stays", "goes"):
        shutil.copytree(DEMO, tmp_path / name)

    async def scenario() -> None:
        handed: list[Event] = []
        database = Database(tmp_path / "daguerre.db")
        engine = Engine(handed.append)  # not started: what it is given stays in its inbox
        service = JobService(
            catalog.read(tmp_path, "stays"),
            Loras(tmp_path),
            JobRows(database),
            Files(tmp_path),
            engine.cancel,
            sources=Sources(References(tmp_path), Embeddings(tmp_path)),
            limits=Limits(queue=9, least_disk=0),
            timeouts=Timeouts(60, 60, 60),
            result_ttl=60,
        )
        with ThreadPoolExecutor(1) as codec:
            dispatch = Dispatch(service, engine, Files(tmp_path), codec)
            doomed = await service.submit(Draft(prompt="x", model="goes"))
            spared = await service.submit(Draft(prompt="x", model="stays"))
            shutil.rmtree(tmp_path / "goes")
            feeding = asyncio.create_task(dispatch.feed())
            with pytest.raises(ModelNotFound):
                await service.wait(doomed.id)
            async with asyncio.timeout(10):
                while engine._inbox.qsize() < 2:  # noqa: ASYNC110 - the word that the first is off, and the second
                    await asyncio.sleep(0.01)
            assert not feeding.done()
            feeding.cancel()
            service.cancel(spared.id)
        database.close()

    asyncio.run(scenario())
