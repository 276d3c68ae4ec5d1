"""Owns the metrics: what Prometheus may ask for, in a registry of our own.

No label's values come from a client: they are routes of our table, names of the catalogue, members of fixed sets, and
``other``. docs/metrics.md says of each metric what it means.
"""

from collections.abc import Iterator
from typing import get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from daguerre.errors import DaguerreError, Forbidden, JobEnded, Reason
from daguerre.job import SafetyResult, Status
from daguerre.telemetry.counters import Counters
from daguerre.version import __version__

#: Models that metrics tell apart; further ones are ``other``, since a weights folder can change for years.
MODELS = 50
OTHER = "other"

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "WEBSOCKET"})
#: What is wrong with credentials, and good ones that do not reach far enough.
REFUSALS = (*get_args(Reason), Forbidden.code)
PHASES = ("queue", "encode", "denoise", "decode", "png")

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_ANSWERS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 10, 60)
_LAGS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
_RATES = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)
_RATIOS = (0.25, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2, 4)
_ROWS = (1, 2, 4, 6, 8, 12, 16)


def codes(kind: type[DaguerreError] = JobEnded) -> set[str]:
    """What errors of this kind are called."""
    return {kind.code} if not kind.__subclasses__() else {kind.code}.union(*map(codes, kind.__subclasses__()))


class Metrics:
    """What is counted as it happens. Used on the event loop; ``text`` can be called on any thread."""

    def __init__(self, counters: Counters) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = one = CollectorRegistry()
        self._models: set[str] = set()
        self._codes = codes(DaguerreError)
        ProcessCollector(registry=one)
        one.register(_Engine(counters))
        # What requirement E names.
        self.requests = Counter("image_generation_requests", "Jobs accepted", ["model", "mode"], registry=one)
        self.duration = Histogram(
            "image_generation_duration_seconds",
            "From a job's acceptance to its pictures",
            ["model"],
            registry=one,
            buckets=_SECONDS,
        )
        self.queue_size = Gauge("image_generation_queue_size", "Jobs that wait", registry=one)
        self.failures = Counter("image_generation_failures", "Jobs that failed", ["code"], registry=one)
        self.tokens = Counter("tokens_consumed", "Tokens that text encoders read, padding included", registry=one)
        # Jobs.
        self.jobs = Gauge("daguerre_jobs", "Jobs that are kept, by their state", ["state"], registry=one)
        self.ended = Counter("daguerre_jobs_ended", "Jobs that ended", ["state"], registry=one)
        self.images = Counter("daguerre_images", "Pictures delivered", ["model"], registry=one)
        self.safety_checks = Counter(
            "daguerre_safety_checks", "Pictures shown to the safety checker", ["result"], registry=one
        )
        self.queue_limit = Gauge("daguerre_queue_limit", "Jobs that may wait", registry=one)
        self.queue_wait = Histogram(
            "daguerre_queue_wait_seconds",
            "From a job's acceptance to its beginning",
            registry=one,
            buckets=_SECONDS,
        )
        self.phases = Histogram(
            "daguerre_phase_seconds", "Of finished jobs", ["phase", "model"], registry=one, buckets=_SECONDS
        )
        self.eta_error = Histogram(
            "daguerre_eta_error_seconds",
            "How far the forecast was from what happened",
            ["at"],
            registry=one,
            buckets=_SECONDS,
        )
        self.eta_ratio = Histogram(
            "daguerre_eta_ratio", "The forecast divided by what happened", ["at"], registry=one, buckets=_RATIOS
        )
        # Painting.
        self.steps = Counter("daguerre_steps", "Steps done", ["model"], registry=one)
        self.rate = Histogram(
            "daguerre_steps_per_second", "Of each picture while it denoises", ["model"], registry=one, buckets=_RATES
        )
        self.prompt_cache = Counter("daguerre_prompt_cache_requests", "Prompts looked up", ["outcome"], registry=one)
        self.switches = Counter("daguerre_model_switches", "Models brought to the device", ["model"], registry=one)
        self.switch_seconds = Histogram(
            "daguerre_model_switch_seconds", "Until a model was on the device", registry=one, buckets=_SECONDS
        )
        self.absent = Counter("daguerre_model_failures", "Models that could not be loaded", registry=one)
        self.device_seconds = Counter("daguerre_job_device_seconds", "Of delivered pictures", ["model"], registry=one)
        # The machine and the process.
        self.ready = Gauge("daguerre_ready", "Whether a picture asked for now would be painted", registry=one)
        self.disk_free = Gauge("daguerre_disk_free_bytes", "Of the disk of the pictures", registry=one)
        self.loop_lag = Histogram(
            "daguerre_event_loop_lag_seconds", "How late timers are called", registry=one, buckets=_LAGS
        )
        self.step_age = Gauge("daguerre_watchdog_step_seconds", "How long the step at hand has taken", registry=one)
        self.step_limit = Gauge("daguerre_watchdog_limit_seconds", "How long a step may take", registry=one)
        self.log_dropped = Counter("daguerre_log_lines_dropped", "Log lines that could not be written", registry=one)
        build = Gauge("daguerre_build_info", "The version that runs", ["version"], registry=one)
        # HTTP.
        self.answers = Counter(
            "daguerre_http_requests", "Requests answered", ["method", "route", "status"], registry=one
        )
        self.answer_seconds = Histogram(
            "daguerre_http_request_seconds", "Until the answer was sent", ["route"], registry=one, buckets=_ANSWERS
        )
        self.refused = Counter("daguerre_auth_refused", "Credentials refused", ["reason"], registry=one)
        build.labels(__version__).set(1)
        self._name_fixed_sets()

    def _name_fixed_sets(self) -> None:
        """Series of fixed sets are there from the beginning: a rate over one that appears with its first event is 0."""
        for code in sorted(codes()):
            self.failures.labels(code)
        for state in Status:
            self.jobs.labels(state)
            if state.is_final:
                self.ended.labels(state)
        for reason in REFUSALS:
            self.refused.labels(reason)
        for result in get_args(SafetyResult):
            self.safety_checks.labels(result)
        for outcome in ("hit", "miss"):
            self.prompt_cache.labels(outcome)
        for at in ("accepted", "started"):
            self.eta_error.labels(at)
            self.eta_ratio.labels(at)

    def model(self, name: str) -> str:
        """The label of a model of the catalogue."""
        if name not in self._models and len(self._models) < MODELS:
            self._models.add(name)
        return name if name in self._models else OTHER

    def code(self, name: str) -> str:
        """The label of an error's code."""
        return name if name in self._codes else OTHER

    def text(self) -> bytes:
        """Everything as Prometheus reads it."""
        return generate_latest(self.registry)


class _Engine(Collector):
    """The engine's own counters, read when they are asked for."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters

    def describe(self) -> Iterator[Metric]:
        return self.collect()

    def collect(self) -> Iterator[Metric]:
        counters = self._counters
        yield _forward_rows(dict(counters.forwards))
        for name, help_text, value in (
            ("daguerre_forward_seconds", "Seconds of forwards on the device", counters.forward_seconds),
            ("daguerre_preemptions", "Pictures that stood aside between two forwards", counters.preemptions),
            ("daguerre_out_of_memory", "Forwards that ran out of memory", counters.out_of_memory),
            ("daguerre_lora_switches", "Changes of the LoRAs that a denoiser wears", counters.lora_switches),
        ):
            yield CounterMetricFamily(name, help_text, value)
        adapters = CounterMetricFamily(
            "daguerre_adapter_cache_requests", "LoRAs looked for in host memory", labels=["outcome"]
        )
        adapters.add_metric(["hit"], counters.adapter_hits)
        adapters.add_metric(["miss"], counters.adapter_misses)
        yield adapters
        memory = GaugeMetricFamily("daguerre_device_memory_bytes", "Of the device", labels=["kind"])
        for kind in ("allocated", "reserved", "total"):
            memory.add_metric([kind], getattr(counters.memory, kind))
        yield memory


def _forward_rows(forwards: dict[int, int]) -> HistogramMetricFamily:
    family = HistogramMetricFamily("daguerre_forward_rows", "Rows of each forward of the denoiser, without padding")
    buckets = [
        (f"{float(limit)}", float(sum(count for rows, count in forwards.items() if rows <= limit))) for limit in _ROWS
    ]
    total = sum(rows * count for rows, count in forwards.items())
    family.add_metric([], [*buckets, ("+Inf", float(sum(forwards.values())))], total)
    return family
