"""Running out of memory costs time, not pictures; and a run can be painted again from its denoiser's outputs."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import tiny
import torch
from harness import THIRD_PARTY, Darkroom, assert_parity, count_forwards, job, paint_all, plain_rows

from daguerre.catalog import Catalog
from daguerre.engine.pipelines import Timer, load
from daguerre.engine.rendezvous import Call, Meeting, Run
from daguerre.engine.replay import Record, Records
from daguerre.errors import OutOfMemory
from daguerre.samplers import DIFFUSION

pytestmark = THIRD_PARTY


@contextlib.contextmanager
def _no_memory(for_class: str, when: Any) -> Iterator[list[int]]:
    """Modules of that class run out of memory when the test says so; gives how often they did."""
    failed: list[int] = []

    def refuse(module: torch.nn.Module, args: Any) -> None:
        if type(module).__name__ == for_class and when(args[0], len(failed)):
            failed.append(int(args[0].shape[0]))
            raise torch.OutOfMemoryError("out of memory (made by the test)")

    handle = torch.nn.modules.module.register_module_forward_pre_hook(refuse)
    try:
        yield failed
    finally:
        handle.remove()


def test_out_of_memory_in_a_step_makes_the_sets_smaller(models: Catalog) -> None:
    """Calls that do not fit together are computed in smaller sets, and every picture is right."""
    jobs = [job(models.model("sd15"), "a bridge", seed=seed, steps=12) for seed in range(6)]
    with _no_memory("ResnetBlock2D", lambda sample, _: sample.shape[0] > 4) as failed:
        outcomes, rows = paint_all(jobs)
    assert_parity(jobs, outcomes)
    assert max(rows) <= 6
    assert len(failed) <= 2  # learned, not tried again and again


def test_one_request_that_never_fits_fails_alone(models: Catalog) -> None:
    """A picture too large for the device ends with ``out_of_memory``; the others are painted."""
    large = job(models.model("sd15"), "a bridge", width=64, height=64)
    others = [job(models.model("sd15"), "a bridge", seed=seed) for seed in (1, 2)]
    # In the UNet, whose calls have two rows, at the 32² latents of the large picture.
    with _no_memory("ResnetBlock2D", lambda sample, _: sample.shape[0] == 2 and sample.shape[-1] == tiny.SIDE):
        outcomes, _ = paint_all([large, *others])
    assert isinstance(outcomes[large.id].error, OutOfMemory)
    assert_parity(others, {other.id: outcomes[other.id] for other in others})


def test_out_of_memory_while_decoding_denoises_nothing_again(models: Catalog) -> None:
    """The picture is decoded from the kept outputs: right, and without another forward."""
    jobs = [job(models.model("sd15"), "a bridge", seed=seed, steps=5) for seed in range(2)]
    with _no_memory("Decoder", lambda _, failures: failures == 0) as failed:
        outcomes, rows = paint_all(jobs)
    assert len(failed) == 1
    assert_parity(jobs, outcomes)
    guided = 2
    assert sum(rows) == guided * sum(_forwards(j.recipe.scheduler, 5) for j in jobs)


def test_a_picture_that_cannot_be_decoded_fails_alone(models: Catalog) -> None:
    """Not in tiles either: ``out_of_memory`` after two tries, without another forward; the next picture is right."""
    bad, good = (job(models.model("sd15"), "a bridge", seed=seed) for seed in range(2))
    with Darkroom() as darkroom:
        with _no_memory("Decoder", lambda *_: True) as failed, count_forwards() as rows:
            outcome = darkroom.paint(bad)
        assert isinstance(outcome.error, OutOfMemory)
        assert len(failed) == 2
        assert rows == plain_rows(bad)
        assert_parity([good], {good.id: darkroom.paint(good)})


def _forwards(sampler: str, steps: int) -> int:
    return steps + 1 if sampler == "pndm" else steps


@pytest.mark.parametrize("sampler", sorted(DIFFUSION))
def test_a_run_is_painted_again_from_its_record(models: Catalog, sampler: str) -> None:
    """The same bytes, and the denoiser is not called."""
    submission = job(models.model("sd15"), "a bridge", scheduler=sampler, steps=6)
    pipeline = load(submission.model, torch.float32)
    Meeting(pipeline.denoiser)
    record = Record(Records())

    def run() -> Run:
        return Run(lambda: pipeline.paint(submission.recipe, None, None, 0, lambda *_: None, Timer()), ("sd15",))

    with torch.no_grad():
        first = run()
        reached = first.resume()
        while isinstance(reached, Call):
            (output,) = reached.meeting.forward([reached], reached.rows)
            record.keep(output)
            reached = first.resume(output)
        assert record.rewind()
        with count_forwards() as rows:
            second = run()
            again = second.resume()
            while isinstance(again, Call):
                again = second.resume(record.answer(torch.device("cpu")))
    assert rows == []
    assert again.array().tobytes() == reached.array().tobytes()


def test_records_are_bounded() -> None:
    """A record that finds no room answers nothing and holds nothing; what is dropped makes room."""
    records = Records(budget=1000)
    one, other = Record(records), Record(records)
    one.keep((torch.zeros(200),))  # 800 bytes
    other.keep((torch.zeros(100),))
    assert records.held == 800
    assert one.rewind()
    assert not other.rewind()
    one.drop()
    assert records.held == 0
