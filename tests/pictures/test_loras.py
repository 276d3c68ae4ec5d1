"""The two LoRAs that ship do what they say: a style and an object, by weight and by word, alone and together."""

import shutil
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from eye import Picture, difference, magenta, off_blueprint
from PIL import Image

from daguerre import Draft, Studio
from daguerre.recipe import LoraWish
from daguerre.settings import Settings

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.timeout(600),  # dozens of pictures, on machines that may be busy
]

WEIGHTS = Path(__file__).parents[2] / "weights"
#: What no caption of the training says like this.
PROMPTS = (
    "a quiet harbour town below tall mountains at sunset",
    "a lonely castle",
    "green hills under a wide summer sky",
    "a big yellow star on purple paper",
    "an old lighthouse at night",
)
VIEWS = tuple(prompt for prompt in PROMPTS if "star" not in prompt)
#: A picture is in the style below the one, and out of it above the other; an object is there above a share of pixels.
IN_STYLE, OUT_OF_STYLE, IS_THERE, IS_ABSENT = 20.0, 24.0, 0.01, 0.003

Paint = Callable[..., Picture]


@pytest.fixture(scope="module")
def paint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Paint]:
    """Paints in the real engine, 256² in 12 steps; "mute" is the balloon's file without trigger words."""
    weights = tmp_path_factory.mktemp("weights")
    (weights / "demo-xl").symlink_to(WEIGHTS / "demo-xl")
    shutil.copytree(WEIGHTS / "loras", weights / "loras")
    shutil.copy(weights / "loras" / "balloon.safetensors", weights / "loras" / "mute.safetensors")
    (weights / "catalog.toml").write_text("[loras.mute]\ntrigger_words = []\n")
    with Studio(Settings(device="cpu", weights=weights, outputs=tmp_path_factory.mktemp("outputs"))) as studio:

        def paint(prompt: str, seed: int, **loras: float) -> Picture:
            wishes = tuple(LoraWish(name, weight) for name, weight in loras.items())
            draft = Draft(prompt=prompt, seed=seed, loras=wishes, width=256, height=256, steps=12)
            (path,) = studio.generate(draft)
            with Image.open(path) as image:
                return np.asarray(image)

        yield paint


def test_a_weight_of_nothing_changes_nothing(paint: Paint) -> None:
    """The picture is the model's own, with the same words."""
    bare = paint("a lonely castle, blueprint", 3)
    assert difference(bare, paint("a lonely castle", 3, blueprint=0.0)) == 0


@pytest.mark.long
def test_the_style_is_there_by_its_weight(paint: Paint) -> None:
    """At 1 in nine pictures of ten, at 0 in none, at 0.5 in between; on prompts and seeds that it never saw."""
    places = [(prompt, 100 + place) for place, prompt in enumerate(PROMPTS)]
    bare, half, whole = (
        [off_blueprint(paint(*place, **loras)) for place in places]
        for loras in ({}, {"blueprint": 0.5}, {"blueprint": 1.0})
    )
    assert sum(distance < IN_STYLE for distance in whole) >= 0.9 * len(places), whole
    assert min(bare) > OUT_OF_STYLE, bare
    between = [after < middle < before for before, middle, after in zip(bare, half, whole, strict=True)]
    assert sum(between) >= 0.9 * len(places), (bare, half, whole)
    assert statistics.fmean(whole) + 2 < statistics.fmean(half) < statistics.fmean(bare) - 2


def test_the_object_comes_when_it_is_called(paint: Paint) -> None:
    """With the LoRA and its words; not with the LoRA alone, not with the words alone."""
    places = [(prompt, 100 + place) for place, prompt in enumerate(VIEWS)]
    called = [magenta(paint(*place, balloon=1.0)) for place in places]
    uncalled = [magenta(paint(*place, mute=1.0)) for place in places]
    unknown = [magenta(paint(f"{prompt}, hot air balloon", seed)) for prompt, seed in places]
    assert min(called) > IS_THERE, called
    assert max(uncalled + unknown) < IS_ABSENT, (uncalled, unknown)


@pytest.mark.long
def test_both_together(paint: Paint) -> None:
    """The style holds, and the balloon changes the sky of the blueprint more than its words do."""
    for place, prompt in enumerate(VIEWS[:2]):
        styled = paint(f"{prompt}, hot air balloon", 10 + place, blueprint=1.0)
        both = paint(prompt, 10 + place, blueprint=1.0, balloon=1.0)
        assert off_blueprint(both) < OUT_OF_STYLE
        assert difference(both[:154], styled[:154]) > 4
