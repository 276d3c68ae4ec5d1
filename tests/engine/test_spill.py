"""A picture that a process had begun goes on in the next one, from the denoiser outputs on disk; to the same bytes."""

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import lorafiles
import msgspec
import pytest
import torch
from harness import THIRD_PARTY, Darkroom, Picture, count_forwards, job
from lorafiles import ATTENTION, layers

from daguerre import editions
from daguerre.catalog import Catalog
from daguerre.engine import Engine, Event, Stepped, Submission
from daguerre.engine.pipelines import load
from daguerre.engine.replay import Record, Records
from daguerre.engine.spill import Spilling
from daguerre.errors import DaguerreError, Draining, JobCancelled
from daguerre.loras import Adapter
from daguerre.samplers import DIFFUSION
from daguerre.store.spills import Spills

pytestmark = THIRD_PARTY

STEPS, DONE = 8, 5
#: Seconds after which what is new is written: never within a test, and after every step.
NEVER, ALWAYS = 3600.0, 1e-9


def _long(models: Catalog, model: str = "sd15", **fields: object) -> Submission:
    return replace(job(models.model(model), "a mill", steps=STEPS, **fields), is_durable=True)


def _leave(
    spills: Spills,
    submission: Submission,
    every: float = NEVER,
    error: DaguerreError | None = None,
    step: int = DONE,
) -> None:
    """A process that ends in the middle of this job, for that reason."""

    def react(engine: Engine, event: Event) -> None:
        if isinstance(event, Stepped) and event.step == step:
            engine.cancel(event.job_id, error or Draining())

    with Darkroom(react=react, spills=spills, spill_every=every) as darkroom:
        assert isinstance(darkroom.paint(submission).error, Draining if error is None else type(error))


def _go_on(spills: Spills, submission: Submission) -> tuple[Picture, int]:
    """The picture that the next process paints, and its forwards."""
    with Darkroom(spills=spills, spill_every=NEVER) as darkroom, count_forwards() as rows:
        return darkroom.paint(submission).picture, len(rows)


def _at_once(submission: Submission) -> tuple[Picture, int]:
    with Darkroom() as darkroom, count_forwards() as rows:
        return darkroom.paint(submission).picture, len(rows)


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*"))


@pytest.mark.parametrize("sampler", sorted(DIFFUSION))
def test_goes_on_in_the_next_process(models: Catalog, tmp_path: Path, sampler: str) -> None:
    """With every sampler: not a forward is computed twice, and nothing stays on the disk."""
    submission, spills = _long(models, scheduler=sampler), Spills(tmp_path)
    expected, forwards = _at_once(submission)
    _leave(spills, submission)
    picture, more = _go_on(spills, submission)
    assert picture.tobytes() == expected.tobytes()
    assert 0 < more <= forwards - DONE
    assert _parts(tmp_path) == []


@pytest.mark.parametrize("model", ["sdxl", "sd3", "flux", "auraflow"])
def test_goes_on_with_every_family(models: Catalog, tmp_path: Path, model: str) -> None:
    """Also one that is not in the table of denoisers."""
    submission, spills = _long(models, model), Spills(tmp_path)
    expected, forwards = _at_once(submission)
    _leave(spills, submission)
    picture, more = _go_on(spills, submission)
    assert picture.tobytes() == expected.tobytes()
    assert more == forwards - DONE


def test_what_was_written_meanwhile_is_enough(models: Catalog, tmp_path: Path) -> None:
    """A process that is killed says no goodbye: what is on the disk at that moment is what the next one has."""
    submission, killed = _long(models), Spills(tmp_path / "killed")
    expected, forwards = _at_once(submission)

    def react(_: Engine, event: Event) -> None:
        if isinstance(event, Stepped) and event.step == DONE:
            while len(list((tmp_path / "alive").glob("*/*.safetensors"))) < DONE:
                time.sleep(0.01)  # this is the engine's thread: another one writes
            shutil.copytree(tmp_path / "alive", tmp_path / "killed")

    with Darkroom(react=react, spills=Spills(tmp_path / "alive"), spill_every=ALWAYS) as darkroom:
        assert darkroom.paint(submission).picture.tobytes() == expected.tobytes()
    assert _parts(tmp_path / "alive") == []
    picture, more = _go_on(killed, submission)
    assert (picture.tobytes(), more) == (expected.tobytes(), forwards - DONE)


def test_in_several_parts(models: Catalog, tmp_path: Path) -> None:
    """A part for each time that something was written, by several processes; the last goes on from all of them."""
    submission, spills = _long(models), Spills(tmp_path)
    expected, forwards = _at_once(submission)
    _leave(spills, submission, every=ALWAYS)
    assert len(_parts(tmp_path)) == DONE
    picture, more = _go_on(spills, submission)
    assert (picture.tobytes(), more) == (expected.tobytes(), forwards - DONE)


def test_all_pictures_of_a_job(models: Catalog, tmp_path: Path) -> None:
    """Each from where it was: both processes together compute no more rows than one would."""
    submission, spills = _long(models, count=3), Spills(tmp_path)
    with Darkroom() as darkroom, count_forwards() as rows_at_once:
        expected = darkroom.paint(submission).pictures
    with count_forwards() as rows:
        _leave(spills, submission)
        with Darkroom(spills=spills, spill_every=NEVER) as darkroom:
            pictures = darkroom.paint(submission).pictures
    assert sum(rows) == sum(rows_at_once)
    assert all(pictures[index].tobytes() == expected[index].tobytes() for index in range(3))


@pytest.mark.parametrize("spoil", ["torn", "flipped", "missing"])
def test_what_is_not_whole_counts_for_nothing(models: Catalog, tmp_path: Path, spoil: str) -> None:
    """Nor what came after it: the picture goes on from what is before."""
    submission, spills = _long(models), Spills(tmp_path)
    expected, forwards = _at_once(submission)
    _leave(spills, submission, every=ALWAYS)
    third = _parts(tmp_path)[2]
    whole = third.read_bytes()
    if spoil == "torn":
        third.write_bytes(whole[:-7])
    elif spoil == "flipped":
        third.write_bytes(whole[:-7] + bytes([whole[-7] ^ 1]) + whole[-6:])
    else:
        third.unlink()
    picture, more = _go_on(spills, submission)
    assert (picture.tobytes(), more) == (expected.tobytes(), forwards - 2)


def test_a_gap_is_not_closed_by_what_lay_behind_it(models: Catalog, tmp_path: Path) -> None:
    """Parts of other lengths than before are written from the gap on; those behind it answer no other call."""
    submission, spills = _long(models), Spills(tmp_path)
    expected, forwards = _at_once(submission)
    _leave(spills, submission, every=ALWAYS)
    _parts(tmp_path)[1].unlink()
    _leave(spills, submission, step=3)
    picture, more = _go_on(spills, submission)
    # One by one up to the gap, then two at once, and then those that were there before.
    assert (picture.tobytes(), more) == (expected.tobytes(), forwards - DONE)


def _other_weights(submission: Submission, tmp_path: Path) -> Submission:
    model = submission.model
    shutil.copytree(model.path, tmp_path / "other")  # the same, but who could tell without reading them
    return replace(submission, model=msgspec.structs.replace(model, path=tmp_path / "other").as_now())


def _with_a_lora(submission: Submission, tmp_path: Path) -> Submission:
    unet = layers(load(submission.model, torch.float32).denoiser, ATTENTION)
    path = lorafiles.write(tmp_path / "loras" / "ink.safetensors", lorafiles.diffusers_lora({"unet": unet}))
    return replace(submission, adapters=((Adapter("ink", path, editions.mark(path.stat())), 0.8),))


@pytest.mark.parametrize("change", [_other_weights, _with_a_lora])
def test_other_weights_begin_anew(
    models: Catalog, tmp_path: Path, change: Callable[[Submission, Path], Submission]
) -> None:
    """What was computed with others is not gone on from."""
    submission, spills = _long(models), Spills(tmp_path / "spills")
    _leave(spills, submission)
    changed = change(submission, tmp_path)
    expected, forwards = _at_once(changed)
    assert _go_on(spills, changed)[1] == forwards
    assert expected.shape


def test_jobs_that_ended_leave_nothing(models: Catalog, tmp_path: Path) -> None:
    """Neither cancelled ones, nor those that nobody will submit again."""
    spills = Spills(tmp_path)
    _leave(spills, _long(models), every=ALWAYS, error=JobCancelled())
    _leave(spills, replace(_long(models), is_durable=False), every=ALWAYS)
    assert _parts(tmp_path) == []


def test_a_disk_without_room_costs_nothing_else(models: Catalog, tmp_path: Path) -> None:
    """The picture is painted; it is told that it will begin anew."""
    (tmp_path / "file").write_text("in the way")
    submission = _long(models)
    expected, _ = _at_once(submission)
    with Darkroom(spills=Spills(tmp_path / "file"), spill_every=ALWAYS) as darkroom:
        assert darkroom.paint(submission).picture.tobytes() == expected.tobytes()


def test_only_unfinished_jobs_are_kept(tmp_path: Path) -> None:
    """The rest is what a crash has left between a picture and its end."""
    spills = Spills(tmp_path)
    for job_id in ("one", "other"):
        spills.write(job_id, 0, 0, b"data", b"weights")
    spills.keep_only({"one"})
    assert spills.read("one", 0, 0, b"weights") == b"data"
    assert spills.read("one", 0, 0, b"other weights") is spills.read("other", 0, 0, b"weights") is None


def test_a_record_from_disk_counts_like_any(tmp_path: Path) -> None:
    """It takes room among all records, and gives it back."""
    spilling = Spilling(Spills(tmp_path), NEVER)
    spill = spilling.of("job", 0, bytes)
    assert spill is not None
    spill.write([(torch.ones(2),), (torch.zeros(2), torch.ones(3))])
    spilling.close()
    records = Records()
    record = Record(records, Spilling(Spills(tmp_path), NEVER).of("job", 0, bytes))
    assert len(record) == 2
    assert records.held == (2 + 2 + 3) * 4
    record.drop()
    assert records.held == 0


def test_a_record_from_disk_that_finds_no_room_answers_nothing(tmp_path: Path) -> None:
    """Not even with those of its outputs that would find some."""
    spilling = Spilling(Spills(tmp_path), NEVER)
    spill = spilling.of("job", 0, bytes)
    assert spill is not None
    spill.write([(torch.ones(2),), (torch.zeros(50),), (torch.ones(2),)])
    spilling.close()
    records = Records(budget=100)
    record = Record(records, Spilling(Spills(tmp_path), NEVER).of("job", 0, bytes))
    assert record.answer(torch.device("cpu")) is None
    assert records.held == 0
