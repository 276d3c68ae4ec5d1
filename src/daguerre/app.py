"""Owns the composition: every part is made and joined here, and ended here."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import structs
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect

from daguerre import catalog as catalogs
from daguerre import garbage
from daguerre.auth import authenticator
from daguerre.embeddings import Embeddings
from daguerre.engine import Budgets, Engine, Event, Options, Tuning
from daguerre.errors import CatalogError, DaguerreError, SettingsError
from daguerre.http import wire
from daguerre.http.access import guarded
from daguerre.http.audit import Audit
from daguerre.http.failures import on_error, unknown
from daguerre.http.gate import BodyLimit, Framing, HostCheck, RequestId
from daguerre.http.meter import Meter
from daguerre.http.origins import OriginCheck, cross_origin
from daguerre.http.proxies import Proxies, networks
from daguerre.http.routes import ROUTES
from daguerre.http.state import State
from daguerre.job import Job
from daguerre.jobs import pictures
from daguerre.jobs.acceptance import Limits
from daguerre.jobs.allowances import Allowances
from daguerre.jobs.deadlines import Timeouts
from daguerre.jobs.dispatch import Dispatch
from daguerre.jobs.inspection import Inspection
from daguerre.jobs.loras import LoraShelf
from daguerre.jobs.models import Models, Pulling
from daguerre.jobs.retries import Retries
from daguerre.jobs.service import JobService
from daguerre.jobs.sources import Sources
from daguerre.jobs.watch import Watch
from daguerre.loras import Loras
from daguerre.moderation import Moderation
from daguerre.references import References
from daguerre.safety_checkers import SafetyChecker, SafetyCheckers
from daguerre.settings import Settings
from daguerre.store.db import DATABASE_FILE, Database
from daguerre.store.deliveries import DeliveryRows
from daguerre.store.files import Files
from daguerre.store.jobs import JobRows
from daguerre.store.keys import KeyRows
from daguerre.store.spills import Spills
from daguerre.telemetry.counters import Counters
from daguerre.telemetry.lag import LoopLag
from daguerre.telemetry.logs import Logs
from daguerre.telemetry.metrics import Metrics
from daguerre.telemetry.traces import sent_to as traces_sent_to

if TYPE_CHECKING:
    from daguerre.fetching import Fetcher
    from daguerre.jobs.webhooks import Webhooks

#: Threads that encode pictures and parse large bodies.
CODEC_THREADS = 2


class Daguerre(Starlette):
    """The application; ``drain`` is for the server that runs it, ``on_fault`` for who can start a new process."""

    def __init__(
        self, settings: Settings, on_fault: Callable[[str], None] = lambda _: None, logs: Logs | None = None
    ) -> None:
        self._on_fault = on_fault
        self._logs = logs or Logs()
        self._counters = Counters()
        self._metrics = Metrics(self._counters)
        # Before anything listens: a start that cannot succeed is to end with its reason.
        authenticator.check(settings)
        trusted = networks(settings.trusted_proxies)
        self._catalog = catalogs.read(settings.weights, settings.default_model)
        # Named by an alias, it is told by its own name.
        self._settings = structs.replace(settings, default_model=self._catalog.model().name)
        self._loras = Loras(settings.weights)
        self._sources = Sources(References(settings.weights), Embeddings(settings.weights))
        self._traces = traces_sent_to(settings.traces_endpoint) if settings.traces_endpoint else None
        rules = settings.moderation_rules
        self._moderation = Moderation(Path(rules), settings.moderation_fails) if rules else None
        self._safety_checker = _safety_checker(settings) if settings.safety_checker else None
        self._fetcher = _fetcher(settings) if settings.webhook_secret else None
        self._service: JobService | None = None
        super().__init__(
            routes=guarded(ROUTES),
            lifespan=self._lifespan,
            middleware=[
                Middleware(Proxies, trusted=trusted),
                Middleware(RequestId),
                Middleware(Meter, metrics=self._metrics),
                Middleware(Framing),
                Middleware(HostCheck, allowed=(settings.host, *settings.allowed_hosts)),
                *cross_origin(settings.cors_origins),
                Middleware(OriginCheck, allowed=settings.cors_origins),
                Middleware(BodyLimit, limit=settings.body_limit),
            ],
            exception_handlers={
                DaguerreError: on_error,
                HTTPException: on_error,
                ClientDisconnect: on_error,
                Exception: on_error,
            },
        )
        # A redirect would be built from the Host header.
        self.router.redirect_slashes = False
        self.router.default = unknown

    async def drain(self) -> None:
        """Takes no more jobs and sees those at hand to their end, within the grace time."""
        if self._service is not None:
            await self._service.drain(self._settings.grace_timeout)

    def _inspection(self) -> Inspection | None:
        if self._safety_checker is None:
            return None
        settings = self._settings
        action, fails = settings.safety_checker_action, settings.safety_checker_fails
        return Inspection(self._safety_checker, action, fails, self._metrics)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[State]:
        settings = self._settings
        files = Files(settings.outputs)
        files.sweep()
        spills = Spills(settings.data / "spills")
        loop = asyncio.get_running_loop()

        def emit(event: Event) -> None:  # on the engine thread
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
                loop.call_soon_threadsafe(receive, event)

        def receive(event: Event) -> None:
            models.receive(event)
            shelf.receive(event)
            dispatch.receive(event)
            watch.receive(event)

        engine = Engine(
            emit,
            Options(
                settings.device,
                settings.dtype,
                settings.max_runs,
                settings.step_timeout,
                Tuning(settings.compile, settings.channels_last, settings.cpu_threads, settings.data / "compiled"),
                settings.data / "curves",
                Budgets(settings.device_memory, settings.host_memory, settings.pinned_models, settings.offload),
                spills,
                settings.spill_every,
            ),
            self._on_fault,
            self._counters,
        )
        database = Database(settings.data / DATABASE_FILE)
        fetcher = self._fetcher
        webhooks = None if fetcher is None else _webhooks(settings, DeliveryRows(database), fetcher)
        service = JobService(
            self._catalog,
            self._loras,
            JobRows(database),
            files,
            engine.cancel,
            sources=self._sources,
            limits=Limits(settings.queue_limit, settings.least_disk, settings.client_limit),
            allowances=Allowances(settings.rate_limit),
            timeouts=Timeouts(settings.wait_timeout, settings.run_timeout, settings.job_timeout),
            result_ttl=settings.result_ttl,
            webhooks=webhooks,
            moderation=self._moderation,
        )
        service.queue.at_once = settings.client_runs
        doors = authenticator.Authenticator(settings, KeyRows(database))
        pulling = (
            Pulling(settings.weights, settings.hub_endpoint, settings.private_hosts) if settings.allow_pull else None
        )
        shelf = LoraShelf(engine, service)
        models = Models(self._catalog, engine, service, pulling)
        watch = Watch(service, engine, files, self._metrics, self._logs, log_prompts=settings.log_prompts)
        service.listen(watch.changed)
        if self._traces is not None:
            service.listen(self._traces.changed)
        with ThreadPoolExecutor(CODEC_THREADS, thread_name_prefix="daguerre-codec") as codec:
            inspection = self._inspection()
            dispatch = Dispatch(service, engine, files, codec, inspection)
            self._service = service
            await service.recover()
            spills.keep_only({job.id for job in service.unfinished})
            if webhooks is not None:
                await webhooks.recover()
            engine.start(preload=self._catalog.model())
            collecting = garbage.collect_for_ever(lambda: not service.unfinished_count)
            works = [dispatch.feed(), service.remind(), collecting]
            if settings.files_ttl:
                works.append(pictures.expire_for_ever(files, settings.files_ttl))
            endless = [loop.create_task(work) for work in works]
            retries = Retries(service)
            lag = LoopLag(self._metrics.loop_lag.observe)
            yield State(
                settings=settings,
                service=service,
                dispatch=dispatch,
                models=models,
                loras=shelf,
                retries=retries,
                authenticator=doors,
                audit=Audit(self._metrics),
                files=files,
                codec=codec,
                metrics=self._metrics,
                watch=watch,
                checkpoints={},
            )
            # Jobs without a connection do not hold the server's own shutdown; nothing below may end before they do.
            await self.drain()
            for task in endless:
                task.cancel()
            lag.close()
            if self._traces is not None:
                await asyncio.to_thread(self._traces.close)
            await models.close()
            await doors.close()
            if webhooks is not None:
                await webhooks.close()
            await asyncio.gather(*endless, return_exceptions=True)
            # The engine is a daemon: one that hangs in a device call does not hold the exit.
            await asyncio.to_thread(engine.close, 5.0)
            if inspection is not None:
                inspection.close()
            await asyncio.to_thread(database.close)


def _safety_checker(settings: Settings) -> SafetyChecker:
    """The one that the settings name; that its files are whole is found out when they are read, and may change."""
    try:
        checker = SafetyCheckers(settings.weights).find(settings.safety_checker)
    except CatalogError as error:
        raise SettingsError(f"setting 'safety_checker': {error}") from None
    if not checker.is_here:
        raise SettingsError(f"setting 'safety_checker': not on this machine yet: daguerre pull {checker.name}")
    return checker


def _fetcher(settings: Settings) -> "Fetcher":
    # Its library takes as long to load as the rest of the server, and most servers have no webhooks.
    from daguerre.fetching import Fetcher

    return Fetcher(settings.private_hosts, settings.webhook_timeout)


def _webhooks(settings: Settings, rows: DeliveryRows, fetcher: "Fetcher") -> "Webhooks":
    from daguerre.jobs.webhooks import Tries, Webhooks

    def tell(job: Job) -> bytes:
        return msgspec.json.encode(wire.wire_job(job, []))

    tries = Tries(settings.webhook_tries, settings.webhook_wait)
    return Webhooks(rows, fetcher, settings.webhook_secret, tries, tell)
