"""Tuning changes how fast pictures come, not what they show; what forwards take outlives the process."""

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from harness import THIRD_PARTY, Darkroom, assert_same, job, plain

from daguerre.catalog import Catalog, Model
from daguerre.engine import ModelLoading, Tuning
from daguerre.engine.notebook import Notebook
from daguerre.engine.pipelines import load
from daguerre.engine.rendezvous import Meeting
from daguerre.engine.scheduler import BUCKETS, Curve
from daguerre.engine.tuning import Compile
from daguerre.engine.warmup import warm_up

pytestmark = THIRD_PARTY

CPU = torch.device("cpu")
HAS_COMPILER = shutil.which("g++") or shutil.which("clang++")


def _small(model: Model) -> Model:
    """The same, whose pictures are small unless a recipe says otherwise."""
    return msgspec.structs.replace(model, native_size=(64, 64))


@pytest.mark.parametrize("name", ["sd15", "sdxl", "flux"])
def test_channels_last_paints_the_same(models: Catalog, name: str) -> None:
    """To rounding."""
    one = job(models.model(name), "a heron")
    with Darkroom(tuning=Tuning(channels_last=True)) as darkroom:
        assert_same(darkroom.paint(one).exact, plain(one))


@pytest.mark.long
@pytest.mark.skipif(not HAS_COMPILER, reason="torch.compile needs a C++ compiler on the CPU")
@pytest.mark.filterwarnings("ignore")  # torch's compiler has much to say
@pytest.mark.parametrize("how", ["regional", "full"])
@pytest.mark.parametrize("name", ["sd15", "flux"])
def test_a_compiled_denoiser_paints_the_same(models: Catalog, name: str, how: Compile, tmp_path: Path) -> None:
    """In company and alone; it is compiled before the model is ready."""
    jobs = [job(_small(models.model(name)), "a heron", seed=seed, width=64, height=64) for seed in range(3)]
    with Darkroom(tuning=Tuning(compile=how, cache=tmp_path), patience=500) as darkroom:
        darkroom.submit(*jobs)
        outcomes = darkroom.outcomes()
        assert any(isinstance(event, ModelLoading) and event.stage == "warming up" for event in darkroom.events)
    for one in jobs:
        assert_same(outcomes[one.id].exact, plain(one))


@pytest.fixture
def _same_threads() -> Iterator[None]:
    """Whoever sets them for one thread sets what later threads begin with."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_same_threads")
def test_the_engine_thread_uses_the_threads_it_is_told(models: Catalog) -> None:
    """OpenMP's number of threads is each thread's own, so it is asked for there."""
    used: set[int] = set()
    with Darkroom(tuning=Tuning(threads=3), react=lambda *_: used.add(torch.get_num_threads())) as darkroom:
        darkroom.paint(job(models.model("sd15"), "a heron"))
        used.clear()
        darkroom.paint(job(models.model("sd15"), "a heron"))
    assert used == {3}


@pytest.mark.parametrize("name", ["sd15", "flux", "auraflow"])
def test_a_warm_up_measures_every_bucket(models: Catalog, name: str) -> None:
    """Where calls of the model can share forwards at all."""
    pipeline = load(_small(models.model(name)), torch.float32)
    Meeting(pipeline.denoiser)
    curve = Curve()
    with torch.no_grad():
        warm_up(pipeline, curve, CPU)
    measured = [sorted(map(int, buckets)) for buckets in curve.dump()["seconds"].values()]
    first = {"sd15": 2, "flux": 1}.get(name)
    assert measured == ([] if first is None else [[size for size in BUCKETS if size >= first]])


def test_a_warm_up_that_runs_out_of_memory_sets_the_limit(models: Catalog) -> None:
    """And the model serves all the same."""

    def refuse(module: torch.nn.Module, args: Any) -> None:
        if type(module).__name__ == "ResnetBlock2D" and args[0].shape[0] > 4:
            raise torch.OutOfMemoryError("out of memory (made by the test)")

    pipeline = load(_small(models.model("sd15")), torch.float32)
    Meeting(pipeline.denoiser)
    curve = Curve()
    handle = torch.nn.modules.module.register_module_forward_pre_hook(refuse)
    try:
        with torch.no_grad():
            warm_up(pipeline, curve, CPU)
    finally:
        handle.remove()
    assert list(curve.dump()["limits"].values()) == [4]


def test_what_was_learned_outlives_the_engine(
    models: Catalog, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The next one reads it."""
    caplog.set_level(logging.WARNING)
    for _ in range(2):
        with Darkroom(notes=tmp_path) as darkroom:
            darkroom.paint(job(models.model("sd15"), "a heron", steps=8))
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("cpu-1-float32-")
    assert json.loads(path.read_text())["seconds"]
    assert not caplog.records
    assert Notebook(tmp_path, CPU, torch.float32).read().dump() == json.loads(path.read_text())


@pytest.mark.parametrize("content", ["", "[]", '{"seconds": {"a": 1}}', "\0"])
def test_a_notebook_that_cannot_be_read_is_begun_anew(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    """And says so, without the folder's name."""
    notebook = Notebook(tmp_path, CPU, torch.float32)
    notebook.count()
    notebook.write(Curve(), least=1)
    (path,) = tmp_path.iterdir()
    path.write_text(content)
    with caplog.at_level(logging.WARNING):
        assert notebook.read().dump() == Curve().dump()
    assert len(caplog.records) == 1
    assert str(tmp_path) not in caplog.text


def test_a_notebook_without_a_place_is_no_failure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A full disk must not end the engine."""
    (tmp_path / "file").touch()
    notebook = Notebook(tmp_path / "file", CPU, torch.float32)
    notebook.count()
    notebook.write(Curve(), least=1)
    assert "could not be kept" in caplog.text
