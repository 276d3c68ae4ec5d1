"""The lives of runs: cancelled, failing, of a broken model, or ended with the engine, and none of them left over."""

import gc
import logging
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tiny
import torch
from harness import THIRD_PARTY, Darkroom, Outcome, assert_parity, assert_same, job, paint_all, plain
from safetensors.torch import load_file, save_file

from daguerre.catalog import Catalog, Model
from daguerre.engine import Engine, Event, ModelAbsent, Painted, RunEnded, Started, Stepped, Submission
from daguerre.engine.painting import Painting
from daguerre.engine.rendezvous import Run
from daguerre.errors import BadOutput, CatalogError, InvalidRecipe, JobCancelled, JobFailed, JobTimeout

pytestmark = THIRD_PARTY


@pytest.mark.parametrize("name", tiny.BUILDERS)
def test_cancel_at_every_step(models: Catalog, name: str) -> None:
    """A run ends at the step it is told to, and the next picture is that of an engine that never saw it."""
    model, steps = models.model(name), 4
    stop: dict[str, int] = {}

    def react(engine: Engine, event: Event) -> None:
        match event:
            case Started(job_id=job_id) if stop.get(job_id) == 0:
                engine.cancel(job_id)
            case Stepped(job_id=job_id, step=step) if stop.get(job_id) == step:
                engine.cancel(job_id)

    expected = plain(job(model, "a heron", seed=3))
    with Darkroom() as fresh:
        alone = fresh.paint(job(model, "a heron", seed=3)).picture
    with Darkroom(react=react) as darkroom:
        for step in range(steps):
            cancelled, neighbour = job(model, "a crane", steps=steps), job(model, "a heron", seed=3)
            stop[cancelled.id] = step
            darkroom.submit(cancelled, neighbour)
            outcomes = darkroom.outcomes()
            assert isinstance(outcomes[cancelled.id].error, JobCancelled)
            assert [event.step for event in outcomes[cancelled.id].steps] == list(range(1, step + 1))
            assert_same(outcomes[neighbour.id].exact, expected)
            assert darkroom.paint(job(model, "a heron", seed=3)).picture.tobytes() == alone.tobytes()


def test_cancel_after_the_last_step_comes_too_late(models: Catalog) -> None:
    """The picture is there, and no second end follows."""

    def react(engine: Engine, event: Event) -> None:
        if isinstance(event, Stepped) and event.step == event.steps:
            engine.cancel(event.job_id)

    model = models.model("sd15")
    with Darkroom(react=react) as darkroom:
        outcome = darkroom.paint(job(model, "a heron"))
        darkroom.paint(job(model, "a crane"))
    darkroom.rest()
    assert outcome.error is None
    assert outcome.ends == 1


def test_a_job_is_cancelled_with_all_its_pictures(models: Catalog) -> None:
    """Those under way and those still waiting end together, once, with the error that was given."""

    def react(engine: Engine, event: Event) -> None:
        if isinstance(event, Stepped) and event.index == 0 and event.step == 2:
            engine.cancel(event.job_id, JobTimeout())

    with Darkroom(max_runs=2, react=react) as darkroom:
        outcome = darkroom.paint(job(models.model("sd15"), "a heron", count=5, steps=4))
        darkroom.wait(lambda: outcome.is_over)
    darkroom.rest()
    assert isinstance(outcome.error, JobTimeout)
    assert (outcome.ends, outcome.pictures) == (1, {})


def test_cancel_while_the_model_is_loading(models: Catalog) -> None:
    """A job that has not begun ends at once; one that nobody knows is left as it is."""
    model = models.model("sd15")
    darkroom = Darkroom()
    cancelled, kept = job(model, "a heron"), job(model, "a crane")
    darkroom.submit(cancelled, kept)
    darkroom.engine.cancel(cancelled.id)
    darkroom.engine.cancel("nobody's")
    with darkroom:
        outcomes = darkroom.outcomes()
    assert isinstance(outcomes[cancelled.id].error, JobCancelled)
    assert_parity([kept], outcomes)
    assert not any(isinstance(event, Started) and event.job_id == cancelled.id for event in darkroom.events)


def _fails_alone(bad: Submission, model: Model, error: type[Exception]) -> Outcome:
    """Paints it among good ones, which must not notice."""
    good = [job(model, "a heron", seed=seed, steps=2 + seed) for seed in range(2)]
    outcomes, _ = paint_all([good[0], bad, good[1]])
    assert_parity(good, outcomes)
    outcome = outcomes[bad.id]
    assert type(outcome.error) is error
    return outcome


@pytest.mark.parametrize("prompt", ['("a", "b").blend(x)', '("a", "b").and(1)'])
@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_a_prompt_that_compel_cannot_read_fails_alone(models: Catalog, name: str, prompt: str) -> None:
    """It is the client's error, and names the field."""
    model = models.model(name)
    outcome = _fails_alone(job(model, prompt, prompt_syntax="compel"), model, InvalidRecipe)
    assert [error.field for error in outcome.error.errors] == ["prompt"]


@pytest.mark.parametrize("name", ["flux", "auraflow"])
def test_clip_skip_where_there_is_none_fails_alone(models: Catalog, name: str) -> None:
    """The client is told which field it is."""
    model = models.model(name)
    outcome = _fails_alone(job(model, "a crane", clip_skip=1), model, InvalidRecipe)
    assert [error.field for error in outcome.error.errors] == ["clip_skip"]


def test_a_scheduler_that_refuses_fails_alone(models: Catalog) -> None:
    """LCM cannot do more steps than it was distilled from."""
    model = models.model("sd15")
    _fails_alone(job(model, "a crane", scheduler="lcm", steps=60), model, JobFailed)


def test_a_size_that_the_pipeline_refuses_fails_alone(models: Catalog) -> None:
    """What the service lets through and the pipeline does not."""
    model = models.model("sd3")
    bad = job(model, "a crane")
    bad = Submission(bad.id, msgspec.structs.replace(bad.recipe, width=33), model)
    _fails_alone(bad, model, JobFailed)


def test_a_picture_of_a_count_that_fails_ends_the_whole_job_once(models: Catalog) -> None:
    """Not once for each picture."""
    model = models.model("sd15")
    darkroom = Darkroom(max_runs=2)
    bad = job(model, "a crane", scheduler="lcm", steps=60, count=4)
    darkroom.submit(bad)
    with darkroom:
        darkroom.outcomes()
    outcome = darkroom.rest()[bad.id]
    assert type(outcome.error) is JobFailed
    assert outcome.ends == 1


def _copy(model: Model, folder: Path) -> Model:
    shutil.copytree(model.path, folder)
    return msgspec.structs.replace(model, name=folder.name, path=folder)


def _missing(model: Model, folder: Path) -> Model:
    return msgspec.structs.replace(model, name=folder.name, path=folder)


def _unknown_class(model: Model, folder: Path) -> Model:
    return msgspec.structs.replace(_copy(model, folder), pipeline="NobodysPipeline")


def _no_json(model: Model, folder: Path) -> Model:
    broken = _copy(model, folder)
    (folder / "unet" / "config.json").write_text("{")
    return broken


def _no_weights(model: Model, folder: Path) -> Model:
    broken = _copy(model, folder)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    return broken


def _cut_weights(model: Model, folder: Path) -> Model:
    broken = _copy(model, folder)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return broken


def _no_text_encoder(model: Model, folder: Path) -> Model:
    broken = _copy(model, folder)
    path = folder / "model_index.json"
    index = msgspec.json.decode(path.read_bytes())
    path.write_bytes(msgspec.json.encode(index | {"text_encoder": [None, None]}))
    return broken


def _no_denoiser(model: Model, folder: Path) -> Model:
    """A pipeline that diffusers loads, and that has neither a UNet nor a transformer."""
    tiny.write_prior(folder)
    return msgspec.structs.replace(model, name=folder.name, path=folder, pipeline="StableCascadePriorPipeline")


def _no_unet(model: Model, folder: Path) -> Model:
    broken = _copy(model, folder)
    path = folder / "model_index.json"
    index = msgspec.json.decode(path.read_bytes())
    path.write_bytes(msgspec.json.encode(index | {"unet": [None, None]}))
    return broken


@pytest.mark.parametrize(
    "spoil",
    [
        _missing,
        _unknown_class,
        _no_json,
        _no_weights,
        _cut_weights,
        _no_text_encoder,
        _no_unet,
        _no_denoiser,
    ],
)
def test_a_broken_model_fails_its_own_jobs(
    models: Catalog, tmp_path: Path, spoil: Callable[[Model, Path], Model]
) -> None:
    """Every job of it ends with an error that says so, the engine lives on, and the model may be asked for again."""
    model = models.model("sd15")
    broken = spoil(model, tmp_path / "broken")
    good = job(model, "a heron")
    bad = [job(broken, "a crane", seed=seed) for seed in range(2)]
    with Darkroom() as darkroom:
        darkroom.submit(bad[0], good, bad[1])
        outcomes = darkroom.outcomes()
        assert isinstance(darkroom.paint(job(broken, "a crane")).error, CatalogError)
        assert darkroom.paint(job(model, "a heron")).error is None
    assert_parity([good], outcomes)
    for submission in bad:
        assert isinstance(outcomes[submission.id].error, CatalogError)
    assert any(isinstance(event, ModelAbsent) and event.model == "broken" for event in darkroom.events)


@pytest.mark.parametrize(("part", "value"), [("unet", 1e38), ("vae", 1e38), ("vae", -1e3)])
def test_a_model_whose_pictures_are_none(models: Catalog, tmp_path: Path, part: str, value: float) -> None:
    """Too large weights give not-a-number, a low last bias black: its jobs are told why, other models' are right."""
    model = models.model("sd15")
    broken = _copy(model, tmp_path / "broken")
    path = broken.path / part / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    spoiled = weights if value > 0 else {"decoder.conv_out.bias": weights["decoder.conv_out.bias"]}
    weights |= {name: torch.full_like(weight, value) for name, weight in spoiled.items()}
    save_file(weights, path, {"format": "pt"})
    outcome = _fails_alone(job(broken, "a crane"), model, BadOutput)
    assert outcome.error.code == "bad_output"
    assert "VAE run in float16" in outcome.error.message


def test_a_closed_engine_leaves_no_threads(models: Catalog) -> None:
    """And with them no weights: whoever has engines one after the other does not pay for all of them."""
    before = set(threading.enumerate())
    with Darkroom() as darkroom:
        darkroom.paint(job(models.model("sd15"), "a heron"))
    assert _settles_at(lambda: len(set(threading.enumerate()) - before), 0)


@pytest.mark.parametrize("why", ["cancelled", "failed", "refused"])
def test_the_error_of_an_event_holds_no_frames(models: Catalog, why: str) -> None:
    """Jobs are kept long after their end, with their errors: those must not keep a pipeline's tensors on the device."""

    def react(engine: Engine, event: Event) -> None:
        if why == "cancelled" and isinstance(event, Stepped):
            engine.cancel(event.job_id)

    options: dict[str, dict[str, Any]] = {
        "cancelled": {},
        "failed": {"scheduler": "lcm", "steps": 60},
        "refused": {"prompt": '("a", "b").blend(x)', "prompt_syntax": "compel"},
    }
    with Darkroom(react=react) as darkroom:
        error = darkroom.paint(job(models.model("sd15"), **{"prompt": "a crane"} | options[why])).error
    assert error is not None
    assert error.__traceback__ is None


def _living(*kinds: type) -> int:
    gc.collect()
    return sum(type(thing) in kinds for thing in gc.get_objects())


def _settles_at(count: Callable[[], int], most: int) -> bool:
    """The engine thread lets go of the last run a moment after it told its end."""
    until = time.monotonic() + 5
    while count() > most:
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


class Script:
    """A seeded play: at each event of its jobs, one more is submitted, or one is cancelled, or nothing is done."""

    def __init__(self, model: Model, seed: int) -> None:
        self._chance = random.Random(seed)
        self._rest = [self._job(model) for _ in range(self._chance.randint(1, 4))]
        self.jobs = list(self._rest)

    def _job(self, model: Model) -> Submission:
        chance = self._chance
        options: dict[str, Any] = {"steps": chance.randint(1, 3), "count": chance.randint(1, 2)}
        if chance.random() < 0.2:
            options = {"scheduler": "lcm", "steps": 60}  # fails
        elif chance.random() < 0.2:
            options["guidance_scale"] = 1.0
        return job(model, chance.choice(["a fox", "an owl"]), seed=chance.randrange(100), **options)

    def begin(self, darkroom: Darkroom) -> None:
        """Submits the first."""
        darkroom.expect(*self.jobs)
        darkroom.engine.submit(self._rest.pop())

    def react(self, engine: Engine, event: Event) -> None:
        """Goes on."""
        may_be_last = isinstance(event, RunEnded | Painted)
        if self._rest and (may_be_last or self._chance.random() < 0.5):
            engine.submit(self._rest.pop())
        if self._chance.random() < 0.25:
            engine.cancel(self._chance.choice(self.jobs).id)


def test_two_hundred_plays_leave_nothing_alive(models: Catalog, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever is submitted, cancelled, finished and failed in whatever order: every job ends once, and is gone."""
    already = _living(Run, Painting)  # pytest keeps the frames of tests that failed as they should
    caplog.set_level(logging.CRITICAL, "daguerre")  # pytest keeps what is logged, and with it the frames of failures
    model, script = models.model("sd15"), None
    acts = [Script(model, seed) for seed in range(220)]

    def react(engine: Engine, event: Event) -> None:
        if script is not None and isinstance(event, Started | Stepped | Painted | RunEnded):
            script.react(engine, event)

    def tensors() -> int:
        return _living(torch.Tensor, torch.nn.Parameter)

    with Darkroom(max_runs=3, react=react) as darkroom:
        for number, script in enumerate(acts):
            script.begin(darkroom)
            outcomes = darkroom.outcomes()
            darkroom.events.clear()  # they hold pictures
            if number == 20:
                assert _settles_at(lambda: _living(Run, Painting), already)
                before = tensors()
        assert _settles_at(lambda: _living(Run, Painting), already)
        assert _settles_at(tensors, before)
    outcomes = darkroom.rest()
    assert all(outcome.ends == 1 for outcome in outcomes.values())
    for outcome in outcomes.values():
        assert outcome.error is not None or len(outcome.pictures) == outcome.submission.recipe.count
    kinds = {type(outcome.error) for outcome in outcomes.values()}
    assert kinds == {type(None), JobCancelled, JobFailed}


def test_close_ends_runs_that_are_alive(models: Catalog) -> None:
    """Within seconds, with one end for each job, those that had not begun too."""
    model = models.model("sd15")
    already = _living(Run, Painting)
    jobs = [job(model, "a heron", steps=150, seed=seed, count=2) for seed in range(4)]
    darkroom = Darkroom(max_runs=3)
    darkroom.submit(*jobs)
    darkroom.engine.start()
    darkroom.wait(lambda: any(isinstance(event, Stepped) for event in darkroom.events))
    began = time.monotonic()
    assert darkroom.engine.close(10)
    assert time.monotonic() - began < 5
    outcomes = darkroom.rest()
    for outcome in outcomes.values():
        assert isinstance(outcome.error, JobCancelled)
        assert outcome.ends == 1
    assert _settles_at(lambda: _living(Run, Painting), already)


def test_close_while_the_model_is_loading(models: Catalog) -> None:
    """Nobody waits for the weights."""
    darkroom = Darkroom()
    submission = job(models.model("sdxl"), "a heron")
    darkroom.submit(submission)
    with darkroom:
        pass
    assert isinstance(darkroom.rest()[submission.id].error, JobCancelled)


def test_events_come_from_the_engine_thread(models: Catalog) -> None:
    """All of them, so that whoever takes them needs no lock."""
    model = models.model("sd15")
    with Darkroom() as darkroom:
        darkroom.paint(job(model, "a heron"))
        darkroom.paint(job(model, "a crane", scheduler="lcm", steps=60))
        darkroom.paint(job(msgspec.structs.replace(model, name="none", pipeline="NobodysPipeline"), "a crane"))
    kinds = {"ModelLoading", "ModelReady", "ModelAbsent", "Started", "Stepped", "Painted", "RunEnded"}
    assert set(darkroom.threads) == kinds
    assert set().union(*darkroom.threads.values()) == {"daguerre-engine"}


def test_steps_are_told_in_order(models: Catalog) -> None:
    """Every picture's steps from the first to the last, each after its job has started."""
    submission = job(models.model("sdxl"), "a heron", steps=4, count=2)
    with Darkroom() as darkroom:
        outcome = darkroom.paint(submission)
    for index in range(2):
        told = [(event.step, event.steps) for event in outcome.steps if event.index == index]
        assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    kinds = [type(event) for event in darkroom.events if getattr(event, "job_id", "") == submission.id]
    assert kinds[0] is Started
    assert kinds.count(Started) == 1


@pytest.mark.parametrize("module", ["daguerre.engine", "daguerre.app", "daguerre"])
def test_importing_loads_no_torch(module: str) -> None:
    """The port is open long before torch is in."""
    program = f"import sys, {module}; sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_a_forward_that_fails_for_several_pictures_of_a_job(models: Catalog) -> None:
    """The first that fails ends the job, with the others that waited for the same forward; the engine goes on."""

    def fail(module: torch.nn.Module, _args: object) -> None:
        if isinstance(module, torch.nn.Conv2d) and (module.in_channels, module.out_channels) == (4, 16):
            raise RuntimeError("this layer cannot be computed")

    model = models.model("sd15")
    with Darkroom() as darkroom:
        darkroom.paint(job(model, "a bridge"))
        handle = torch.nn.modules.module.register_module_forward_pre_hook(fail)
        failed = darkroom.paint(job(model, "a bridge", count=3))
        handle.remove()
        assert isinstance(failed.error, JobFailed)
        assert failed.ends == 1
        assert darkroom.paint(job(model, "a bridge")).picture.any()
