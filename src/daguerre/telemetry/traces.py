"""Owns traces: a span for each job and for each of its phases, sent by OpenTelemetry where a setting says where to."""

import threading
from typing import Any

import msgspec

from daguerre.errors import SettingsError
from daguerre.job import Job
from daguerre.version import __version__

#: Seconds in which spans are sent, and in which the last ones are when the server ends.
SEND, FLUSH = 5.0, 2.0


class Traces:
    """A job's spans are made at its end, of its own times: nothing is kept while it runs, and a restart loses none."""

    def __init__(self, exporter: Any) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        resource = Resource.create({"service.name": "daguerre", "service.version": __version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("daguerre")

    def changed(self, job: Job) -> None:
        """A job's state is another one than before."""
        from opentelemetry.trace import Status, StatusCode, set_span_in_context

        if job.finished_at is None:
            return
        whole = self._tracer.start_span("job", start_time=_nanoseconds(job.created_at), attributes=_attributes(job))
        inside = set_span_in_context(whole)
        for phase, begin, end in _phases(job):
            span = self._tracer.start_span(phase, inside, start_time=_nanoseconds(begin))
            span.end(_nanoseconds(end))
        if job.error is not None:
            whole.set_status(Status(StatusCode.ERROR, job.error.code))
        whole.end(_nanoseconds(job.finished_at))

    def close(self) -> None:
        """Sends what waits, as far as that is quick."""
        ending = threading.Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        ending.join(FLUSH)


def sent_to(endpoint: str) -> Traces:
    """Traces that go to a collector, by OTLP over HTTP.

    Raises:
        SettingsError: OpenTelemetry is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise SettingsError("setting 'traces_endpoint' needs OpenTelemetry: pip install 'daguerre[otel]'") from None
    return Traces(OTLPSpanExporter(endpoint, timeout=SEND))


def _phases(job: Job) -> list[tuple[str, float, float]]:
    """The phases of a job with their Unix seconds; those of several pictures are drawn together into its own time."""
    assert job.finished_at is not None
    began = job.started_at
    if began is None:
        return [("queue", job.created_at, job.finished_at)]
    spans, at = [("queue", job.created_at, began)], began
    painting = msgspec.structs.asdict(job.timings)
    painting.pop("queue")
    total = sum(painting.values())
    scale = min(1.0, (job.finished_at - began) / total) if total > 0 else 0.0
    for phase, seconds in painting.items():
        if seconds > 0:
            spans.append((phase, at, at + scale * seconds))
            at += scale * seconds
    return spans


def _attributes(job: Job) -> dict[str, str | int | float]:
    recipe = job.recipe
    return {
        "daguerre.job_id": job.id,
        "daguerre.request_id": job.request_id,
        "daguerre.status": job.status.value,
        "daguerre.model": recipe.model,
        "daguerre.mode": recipe.mode,
        "daguerre.width": recipe.width,
        "daguerre.height": recipe.height,
        "daguerre.steps": recipe.steps,
        "daguerre.count": recipe.count,
        "daguerre.device_seconds": job.device_seconds,
    }


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
