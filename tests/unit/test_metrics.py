"""The metrics: what the engine counted, labels from fixed sets, and what is told of jobs as they change."""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from daguerre import catalog, recipe
from daguerre.embeddings import Embeddings
from daguerre.engine import Engine, ModelReady, Options, Painted, Stepped
from daguerre.errors import BadOutput, DaguerreError, InvalidRecipe, JobFailed, OutOfMemory
from daguerre.job import Image, Job, Status, Timings
from daguerre.jobs.acceptance import Limits
from daguerre.jobs.deadlines import Timeouts
from daguerre.jobs.service import JobService
from daguerre.jobs.sources import Sources
from daguerre.jobs.watch import Watch
from daguerre.loras import Loras
from daguerre.references import References
from daguerre.store.db import Database
from daguerre.store.files import Files
from daguerre.store.jobs import JobRows
from daguerre.telemetry.counters import Counters, Memory
from daguerre.telemetry.lag import EVERY, LoopLag
from daguerre.telemetry.logs import Logs
from daguerre.telemetry.metrics import MODELS, Metrics
from daguerre.telemetry.progress import Progress
from daguerre.telemetry.request import request_id

WEIGHTS = Path(__file__).parents[2] / "weights"
FIELDS = {"prompt": "a canary\r\nin a mine", "width": 64, "height": 64, "steps": 4, "seed": 3}
IMAGE = Image("a.png", 3, 64, 64, "png", 10, "")


def _read(metrics: Metrics) -> dict[str, float]:
    """Every series with its value, as Prometheus reads them."""
    families = text_string_to_metric_families(metrics.text().decode())
    return {
        f"{sample.name}{json.dumps(sample.labels, sort_keys=True) if sample.labels else ''}": sample.value
        for family in families
        for sample in family.samples
    }


class _NoPixels:
    def array(self) -> object:
        raise BadOutput


class Scene:
    """A service whose engine never begins: events are told to the watch by hand, as the engine would emit them."""

    def __init__(self, folder: Path, *, log_prompts: bool = False) -> None:
        self.database = Database(folder / "daguerre.db")
        files = Files(folder / "outputs")
        self.service = JobService(
            catalog.read(WEIGHTS, "demo-xl"),
            Loras(WEIGHTS),
            JobRows(self.database),
            files,
            lambda _id, _error: None,
            sources=Sources(References(WEIGHTS), Embeddings(WEIGHTS)),
            limits=Limits(100, 0),
            timeouts=Timeouts(60, 60, 60),
            result_ttl=60,
        )
        self.metrics = Metrics(Counters())
        self.progress = Progress()
        engine = Engine(lambda _event: None, Options(step_timeout=77.0))
        logs = Logs(progress=self.progress)
        self.watch = Watch(self.service, engine, files, self.metrics, logs, log_prompts=log_prompts)
        self.service.listen(self.watch.changed)

    async def paint(self, **fields: object) -> Job:
        """A job from its acceptance to its picture."""
        job = await self.service.submit(recipe.parse(FIELDS | fields), client="ada", is_attached=False)
        self.service.began(job.id)
        for step in range(1, 5):
            self.service.changed(job.id, step=step, steps=4)
            self.watch.receive(Stepped(job.id, 0, step, 4))
        self.watch.receive(Painted(job.id, 0, _NoPixels(), 0.1, 0.5, 0.1, tokens=77))  # type: ignore[arg-type]
        timings = Timings(queue=0.01, encode=0.1, denoise=0.5, decode=0.1, png=0.02)
        await self.service.succeeded(
            job.id, images=(IMAGE,), timings=timings, device_seconds=0.7, memory_peak=3 * 2**20
        )
        done = self.service.find(job.id)
        assert done is not None
        return done


def _play(folder: Path, play: Callable[[Scene], Awaitable[None]], *, log_prompts: bool = False) -> Scene:
    async def scene() -> Scene:
        made = Scene(folder, log_prompts=log_prompts)
        try:
            await play(made)
        finally:
            await asyncio.to_thread(made.database.close)
        return made

    return asyncio.run(scene())


def test_a_job_is_counted_from_its_acceptance_to_its_pictures(tmp_path: Path) -> None:
    """Each number that a picture leaves behind, and each once."""

    async def play(scene: Scene) -> None:
        await scene.paint()
        scene.watch.receive(ModelReady("demo-xl", "cpu", "float32", 2.0))
        scene.watch.look(is_ready=True)

    found = _read(_play(tmp_path, play).metrics)
    model = '{"model": "demo-xl"}'
    assert found['image_generation_requests_total{"mode": "txt2img", "model": "demo-xl"}'] == 1
    assert found[f"image_generation_duration_seconds_count{model}"] == 1
    assert found["image_generation_queue_size"] == 0
    assert found["tokens_consumed_total"] == 77
    assert found['daguerre_prompt_cache_requests_total{"outcome": "miss"}'] == 1
    assert found[f"daguerre_steps_total{model}"] == 4
    assert found[f"daguerre_steps_per_second_sum{model}"] == 8
    assert found[f"daguerre_images_total{model}"] == 1
    assert found[f"daguerre_job_device_seconds_total{model}"] == 0.7
    assert found["daguerre_queue_wait_seconds_count"] == 1
    for phase, seconds in {"queue": 0.01, "encode": 0.1, "denoise": 0.5, "decode": 0.1, "png": 0.02}.items():
        assert found[f'daguerre_phase_seconds_sum{{"model": "demo-xl", "phase": "{phase}"}}'] == seconds
    assert found['daguerre_jobs{"state": "succeeded"}'] == 1
    assert found['daguerre_jobs_ended_total{"state": "succeeded"}'] == 1
    for at in ("accepted", "started"):
        assert found[f'daguerre_eta_ratio_count{{"at": "{at}"}}'] == 1
        assert found[f'daguerre_eta_error_seconds_count{{"at": "{at}"}}'] == 1
    assert found[f"daguerre_model_switches_total{model}"] == 1
    assert found["daguerre_model_switch_seconds_sum"] == 2
    assert found["daguerre_watchdog_limit_seconds"] == 77
    assert found["daguerre_disk_free_bytes"] > 0
    assert found["daguerre_ready"] == 1
    assert sum(value for name, value in found.items() if name.startswith("image_generation_failures_total")) == 0


def test_a_forecast_is_held_against_what_happened(tmp_path: Path) -> None:
    """A forecast of twice the time has a ratio of two; the error is the seconds between."""

    async def play(scene: Scene) -> None:
        job = await scene.service.submit(recipe.parse(FIELDS), is_attached=False)
        scene.service.began(job.id)
        eta = scene.service.place(job).eta
        began = time.time()
        scene.service.changed(job.id, status=Status.SUCCEEDED, finished_at=began + eta / 2)

    found = _read(_play(tmp_path, play).metrics)
    assert found['daguerre_eta_ratio_sum{"at": "started"}'] == pytest.approx(2, rel=0.5)


def test_jobs_that_end_otherwise_are_counted_by_why(tmp_path: Path) -> None:
    """Under codes that exist; a cancelled one is no failure."""
    ends = [OutOfMemory(), JobFailed(), InvalidRecipe([])]

    async def play(scene: Scene) -> None:
        for error in ends:
            job = await scene.service.submit(recipe.parse(FIELDS), is_attached=False)
            scene.service.failed(job.id, error)
        job = await scene.service.submit(recipe.parse(FIELDS), is_attached=False)
        scene.service.cancel(job.id)

    found = _read(_play(tmp_path, play).metrics)
    for error in ends:
        assert found[f'image_generation_failures_total{{"code": "{error.code}"}}'] == 1
    assert found['image_generation_failures_total{"code": "cancelled"}'] == 0
    assert found['daguerre_jobs_ended_total{"state": "failed"}'] == 3
    assert found['daguerre_jobs_ended_total{"state": "cancelled"}'] == 1


def test_a_job_taken_up_again_is_no_second_request(tmp_path: Path) -> None:
    """Neither one that the process before left, nor one that this one puts back."""

    async def leave(scene: Scene) -> None:
        await scene.service.submit(recipe.parse(FIELDS), is_attached=False)
        await scene.service.settled()

    async def recover(scene: Scene) -> None:
        await scene.service.recover()
        (job,) = scene.service.unfinished
        scene.service.began(job.id)
        await scene.service.drain(0.0)

    assert (
        _read(_play(tmp_path, leave).metrics)['image_generation_requests_total{"mode": "txt2img", "model": "demo-xl"}']
        == 1
    )
    assert not [name for name in _read(_play(tmp_path, recover).metrics) if "generation_requests_total" in name]


@pytest.mark.parametrize("log_prompts", [False, True])
def test_each_change_of_a_job_is_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture, *, log_prompts: bool) -> None:
    """With what is known by then; with the prompt only where a setting says so."""
    caplog.set_level(logging.INFO)

    async def play(scene: Scene) -> None:
        token = request_id.set("the-request")
        await scene.paint()
        request_id.reset(token)
        job = await scene.service.submit(recipe.parse(FIELDS), is_attached=False)
        scene.service.failed(job.id, OutOfMemory())

    _play(tmp_path, play, log_prompts=log_prompts)
    lines = [record.fields for record in caplog.records if hasattr(record, "fields")]
    assert [line["status"] for line in lines] == ["queued", "running", "succeeded", "queued", "failed"]
    done = lines[2]
    assert done["request_id"] == "the-request"
    assert (done["client"], done["model_id"], done["seed"], done["vram_peak_mb"]) == ("ada", "demo-xl", 3, 3)
    assert done["safety_filter_result"] is None
    assert set(done["latency_ms"]) == {"queue", "encode", "denoise", "decode", "png", "total"}
    assert done["latency_ms"]["denoise"] == 500
    assert set(lines[1]["latency_ms"]) == {"queue"}
    assert lines[4]["error"] == "out_of_memory"
    assert lines[4]["request_id"] is None
    assert {"prompt" in line for line in lines} == {log_prompts}
    assert ("canary" in json.dumps(lines) + caplog.text) == log_prompts


def test_progress_follows_running_jobs(tmp_path: Path) -> None:
    """A line while a job runs, none when it has ended."""

    async def play(scene: Scene) -> None:
        job = await scene.service.submit(recipe.parse(FIELDS), is_attached=False)
        scene.service.began(job.id)
        scene.service.changed(job.id, step=3, steps=4)
        scene.watch.receive(Stepped(job.id, 0, 3, 4))
        assert "3/4" in scene.progress.draw(80, 24)
        scene.service.cancel(job.id)
        assert scene.progress.draw(80, 24) == ""

    _play(tmp_path, play)


def test_what_the_engine_counted_is_told() -> None:
    """Its rows as a histogram; the rest as they are."""
    counters = Counters(forward_seconds=2.5, preemptions=3, out_of_memory=1, lora_switches=2)
    counters.forwards.update({1: 4, 2: 3, 7: 2, 40: 1})
    counters.memory = Memory(10, 20, 30)
    found = _read(Metrics(counters))
    assert found['daguerre_forward_rows_bucket{"le": "1.0"}'] == 4
    assert found['daguerre_forward_rows_bucket{"le": "2.0"}'] == 7
    assert found['daguerre_forward_rows_bucket{"le": "6.0"}'] == 7
    assert found['daguerre_forward_rows_bucket{"le": "8.0"}'] == 9
    assert found['daguerre_forward_rows_bucket{"le": "+Inf"}'] == found["daguerre_forward_rows_count"] == 10
    assert found["daguerre_forward_rows_sum"] == 4 + 6 + 14 + 40
    assert found["daguerre_forward_seconds_total"] == 2.5
    assert found["daguerre_preemptions_total"] == 3
    assert found["daguerre_out_of_memory_total"] == 1
    assert found["daguerre_lora_switches_total"] == 2
    assert found['daguerre_device_memory_bytes{"kind": "reserved"}'] == 20
    assert found["process_resident_memory_bytes"] > 0


def test_labels_are_bounded() -> None:
    """A weights folder that changes for years, and codes that nobody knows."""
    metrics = Metrics(Counters())
    names = {metrics.model(f"model {number}") for number in range(1000)}
    assert len(names) == MODELS + 1
    assert metrics.model("model 3") == "model 3"
    assert metrics.model("model 999") == "other"
    assert metrics.code("out_of_memory") == "out_of_memory"
    assert metrics.code("x" * 1000) == "other"
    assert metrics.code(DaguerreError.code) == "internal_error"


def test_a_model_s_name_cannot_forge_a_series() -> None:
    """Whatever a folder is called."""
    metrics = Metrics(Counters())
    name = 'a"} 7\nforged_total 1\n\\'
    metrics.steps.labels(metrics.model(name)).inc()
    assert 'daguerre_steps_total{"model": ' + json.dumps(name) + "}" in _read(metrics)
    assert "forged_total" not in [line.split(" ")[0] for line in metrics.text().decode().splitlines()]


def test_the_loop_s_lag_is_measured() -> None:
    """A loop that is held up for as long shows it."""
    seen: list[float] = []

    async def play() -> None:
        lag = LoopLag(seen.append)
        time.sleep(EVERY + 0.1)  # noqa: ASYNC251 - that is what is measured
        await asyncio.sleep(0.01)
        lag.close()
        await asyncio.sleep(EVERY * 2)

    asyncio.run(play())
    assert len(seen) == 1
    assert seen[0] >= 0.1
