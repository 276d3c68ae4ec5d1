"""The renderer draws the same picture from the same seed, and what it draws is what its names say."""

import numpy as np
import pytest

from daguerre.demo.drawing import SHAPES, SIZE, shape_mask, to_bytes
from daguerre.demo.graphic import COLOURS, Graphic, draw_graphic
from daguerre.demo.landscape import PLACES, TIMES, Landscape, draw_landscape
from daguerre.demo.scene import draw_scene, sample_scene


@pytest.mark.parametrize("seed", range(12))
def test_a_scene_is_always_the_same_picture(seed: int) -> None:
    """Nothing but the seed decides."""
    one, other = (draw_scene(sample_scene(seed)) for _ in range(2))
    assert one.shape == (SIZE, SIZE, 3)
    assert one.dtype == np.uint8
    assert np.array_equal(one, other)


def test_seeds_draw_different_pictures() -> None:
    """Twenty seeds, twenty pictures."""
    assert len({draw_scene(sample_scene(seed)).tobytes() for seed in range(20)}) == 20


def mean_colour(landscape: Landscape) -> np.ndarray:
    """The mean colour of a landscape over three drawings."""
    return np.mean([draw_landscape(landscape, np.random.default_rng(seed)).mean((0, 1)) for seed in range(3)], axis=0)


@pytest.mark.parametrize("place", PLACES)
def test_sunset_is_redder_and_darker_than_midday_and_night_darker_still(place: str) -> None:
    """The palettes keep the order that their names promise, in every place."""
    midday, sunset, night = (mean_colour(Landscape(time, place)) for time in ("midday", "sunset", "night"))
    assert sunset[0] - sunset[2] > midday[0] - midday[2] + 0.1
    assert night.mean() < sunset.mean() < midday.mean()


@pytest.mark.parametrize("time", TIMES)
def test_every_thing_can_be_drawn(time: str) -> None:
    """All things at once are drawn in every place, and show."""
    things = ("sun", "moon", "stars", "clouds", "lake", "birds", "trees", "cabin", "rain", "lightning", "boat")
    for place in PLACES:
        full = draw_landscape(Landscape(time, place, things, capped=True), np.random.default_rng(1))
        assert np.isfinite(full).all()
        assert not np.array_equal(full, draw_landscape(Landscape(time, place), np.random.default_rng(1)))


@pytest.mark.parametrize("colour", COLOURS)
def test_a_circle_has_its_colour_and_area(colour: str) -> None:
    """Every colour comes out as named, in a circle of the size it should have."""
    ground = "black" if colour == "white" else "white"
    picture = draw_graphic(Graphic(colour, ground, "circle"), np.random.default_rng(7))
    inside, outside = picture[SIZE // 2, SIZE // 2], picture[2, 2]
    assert np.abs(inside - COLOURS[colour]).max() < 0.09
    assert np.abs(outside - COLOURS[ground]).max() < 0.09
    covered = np.linalg.norm(picture - outside, axis=2) > np.linalg.norm(inside - outside) / 2
    assert np.pi * 0.24**2 * 0.97 < covered.mean() < np.pi * 0.33**2 * 1.03


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_stands_in_the_middle_and_is_as_wide_as_it_says(shape: str) -> None:
    """No shape sits high or low, and the radius means about the same for all."""
    rows, columns = np.nonzero(shape_mask(shape, 128, 128, 60) > 0.5)
    assert abs((rows.min() + rows.max()) / 2 - 128) < 8
    assert abs((columns.min() + columns.max()) / 2 - 128) < 2
    assert 95 < columns.max() - columns.min() <= 126
    assert 95 < rows.max() - rows.min() <= 126


def test_a_heart_is_lobed_above_and_pointed_below() -> None:
    """Two lobes, a notch between them, one point."""
    mask = shape_mask("heart", 128, 128, 100) > 0.5
    rows = np.nonzero(mask.any(axis=1))[0]
    top, bottom = mask[rows.min() + 3], mask[rows.max() - 3]
    assert not top[128]
    assert top[:128].any()
    assert top[128:].any()
    assert bottom.sum() < 12
    assert bottom[126:131].any()


def test_colours_are_rounded_not_cut() -> None:
    """Nearly white is white, and what is out of range is clipped."""
    assert to_bytes(np.full((2, 2, 3), 0.9999, np.float32)).max() == 255
    assert to_bytes(np.full((2, 2, 3), -1.0, np.float32)).max() == 0
