"""Owns the composition: every part is made and joined here, and ended here."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor

from msgspec import structs
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect

from daguerre import catalog as catalogs
from daguerre.engine import Budgets, Engine, Event, Tuning
from daguerre.errors import DaguerreError
from daguerre.http import problems
from daguerre.http.gate import BodyLimit, HostCheck, RequestId
from daguerre.http.routes import ROUTES
from daguerre.http.state import State
from daguerre.jobs.dispatch import Dispatch
from daguerre.jobs.loras import LoraShelf
from daguerre.jobs.models import Models, Pulling
from daguerre.jobs.retries import Retries
from daguerre.jobs.service import JobService, Limits, Timeouts
from daguerre.loras import Loras
from daguerre.settings import Settings
from daguerre.store.db import DATABASE_FILE, Database
from daguerre.store.files import Files
from daguerre.store.jobs import JobRows

#: Threads that encode pictures and parse large bodies.
CODEC_THREADS = 2


class Daguerre(Starlette):
    """The application; ``drain`` is for the server that runs it, ``on_fault`` for who can start a new process."""

    def __init__(self, settings: Settings, on_fault: Callable[[str], None] = lambda _: None) -> None:
        self._on_fault = on_fault
        # Before anything listens: a start that cannot succeed is to end with its reason.
        self._catalog = catalogs.read(settings.weights, settings.default_model)
        # Named by an alias, it is told by its own name.
        self._settings = structs.replace(settings, default_model=self._catalog.model().name)
        self._loras = Loras(settings.weights)
        self._service: JobService | None = None
        super().__init__(
            routes=ROUTES,
            lifespan=self._lifespan,
            middleware=[
                Middleware(RequestId),
                Middleware(HostCheck, allowed=(settings.host, *settings.allowed_hosts)),
                Middleware(BodyLimit, limit=settings.body_limit),
            ],
            exception_handlers={
                DaguerreError: problems.on_error,
                HTTPException: problems.on_error,
                ClientDisconnect: problems.on_error,
                Exception: problems.on_error,
            },
        )
        # A redirect would be built from the Host header.
        self.router.redirect_slashes = False

    async def drain(self) -> None:
        """Takes no more jobs and sees those at hand to their end, within the grace time."""
        if self._service is not None:
            await self._service.drain(self._settings.grace_timeout)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[State]:
        settings = self._settings
        files = Files(settings.outputs)
        files.sweep()
        loop = asyncio.get_running_loop()

        def emit(event: Event) -> None:  # on the engine thread
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
                loop.call_soon_threadsafe(receive, event)

        def receive(event: Event) -> None:
            models.receive(event)
            shelf.receive(event)
            dispatch.receive(event)

        engine = Engine(
            emit,
            settings.device,
            settings.dtype,
            settings.max_runs,
            settings.step_timeout,
            self._on_fault,
            Tuning(settings.compile, settings.channels_last, settings.cpu_threads, settings.data / "compiled"),
            settings.data / "curves",
            Budgets(settings.device_memory, settings.host_memory, settings.pinned_models),
        )
        database = Database(settings.data / DATABASE_FILE)
        service = JobService(
            self._catalog,
            self._loras,
            JobRows(database),
            files,
            engine.cancel,
            limits=Limits(settings.queue_limit, settings.least_disk),
            timeouts=Timeouts(settings.wait_timeout, settings.run_timeout, settings.job_timeout),
            result_ttl=settings.result_ttl,
        )
        pulling = Pulling(settings.weights, settings.hub_endpoint) if settings.allow_pull else None
        shelf = LoraShelf(engine, service)
        models = Models(self._catalog, engine, service, pulling)
        with ThreadPoolExecutor(CODEC_THREADS, thread_name_prefix="daguerre-codec") as codec:
            dispatch = Dispatch(service, engine, files, codec)
            self._service = service
            await service.recover()
            engine.start(preload=self._catalog.model())
            feeding = loop.create_task(dispatch.feed())
            retries = Retries(service)
            yield State(
                settings=settings,
                service=service,
                dispatch=dispatch,
                models=models,
                loras=shelf,
                retries=retries,
                files=files,
                codec=codec,
                checkpoints={},
            )
            # Jobs without a connection do not hold the server's own shutdown; nothing below may end before they do.
            await self.drain()
            feeding.cancel()
            await models.close()
            await asyncio.gather(feeding, return_exceptions=True)
            # The engine is a daemon: one that hangs in a device call does not hold the exit.
            await asyncio.to_thread(engine.close, 5.0)
            await asyncio.to_thread(database.close)
