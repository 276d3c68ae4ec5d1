"""Owns the models as clients see them: where each one is, and loading, unloading and pulling them by name."""

import asyncio
import contextlib
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from daguerre.catalog import Catalog, Model
from daguerre.engine import Engine, Event, ModelAbsent, ModelLoading, ModelPlaced, ModelReady
from daguerre.engine.events import Place
from daguerre.errors import DaguerreError, ModelBusy, ModelNotPulled, PullFailed
from daguerre.jobs.service import JobService

log = logging.getLogger(__name__)

#: Seconds for which an unload waits for the engine, which answers between two steps.
PATIENCE = 60.0


@dataclass(slots=True)
class Status:
    """What is known of a model: where it is, what is being done with it, and how the last attempt failed."""

    place: Place = "disk"
    stage: str = ""
    done: int = 0  # bytes, while it is pulled
    total: int = 0
    error: DaguerreError | None = None


class Models:
    """Between the routes and the engine. Used on the event loop only."""

    def __init__(self, catalog: Catalog, engine: Engine, service: JobService, pulling: "Pulling | None") -> None:
        self._catalog = catalog
        self._engine = engine
        self._service = service
        self._pulling = pulling
        self._statuses: dict[str, Status] = {}
        self._waiting: dict[str, list[asyncio.Future[Place]]] = {}
        self._pulls: dict[str, asyncio.Task[None]] = {}

    def receive(self, event: Event) -> None:
        """One event of the engine."""
        match event:
            case ModelLoading(model, stage) if model:
                self._statuses[model] = Status(stage=stage)
            case ModelReady(model=model):
                self._place(model, "device")
            case ModelPlaced(model, place):
                self._place(model, place)
            case ModelAbsent(model, error):
                self._statuses[model] = Status(error=error)

    def _place(self, name: str, place: Place) -> None:
        log.info("the weights of %s are now here: %s", name, place)
        self._statuses[name] = Status(place)
        for waiting in self._waiting.pop(name, ()):
            if not waiting.done():
                waiting.set_result(place)

    def status(self, model: Model) -> Status:
        """What is known of it now."""
        return self._statuses.get(model.name, Status())

    def place(self, model: Model) -> Place | Literal["absent"]:
        """Where its weights are."""
        return self.status(model).place if model.is_here else "absent"

    def load(self, name: str) -> tuple[Model, bool]:
        """Begins to load a model, and to pull it before where that is allowed; says whether it is there already.

        Raises:
            ModelNotFound, ModelNotPulled, CatalogError: it cannot be loaded.
        """
        model = self._catalog.find(name)
        if model.is_here:
            is_there = self.place(model) == "device"
            if not is_there:
                self._engine.load(model)
            return model, is_there
        if self._pulling is None:
            raise ModelNotPulled(model.name)
        if model.name not in self._pulls:
            self._statuses[model.name] = Status(stage="pulling")
            self._pulls[model.name] = asyncio.create_task(self._pull(self._pulling, model))
        return model, False

    async def _pull(self, pulling: "Pulling", model: Model) -> None:
        try:
            await pulling.run(model, self._statuses[model.name])
            self._engine.load(self._catalog.model(model.name))
        except DaguerreError as error:
            log.warning("%s could not be pulled: %s", model.name, error)
            self._statuses[model.name] = Status(error=error)
        finally:
            del self._pulls[model.name]

    async def unload(self, name: str) -> Model:
        """Lets go of a model's weights.

        Raises:
            ModelNotFound: there is no such model.
            ModelBusy: jobs wait for it, or are painted with it.
        """
        model = self._catalog.find(name)
        if any(job.recipe.model == model.name for job in self._service.unfinished):
            raise ModelBusy
        if self.status(model).place != "disk":
            waiting: asyncio.Future[Place] = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(model.name, []).append(waiting)
            self._engine.unload(model.name)
            async with asyncio.timeout(PATIENCE):
                if await waiting != "disk":
                    raise ModelBusy
        return model

    async def close(self) -> None:
        """Breaks pulls off; what they have fetched is kept for the next one."""
        pulls = list(self._pulls.values())
        for task in pulls:
            task.cancel()
        await asyncio.gather(*pulls, return_exceptions=True)


@dataclass(frozen=True, slots=True)
class Pulling:
    """How models are pulled: by a process of its own, since this one has been told to stay off the network."""

    weights: Path
    endpoint: str
    private_hosts: tuple[str, ...] = ()

    async def run(self, model: Model, status: Status) -> None:
        """Pulls a model and keeps its progress.

        Raises:
            PullFailed: with the reason that the process gave.
        """
        options = ["--weights", str(self.weights), "--endpoint", self.endpoint, "--lines"]
        # This process took itself off the network by a variable, which is not for the child.
        environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
        environment |= {"DAGUERRE_PRIVATE_HOSTS": ",".join(self.private_hosts)}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "daguerre", "pull", model.name, *options),
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        told = asyncio.create_task(process.stderr.read())
        try:
            async for line in process.stdout:
                done, _, total = line.decode().strip().partition(" ")
                if done.isdigit() and total.isdigit():
                    status.done, status.total = int(done), int(total)
            if await process.wait() != 0:
                raise PullFailed(_reason((await told).decode(errors="replace")))
        finally:
            told.cancel()
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
                await process.wait()


def _reason(told: str) -> str | None:
    """The line that the command ends with when it knows what is wrong."""
    last = told.strip().rpartition("daguerre: ")
    return last[2] if last[1] else None
