"""Previews: what the map makes of latents, when it is asked, and that asking changes no picture."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from diffusers import AutoencoderKL
from harness import THIRD_PARTY, Darkroom, job
from numpy.typing import NDArray
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from daguerre import catalog
from daguerre.catalog import Catalog
from daguerre.engine import Engine, Event, Stepped
from daguerre.engine.preview import Preview, _sample

pytestmark = THIRD_PARTY

WEIGHTS = Path(__file__).parents[2] / "weights"


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    """As on the engine thread."""
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def autoencoder() -> Any:
    """The embedded model's, which was trained."""
    return AutoencoderKL.from_pretrained(WEIGHTS / "demo-xl" / "vae")


def _likeness(one: NDArray[Any], other: NDArray[Any]) -> float:
    """The correlation of two pictures."""
    return float(np.corrcoef(one.astype(float).ravel(), other.astype(float).ravel())[0, 1])


def test_the_map_tells_colours(autoencoder: Any) -> None:
    """Of a picture that it was not fitted to."""
    preview = Preview(autoencoder, torch.device("cpu"))
    for colour in ((1.0, 0.1, 0.1), (0.1, 1.0, 0.1), (0.1, 0.1, 1.0), (0.9, 0.9, 0.9), (0.1, 0.1, 0.1)):
        plain = torch.tensor(colour).view(1, 3, 1, 1).expand(1, 3, 128, 128)
        latents = autoencoder.encode(2 * plain - 1).latent_dist.mode() * autoencoder.config.scaling_factor
        found = preview.rgb(latents)
        assert found.shape == (3, 16, 16)
        assert torch.allclose(found.mean((1, 2)), torch.tensor(colour), atol=0.2), (colour, found.mean((1, 2)))


def test_a_preview_looks_like_the_picture_to_come() -> None:
    """The embedded model's, towards its end, against the finished one in that size."""
    model = catalog.read(WEIGHTS, "demo-xl").model()
    with Darkroom() as darkroom:
        recipe = job(model, "a red circle on white", width=128, height=128, steps=12, preview_every=5)
        outcome = darkroom.paint(recipe)
    previews = {event.step: event.preview for event in outcome.steps if event.preview is not None}
    assert sorted(previews) == [5, 10]
    late = previews[10].array()
    small = np.asarray(Image.fromarray(outcome.picture).resize((16, 16), Image.Resampling.BOX))
    assert late.shape == (16, 16, 3)
    assert _likeness(late, small) > 0.8
    assert _likeness(late, small) > _likeness(previews[5].array(), small)


@pytest.mark.parametrize("name", tiny.BUILDERS)
def test_asking_changes_no_picture(models: Catalog, name: str) -> None:
    """Whatever the pipeline; and nobody is shown what nobody asked for, least of all the last step."""
    model = models.model(name)
    with Darkroom() as darkroom:
        asked = darkroom.paint(job(model, "a heron", preview_every=1, seed=4))
        silent = darkroom.paint(job(model, "a heron", seed=4))
    assert np.array_equal(asked.picture, silent.picture)
    assert [event.preview for event in silent.steps] == [None] * len(silent.steps)
    shown = [event.preview is not None for event in asked.steps]
    assert shown == [True] * (len(shown) - 1) + [False]


def test_a_look_has_one_preview_made(models: Catalog) -> None:
    """Of the picture that began first, at its next step; of a job that is over, or was never there, none."""
    submission = job(models.model("sdxl"), "a heron", steps=9, count=2)

    def look(engine: Engine, event: Event) -> None:
        if isinstance(event, Stepped) and (event.index, event.step) in ((0, 2), (0, 5), (1, 9)):
            engine.look(submission.id)
            engine.look("nobody's")

    with Darkroom(react=look) as darkroom:
        outcome = darkroom.paint(submission)
    shown = [(event.index, event.step) for event in outcome.steps if event.preview is not None]
    assert shown == [(0, 3), (0, 6)]


def test_it_never_waits_for_the_device(autoencoder: Any) -> None:
    """Reading a number back, or asking for places of things, would make the engine wait."""
    preview, (_, latents) = Preview(autoencoder, torch.device("cpu")), _sample(autoencoder, torch.device("cpu"))
    waiting = ("_local_scalar_dense", "nonzero", "item", "equal", "is_nonzero")
    called: list[str] = []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
            called.append(function.overloadpacket.__name__)
            return function(*args, **(kwargs or {}))

    with Watching():
        preview.rgb(latents)
    assert called
    assert not set(called) & set(waiting), called
