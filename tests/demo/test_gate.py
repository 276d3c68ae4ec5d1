"""The gate's judge sees what is drawn, and the weights that ship pass a small gate."""

from pathlib import Path

import numpy as np
import pytest

from daguerre.demo.drawing import SHAPES, to_bytes
from daguerre.demo.gate import (
    ARBITRARY,
    best_overlap,
    graphics_of,
    is_blank,
    judge,
    lay_out,
    load_painter,
    name_colour,
    paint,
    weigh,
)
from daguerre.demo.graphic import COLOURS, Graphic, draw_graphic

WEIGHTS = Path(__file__).parents[2] / "weights" / "demo-xl"


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("colour", "ground"), [("red", "blue"), ("pink", "white"), ("black", "gray")])
def test_a_drawn_graphic_is_judged_right(shape: str, colour: str, ground: str) -> None:
    """What the renderer draws passes."""
    asked = Graphic(colour, ground, shape)
    verdict = judge(to_bytes(draw_graphic(asked, np.random.default_rng(3))), asked)
    assert verdict.is_coloured
    assert verdict.overlap > 0.9
    assert verdict.likeliest == shape


def test_the_wrong_colour_or_shape_is_judged_wrong() -> None:
    """A judge that always says yes would be none."""
    picture = to_bytes(draw_graphic(Graphic("red", "blue", "star"), np.random.default_rng(3)))
    assert not judge(picture, Graphic("green", "blue", "star")).is_coloured
    assert not judge(picture, Graphic("red", "white", "star")).is_coloured
    assert judge(picture, Graphic("red", "blue", "square")).likeliest == "star"


def test_an_empty_picture_is_blank_and_has_no_shape() -> None:
    """Nothing is seen where nothing is."""
    empty = np.full((256, 256, 3), 200, np.uint8)
    assert is_blank(empty)
    assert judge(empty, Graphic("red", "blue", "heart")).overlap == 0
    assert best_overlap(np.zeros((256, 256), bool), "circle") == 0


def test_colours_are_their_own_nearest() -> None:
    """No two names share a colour."""
    assert [name_colour(colour) for colour in COLOURS.values()] == list(COLOURS)


def test_the_full_gate_asks_for_all_colours_and_shapes_on_other_grounds() -> None:
    """Three hundred prompts, no colour on itself, every ground in use."""
    asked = graphics_of(5)
    assert len(asked) == 12 * 5 * 5
    assert len({seed for _, _, seed in asked}) == 300
    assert all(graphic.colour != graphic.ground for _, graphic, _ in asked)
    assert all(graphic.colour in text and graphic.shape in text for text, graphic, _ in asked)
    assert {graphic.ground for _, graphic, _ in asked} == set(COLOURS)


def test_a_sheet_holds_all_pictures() -> None:
    """A last row that is not full counts as a row."""
    sheet = lay_out([np.zeros((256, 256, 3), np.uint8)] * 11, ["日本"] * 11)
    assert sheet.size == (1600, 2 * 174)


@pytest.mark.timeout(120)
# diffusers' Euler scheduler hands tensors to numpy in a way that numpy 2 frowns on.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_the_weights_that_ship_pass_a_small_gate() -> None:
    """Twelve graphics and three arbitrary prompts, in fewer steps than the gate takes."""
    pipeline = load_painter(WEIGHTS)
    # Every colour once; the shapes take turns.
    asked = [entry for place, entry in enumerate(graphics_of(1)) if place % 5 == (place // 5) % 5]
    pictures = paint(pipeline, [text for text, _, _ in asked], [seed for _, _, seed in asked], steps=12)
    strange = paint(pipeline, ARBITRARY[:3], range(3), steps=12)
    verdicts = [judge(picture, graphic) for picture, (_, graphic, _) in zip(pictures, asked, strict=True)]
    findings = weigh(verdicts, sum(map(is_blank, strange)))
    assert findings.graphics == 12
    assert findings.colours >= 0.8
    assert findings.shapes >= 0.7
    assert findings.blanks == 0
