"""What the engine's tests share: the tiny models, and a process fit to run them."""

from collections.abc import Iterator

import numpy as np
import pytest
import tiny
import torch
from harness import FloatPixels, Paint, Picture, paint_all, paint_in_step

from daguerre import catalog
from daguerre.catalog import Catalog
from daguerre.engine import pipelines


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from a second thread, and lose a lot to it where the cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package", autouse=True)
def float_pixels() -> Iterator[None]:
    """What the engine paints is kept in floats too, for these are what is compared."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipelines, "HostPixels", FloatPixels)
        yield


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """A catalogue of all the tiny models."""
    weights = tmp_path_factory.mktemp("weights")
    tiny.write_all(weights)
    return catalog.read(weights, "sd15")


@pytest.fixture(scope="session")
def photograph() -> Picture:
    """A picture to start from: a slope of light with a dark square in it."""
    slope = np.linspace(0, 255, tiny.SIDE, dtype=np.uint8)
    picture = np.stack(np.broadcast_arrays(slope[:, None], slope[None, :], np.uint8(128)), axis=-1).copy()
    picture[10:20, 10:20] = 20
    return picture


@pytest.fixture(params=[paint_all, paint_in_step])
def paint(request: pytest.FixtureRequest) -> Paint:
    """Both ways to paint a set at one moment: by the engine, and with as much shared as can be."""
    way: Paint = request.param
    return way
