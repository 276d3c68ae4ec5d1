"""One bad request in a batch of eight fails alone, wherever it fails; the seven others are right."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import THIRD_PARTY, Darkroom, assert_parity, job, paint_all, plain
from lorafiles import ATTENTION, diffusers_lora, layers
from test_adapters import Shelf, pipe_of

from daguerre.catalog import Catalog, Model
from daguerre.engine import ModelReady
from daguerre.engine.painter import FAILURES
from daguerre.errors import BadOutput, InvalidRecipe, JobFailed

pytestmark = THIRD_PARTY

#: Steps of the poisoned picture, which no other has, and a timestep of theirs that no other meets.
STEPS, MARK = 4, 251


@contextlib.contextmanager
def _hook(for_class: str, act: Callable[[torch.Tensor, Any], Any]) -> Iterator[None]:
    """``act`` sees every input and output of the modules of that class; what it gives replaces the output."""

    def on_forward(module: torch.nn.Module, args: Any, output: Any) -> Any:
        return act(args[0], output) if type(module).__name__ == for_class else None

    handle = torch.nn.modules.module.register_module_forward_hook(on_forward)
    try:
        yield
    finally:
        handle.remove()


def _raise_at_the_mark(timesteps: torch.Tensor, _: Any) -> None:
    if bool((timesteps == MARK).any()):
        raise RuntimeError("made by the test")


def _spoil_at_the_mark(timesteps: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    return torch.where((timesteps == MARK)[:, None], torch.nan, output)


def _raise_once() -> Callable[[torch.Tensor, Any], None]:
    seen: list[bool] = []

    def act(*_: Any) -> None:
        seen.append(True)
        if len(seen) == 1:
            raise RuntimeError("made by the test")

    return act


POISONS: dict[str, tuple[dict[str, Any], Callable[[], contextlib.AbstractContextManager[None]], type[Exception]]] = {
    "in the prologue": ({"scheduler": "lcm", "steps": 60}, contextlib.nullcontext, JobFailed),
    "in a step": ({"steps": STEPS}, lambda: _hook("Timesteps", _raise_at_the_mark), JobFailed),
    "not a number": ({"steps": STEPS}, lambda: _hook("Timesteps", _spoil_at_the_mark), BadOutput),
    # The poisoned picture has the fewest steps, so it is the first to be decoded.
    "in decode": ({"steps": 1}, lambda: _hook("Decoder", _raise_once()), JobFailed),
}


@pytest.mark.parametrize("where", POISONS)
def test_one_in_eight_fails_alone(models: Catalog, where: str) -> None:
    """They share forwards, its error is its own, and the others equal the plain calls."""
    model = models.model("sd15")
    options, poison, error = POISONS[where]
    good = [job(model, "a heron", seed=seed, scheduler="euler", steps=3) for seed in range(7)]
    bad = job(model, "a crane", **{"scheduler": "euler"} | options)
    with poison():
        outcomes, rows = paint_all([*good[:4], bad, *good[4:]])
    assert type(outcomes[bad.id].error) is error
    assert_parity(good, {one.id: outcomes[one.id] for one in good})
    assert max(rows) > 2


@pytest.mark.parametrize("harm", ["other shapes", "not a number"])
def test_a_bad_lora_in_eight_fails_alone(models: Catalog, tmp_path: Path, harm: str) -> None:
    """Its file is no longer the one that was accepted: the picture that wears it fails, no other."""
    shelf = Shelf(tmp_path, models.model("sd15").path.parent)
    own, other = (pipe_of(shelf.catalog.model(name)).unet for name in ("sd15", "sdxl"))
    tensors = diffusers_lora({"unet": layers(own, ATTENTION)})
    shelf.put("style", tensors)
    bad = shelf.job("sd15", "a crane", {"style": 0.8}, scheduler="euler", steps=3)
    if harm == "other shapes":
        tensors = diffusers_lora({"unet": layers(other, ATTENTION)})
    else:
        next(iter(tensors.values()))[0, 0] = torch.nan
    shelf.put("style", tensors)
    good = [shelf.job("sd15", "a heron", seed=seed, scheduler="euler", steps=3) for seed in range(7)]
    outcomes, rows = paint_all([*good[:4], bad, *good[4:]])
    error = outcomes[bad.id].error
    assert isinstance(error, InvalidRecipe)
    assert [problem.field for problem in error.errors] == ["loras"]
    assert_parity(good, {one.id: outcomes[one.id] for one in good})
    assert max(rows) > 2


def test_the_mark_is_the_poisoned_ones_alone(models: Catalog) -> None:
    """Else the tests above would poison more than one, or none."""
    model = models.model("sd15")
    seen: dict[int, set[float]] = {}
    for steps in (3, STEPS):
        met = seen[steps] = set()
        with _hook("Timesteps", lambda timesteps, _, met=met: met.update(timesteps.tolist())):
            plain(job(model, "a heron", scheduler="euler", steps=steps))
    assert MARK in seen[STEPS]
    assert MARK not in seen[3]


def test_a_model_that_fails_again_and_again_is_loaded_anew(models: Catalog) -> None:
    """Something in memory may be broken that a fresh read mends; a picture in between starts the count again."""
    model = models.model("sd15")
    with Darkroom() as darkroom:
        first = darkroom.paint(job(model, "a heron")).picture
        for _ in range(2):
            _fail(darkroom, model, FAILURES - 1)
            assert darkroom.paint(job(model, "a heron")).error is None
        before = _loads(darkroom)
        _fail(darkroom, model, FAILURES)
        again = darkroom.paint(job(model, "a heron")).picture
        assert (before, _loads(darkroom)) == (1, 2)
    assert (first == again).all()


def _fail(darkroom: Darkroom, model: Model, times: int) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("made by the test")

    with _hook("Timesteps", refuse):
        for _ in range(times):
            assert type(darkroom.paint(job(model, "a crane")).error) is JobFailed


def _loads(darkroom: Darkroom) -> int:
    return sum(isinstance(event, ModelReady) for event in darkroom.events)
