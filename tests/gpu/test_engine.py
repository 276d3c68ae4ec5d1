"""The engine on an accelerator: `make test-gpu`. Nothing here has run where there is none, and nothing claims to."""

from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest

from daguerre import catalog, recipe
from daguerre.engine import Engine, ModelReady, Options, Painted, RunEnded, Submission

pytestmark = pytest.mark.gpu

WEIGHTS = Path(__file__).parent.parent.parent / "weights"


@pytest.fixture(autouse=True)
def _needs_cuda() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")


def _paint(device: str, dtype: str, fields: list[dict[str, Any]], max_runs: int = 16) -> tuple[list[Any], ModelReady]:
    """The pictures of these recipes, submitted at once, and what the engine said of the model."""
    model = catalog.read(WEIGHTS, "demo-xl").model()
    events: SimpleQueue[Any] = SimpleQueue()
    engine = Engine(events.put, Options(device, dtype, max_runs))
    for number, given in enumerate(fields):
        engine.submit(Submission(str(number), recipe.resolve(recipe.parse(given), model, 0, {}), model))
    engine.start(model)
    pictures: dict[str, Any] = {}
    ready = None
    while len(pictures) < len(fields):
        match events.get():
            case ModelReady() as ready:
                pass
            case Painted() as painted:
                pictures[painted.job_id] = painted.pixels.array()
            case RunEnded(error=error):
                raise error
    assert engine.close(10)
    assert ready is not None
    return [pictures[str(number)] for number in range(len(fields))], ready


def _fields(count: int) -> list[dict[str, Any]]:
    return [
        {"prompt": "a red circle on a blue background", "seed": seed, "steps": 4 + seed, "width": 128, "height": 128}
        for seed in range(count)
    ]


def test_auto_takes_the_card_and_bfloat16() -> None:
    """The device and the dtype that ``auto`` means here."""
    _, ready = _paint("auto", "auto", _fields(1))
    assert ready.device.startswith("cuda")
    assert ready.dtype in ("bfloat16", "float16")


def test_the_card_paints_what_the_processor_paints() -> None:
    """In float32 the same recipe gives the same picture on both, to a few levels."""
    on_card, _ = _paint("cuda", "float32", _fields(3))
    on_processor, _ = _paint("cpu", "float32", _fields(3))
    for one, other in zip(on_card, on_processor, strict=True):
        assert np.abs(one.astype(int) - other.astype(int)).mean() < 2


def test_a_batch_equals_its_runs_alone() -> None:
    """Sharing forwards changes a float32 picture by rounding only."""
    together, _ = _paint("cuda", "float32", _fields(6))
    alone, _ = _paint("cuda", "float32", _fields(6), max_runs=1)
    for one, other in zip(together, alone, strict=True):
        assert np.abs(one.astype(int) - other.astype(int)).max() <= 2


def test_reproducible_bytes_do_not_depend_on_neighbours() -> None:
    """The same recipe, alone and among others: the same bytes."""
    wanted = {**_fields(1)[0], "reproducible": True}
    (alone,), _ = _paint("cuda", "auto", [wanted])
    among, _ = _paint("cuda", "auto", [wanted, *_fields(6)])
    assert np.array_equal(alone, among[0])


def test_memory_is_given_back() -> None:
    """After a second round of pictures the card holds what it held after the first."""
    import torch

    _paint("cuda", "auto", _fields(4))
    torch.cuda.empty_cache()
    first = torch.cuda.memory_allocated()
    _paint("cuda", "auto", _fields(4))
    torch.cuda.empty_cache()
    assert torch.cuda.memory_allocated() <= first + 16 * 1024**2
