"""Owns what is told of jobs: each change of a job's state is a log line and counts; events of the engine count."""

import logging
import time
from dataclasses import dataclass
from typing import Any

import msgspec

from daguerre.engine import Engine, Event, ModelAbsent, ModelReady, Painted, Stepped
from daguerre.job import Job, Status
from daguerre.jobs.service import JobService
from daguerre.store.files import Files
from daguerre.telemetry.logs import Logs
from daguerre.telemetry.metrics import Metrics
from daguerre.telemetry.progress import Step

log = logging.getLogger(__name__)

#: Unfinished jobs up to which a forecast is compared with what happens: making one looks at each of them.
FORECAST = 256


@dataclass(slots=True)
class Forecasts:
    """What was forecast for a job, and when: seconds left, and Unix seconds."""

    accepted: tuple[float, float] | None = None
    started: tuple[float, float] | None = None


class Watch:
    """Listens to the service and to the engine. Used on the event loop only."""

    def __init__(
        self, service: JobService, engine: Engine, files: Files, metrics: Metrics, logs: Logs, *, log_prompts: bool
    ) -> None:
        self._service = service
        self._engine = engine
        self._files = files
        self._metrics = metrics
        self._progress = logs.progress
        self._logs = logs
        self._log_prompts = log_prompts
        self._forecasts: dict[str, Forecasts] = {}
        self._began = time.time()
        self._dropped = 0

    def changed(self, job: Job) -> None:
        """A job's state is another one than before."""
        self._tell(job)
        match job.status:
            case Status.QUEUED:
                self._queued(job)
            case Status.RUNNING:
                self._running(job)
            case _:
                self._ended(job)

    def _queued(self, job: Job) -> None:
        if job.id in self._forecasts or job.created_at < self._began:  # it was here before, or in the last process
            self._hide(job)
            return
        forecasts = self._forecasts[job.id] = Forecasts()
        forecasts.accepted = self._forecast(job)
        self._metrics.requests.labels(self._metrics.model(job.recipe.model), job.recipe.mode).inc()

    def _running(self, job: Job) -> None:
        assert job.started_at is not None
        self._metrics.queue_wait.observe(max(0.0, job.started_at - job.created_at))
        if job.id in self._forecasts:
            self._forecasts[job.id].started = self._forecast(job)

    def _forecast(self, job: Job) -> tuple[float, float] | None:
        return (self._service.place(job).eta, time.time()) if self._service.unfinished_count <= FORECAST else None

    def _ended(self, job: Job) -> None:
        metrics = self._metrics
        self._hide(job)
        forecasts = self._forecasts.pop(job.id, Forecasts())
        metrics.ended.labels(job.status).inc()
        if job.status is Status.FAILED and job.error is not None:
            metrics.failures.labels(metrics.code(job.error.code)).inc()
        if job.status is Status.SUCCEEDED:
            self._delivered(job)
            self._compare("accepted", forecasts.accepted, job)
            self._compare("started", forecasts.started, job)

    def _delivered(self, job: Job) -> None:
        assert job.finished_at is not None
        metrics, model = self._metrics, self._metrics.model(job.recipe.model)
        metrics.duration.labels(model).observe(max(0.0, job.finished_at - job.created_at))
        metrics.images.labels(model).inc(len(job.images))
        metrics.device_seconds.labels(model).inc(job.device_seconds)
        for phase, seconds in msgspec.structs.asdict(job.timings).items():
            metrics.phases.labels(phase, model).observe(max(0.0, seconds))

    def _compare(self, at: str, forecast: tuple[float, float] | None, job: Job) -> None:
        if forecast is None or job.finished_at is None:
            return
        expected, since = forecast
        happened = max(1e-3, job.finished_at - since)
        self._metrics.eta_error.labels(at).observe(abs(expected - happened))
        self._metrics.eta_ratio.labels(at).observe(expected / happened)

    def _hide(self, job: Job) -> None:
        if self._progress is not None:
            self._progress.hide(job.id)

    def receive(self, event: Event) -> None:
        """One event of the engine."""
        match event:
            case Stepped(job_id):
                job = self._service.find(job_id)
                if job is not None:
                    self._stepped(job)
            case Painted():
                self._painted(event)
            case ModelReady(model=model, seconds=seconds):
                self._metrics.switches.labels(self._metrics.model(model)).inc()
                self._metrics.switch_seconds.observe(seconds)
            case ModelAbsent():
                self._metrics.absent.inc()
            case _:
                pass

    def _stepped(self, job: Job) -> None:
        self._metrics.steps.labels(self._metrics.model(job.recipe.model)).inc()
        if self._progress is not None and job.status is Status.RUNNING:
            seconds = time.time() - (job.started_at or job.created_at)
            self._progress.show(job.id, Step(job.recipe.model, job.step, job.steps, seconds))

    def _painted(self, painted: Painted) -> None:
        job, metrics = self._service.find(painted.job_id), self._metrics
        if painted.tokens is not None:
            metrics.tokens.inc(painted.tokens)
            metrics.prompt_cache.labels("miss" if painted.tokens else "hit").inc()
        if job is not None and painted.denoise_seconds > 0:
            rate = job.recipe.steps / painted.denoise_seconds
            metrics.rate.labels(metrics.model(job.recipe.model)).observe(rate)

    def look(self, *, is_ready: bool) -> None:
        """Sets what is not counted but looked at, for whoever reads the metrics now."""
        metrics, service = self._metrics, self._service
        metrics.queue_size.set(service.waiting)
        metrics.queue_limit.set(service.limits.queue)
        for status, count in service.counts().items():
            metrics.jobs.labels(status).set(count)
        metrics.ready.set(is_ready)
        metrics.disk_free.set(self._files.room())
        metrics.step_age.set(self._engine.step_seconds)
        metrics.step_limit.set(self._engine.options.step_timeout)
        metrics.log_dropped.inc(self._logs.dropped - self._dropped)
        self._dropped = self._logs.dropped

    def _tell(self, job: Job) -> None:
        recipe = job.recipe
        size = f"{recipe.width}×{recipe.height}"
        what = f"{recipe.model}, {recipe.mode}, {size}, {recipe.steps} steps, seed {recipe.seed}"
        why = "" if job.error is None else f": {job.error.code}"
        level = logging.WARNING if job.status is Status.FAILED else logging.INFO
        fields = _fields(job) | ({"prompt": recipe.prompt} if self._log_prompts else {})
        log.log(level, "job %s %s%s (%s)", job.id, job.status, why, what, extra={"fields": fields})


def _fields(job: Job) -> dict[str, Any]:
    """What the log says of a job beside the line itself."""
    recipe = job.recipe
    return {
        "job_id": job.id,
        "request_id": job.request_id or None,
        "status": job.status.value,
        "client": job.client,
        "model_id": recipe.model,
        "mode": recipe.mode,
        "seed": recipe.seed,
        "width": recipe.width,
        "height": recipe.height,
        "steps": recipe.steps,
        "count": recipe.count,
        "latency_ms": _latency(job),
        "vram_peak_mb": None if job.memory_peak is None else round(job.memory_peak / 2**20),
        "safety_filter_result": job.safety_filter_result,
        "error": None if job.error is None else job.error.code,
    }


def _latency(job: Job) -> dict[str, float]:
    """Milliseconds of each phase that it has been through, and in all."""
    phases = msgspec.structs.asdict(job.timings) if job.status is Status.SUCCEEDED else {}
    if job.started_at is not None:
        phases["queue"] = job.started_at - job.created_at
    if job.finished_at is not None:
        phases["total"] = job.finished_at - job.created_at
    return {phase: round(1000 * seconds, 1) for phase, seconds in phases.items()}
