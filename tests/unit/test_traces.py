"""Traces: a job as a span with its phases inside; nothing is imported or sent where no setting asks for it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from daguerre import catalog, recipe
from daguerre.errors import SettingsError
from daguerre.job import Failure, Job, Status, Timings, new_id
from daguerre.telemetry import traces

WEIGHTS = Path(__file__).parents[2] / "weights"
TIMINGS = Timings(queue=2.0, encode=0.5, denoise=3.0, decode=0.25, png=0.25)


def _job(**fields: Any) -> Job:
    draft = recipe.parse({"prompt": "a canary in a mine", "seed": 3})
    whole = recipe.resolve(draft, catalog.read(WEIGHTS, "demo-xl").model(), 0, {})
    given: dict[str, Any] = {"id": new_id(), "recipe": whole, "created_at": 100.0, "request_id": "mine"}
    return Job(**given | fields)


def _spans(*jobs: Job) -> list[Any]:
    exporter = InMemorySpanExporter()
    made = traces.Traces(exporter)
    for job in jobs:
        made.changed(job)
    made.close()
    return sorted(
        exporter.get_finished_spans(), key=lambda span: (span.start_time, -span.end_time, span.parent is not None)
    )


def _times(spans: list[Any]) -> list[tuple[str, float, float]]:
    return [(span.name, span.start_time / 1e9, span.end_time / 1e9) for span in spans]


def test_a_job_is_a_span_with_its_phases_inside() -> None:
    """One after another, of the job's own times; with what it was, and not with its prompt."""
    queued, running = _job(), _job(status=Status.RUNNING, started_at=102.0)
    done = _job(status=Status.SUCCEEDED, started_at=102.0, finished_at=106.0, timings=TIMINGS, device_seconds=3.5)
    spans = _spans(queued, running, done)
    assert _times(spans) == [
        ("job", 100.0, 106.0),
        ("queue", 100.0, 102.0),
        ("encode", 102.0, 102.5),
        ("denoise", 102.5, 105.5),
        ("decode", 105.5, 105.75),
        ("png", 105.75, 106.0),
    ]
    whole = spans[0]
    assert {span.parent.span_id for span in spans[1:]} == {whole.context.span_id}
    assert whole.attributes["daguerre.job_id"] == done.id
    assert whole.attributes["daguerre.request_id"] == "mine"
    assert whole.attributes["daguerre.device_seconds"] == 3.5
    assert "canary" not in str([span.to_json() for span in spans])


def test_phases_of_several_pictures_stay_inside_their_job() -> None:
    """They overlap, so that they add up to more than the time that there was."""
    timings = Timings(queue=2.0, encode=2.0, denoise=12.0, decode=1.0, png=1.0)
    spans = _spans(_job(status=Status.SUCCEEDED, started_at=102.0, finished_at=106.0, timings=timings))
    assert _times(spans)[-1] == ("png", 105.75, 106.0)


def test_a_job_that_failed_says_why() -> None:
    """By its code; one that never began has only waited."""
    error = Failure("timeout", "too late")
    spans = _spans(_job(status=Status.FAILED, finished_at=106.0, error=error))
    assert _times(spans) == [("job", 100.0, 106.0), ("queue", 100.0, 106.0)]
    assert not spans[0].status.is_ok
    assert spans[0].status.description == "timeout"


def test_without_the_package_the_start_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a line."""
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(SettingsError, match=r"daguerre\[otel\]"):
        traces.sent_to("http://127.0.0.1:1/v1/traces")


def test_a_collector_that_is_not_there_holds_nobody_up() -> None:
    """Neither who tells of a job nor the end."""
    made = traces.sent_to("http://127.0.0.1:1/v1/traces")
    made.changed(_job(status=Status.SUCCEEDED, started_at=102.0, finished_at=106.0, timings=TIMINGS))
    made.close()


def test_nothing_is_imported_where_no_setting_asks_for_it() -> None:
    """The whole server is there without OpenTelemetry."""
    code = "import sys, daguerre.app; daguerre.app.Daguerre(daguerre.app.Settings()); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not [name for name in loaded if name.startswith("opentelemetry")]
