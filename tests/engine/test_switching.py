"""Several models in one engine: who is where, who makes room for whom, and that nothing is left behind."""

import gc
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from harness import THIRD_PARTY, Darkroom, assert_parity, job

from daguerre.catalog import Catalog
from daguerre.engine import Budgets, ModelAbsent, ModelLoading, ModelPlaced, ModelReady, Started
from daguerre.engine import residency as residency_module
from daguerre.engine.pipelines import load

pytestmark = THIRD_PARTY

NAMES = ("sd15", "sdxl", "flux")


def _moves(darkroom: Darkroom) -> list[tuple[str, str]]:
    """What was told of models, in order."""
    moves: list[tuple[str, str]] = []
    for event in darkroom.events:
        match event:
            case ModelLoading(model=name) if name:
                moves.append((name, "loading"))
            case ModelReady(model=name):
                moves.append((name, "device"))
            case ModelPlaced(model=name, place=place):
                moves.append((name, place))
    return moves


def _paint(darkroom: Darkroom, models: Catalog, names: list[str]) -> None:
    for name in names:
        submission = job(models.model(name), "a bridge")
        assert_parity([submission], {submission.id: darkroom.paint(submission)})


def test_models_that_fit_stay(models: Catalog) -> None:
    """Each is read once, however often they take turns."""
    with Darkroom() as darkroom:
        _paint(darkroom, models, [*NAMES, *NAMES])
    assert _moves(darkroom) == [(name, place) for name in NAMES for place in ("loading", "device")]


def test_on_a_small_device_models_take_turns_without_being_read_again(models: Catalog) -> None:
    """They wait in host memory, and the one used least recently makes room."""
    with Darkroom(budgets=Budgets(device=1)) as darkroom:
        _paint(darkroom, models, ["sd15", "sdxl", "sd15"])
    assert _moves(darkroom) == [
        ("sd15", "loading"), ("sd15", "device"),
        ("sdxl", "loading"), ("sd15", "host"), ("sdxl", "device"),
        ("sdxl", "host"), ("sd15", "device"),
    ]  # fmt: skip


def test_in_a_small_host_the_least_recently_used_model_is_let_go(models: Catalog) -> None:
    """Room is made before the next is read, so the budget holds while it is read."""
    two = load(models.model("sd15"), torch.float32).bytes + load(models.model("sdxl"), torch.float32).bytes
    with Darkroom(budgets=Budgets(host=two)) as darkroom:
        _paint(darkroom, models, ["sd15", "sdxl", "sd15", "sd21"])
    moves = _moves(darkroom)
    assert moves[4:] == [("sdxl", "disk"), ("sd21", "loading"), ("sd21", "device")]


def test_a_pinned_model_makes_no_room(models: Catalog) -> None:
    """The others take turns around it."""
    with Darkroom(budgets=Budgets(host=1, pinned=("sd15",))) as darkroom:
        _paint(darkroom, models, ["sd15", "sdxl", "flux", "sd15"])
    moves = _moves(darkroom)
    assert ("sdxl", "disk") in moves
    assert [place for name, place in moves if name == "sd15"] == ["loading", "device"]


def test_jobs_of_other_models_go_on_until_the_switch(models: Catalog) -> None:
    """Mixed traffic on a device for one model: every picture is right, and there are far fewer switches than jobs."""
    submissions = [job(models.model(NAMES[i % 3]), "a bridge", seed=i, steps=2 + i % 3) for i in range(18)]
    with Darkroom(budgets=Budgets(device=1), max_runs=4) as darkroom:
        darkroom.submit(*submissions)
        outcomes = darkroom.outcomes()
    assert_parity(submissions, outcomes)
    assert sum(place == "device" for _, place in _moves(darkroom)) <= 6


def test_no_model_waits_for_ever(models: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one model's jobs keep coming, another's job gets its turn: those that came later wait for it."""
    monkeypatch.setattr(residency_module, "TURN", 0.2)
    other = job(models.model("sdxl"), "a bridge")
    stream = [job(models.model("sd15"), "a bridge", seed=seed, steps=8) for seed in range(200)]
    with Darkroom(budgets=Budgets(device=1), max_runs=2) as darkroom:
        darkroom.submit(*stream[:10], other, *stream[10:])
        darkroom.wait(lambda: darkroom.is_over(other))
        begun = [event.job_id for event in darkroom.events if isinstance(event, Started)]
        for submission in stream:
            darkroom.engine.cancel(submission.id)
    assert other.id in begun
    assert len(begun) < len(stream)


def test_a_model_is_loaded_while_another_is_painted_with(models: Catalog) -> None:
    """The engine goes on stepping: between the first and the last word of the load there are steps."""
    painted = job(models.model("sd15"), "a bridge", steps=60)
    with Darkroom() as darkroom:
        darkroom.paint(job(models.model("sd15"), "a bridge"))
        darkroom.submit(painted)
        darkroom.wait(
            lambda: any(isinstance(event, Started) and event.job_id == painted.id for event in darkroom.events)
        )
        darkroom.engine.load(models.model("sdxl"))
        darkroom.wait(lambda: ("sdxl", "device") in _moves(darkroom))
        darkroom.outcomes()
    kinds = [type(event).__name__ for event in darkroom.events]
    begin = darkroom.events.index(ModelLoading("sdxl", "reading weights"))
    end = next(i for i, event in enumerate(darkroom.events) if isinstance(event, ModelReady) and event.model == "sdxl")
    assert "Stepped" in kinds[begin:end]


def test_unloading(models: Catalog) -> None:
    """An idle model is let go and read again when asked for; one that is painted with stays."""
    long = job(models.model("sd15"), "a bridge", steps=100)
    with Darkroom() as darkroom:
        _paint(darkroom, models, ["sdxl"])
        darkroom.submit(long)
        darkroom.wait(lambda: Started(long.id) in darkroom.events)
        darkroom.engine.unload("sd15")
        darkroom.engine.unload("sdxl")
        darkroom.wait(lambda: ("sdxl", "disk") in _moves(darkroom))
        assert ("sd15", "disk") not in _moves(darkroom)
        _paint(darkroom, models, ["sdxl"])
        assert not darkroom.outcomes()[long.id].error
    assert _moves(darkroom).count(("sdxl", "loading")) == 2


def test_switching_copies_nothing_where_the_device_is_the_host(models: Catalog) -> None:
    """The same bytes at the same place, whatever the word for it is."""
    pipeline = load(models.model("sd15"), torch.float32)
    places = [tensor.data_ptr() for tensor in pipeline.denoiser.parameters()]
    for _ in range(3):
        pipeline.to_device()
        pipeline.leave_device()
    assert [tensor.data_ptr() for tensor in pipeline.denoiser.parameters()] == places


def _tensors() -> int:
    gc.collect()
    return sum(issubclass(type(found), torch.Tensor) for found in gc.get_objects())


@pytest.mark.parametrize("budgets", [Budgets(host=1), Budgets(device=1)])
def test_memory_after_many_switches_is_what_it_was_after_two(models: Catalog, budgets: Budgets) -> None:
    """Every tensor that a model brought goes with it; a few of the last picture's may not have gone yet."""
    counts: list[int] = []
    with Darkroom(budgets=budgets) as darkroom:
        for _ in range(6):
            for name in ("sd15", "sdxl"):
                assert darkroom.paint(job(models.model(name), "a bridge", steps=1)).error is None
            darkroom.forget()
            counts.append(_tensors())
    switches = 2 * (len(counts) - 2)
    assert counts[-1] < counts[1] + switches, counts


def test_a_load_that_fails_fails_all_who_wait_for_it_at_once(models: Catalog, tmp_path: Path) -> None:
    """One load, one error told to each; the next job asks again."""
    gone = msgspec.structs.replace(models.model("sd15"), name="gone", path=tmp_path / "gone")
    jobs = [job(gone, "a bridge", seed=seed) for seed in range(5)]
    with Darkroom() as darkroom:
        darkroom.submit(*jobs)
        outcomes: dict[str, Any] = darkroom.outcomes()
        darkroom.paint(job(gone, "a bridge"))
    assert all(outcomes[submission.id].error is not None for submission in jobs)
    assert sum(isinstance(event, ModelAbsent) for event in darkroom.events) <= 3
