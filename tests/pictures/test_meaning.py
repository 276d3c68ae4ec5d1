"""Pictures show what their prompts say: colours where they belong, the time of day, what must not be there."""

import statistics
from collections.abc import Callable

import pytest
from eye import (
    Paint,
    Picture,
    border,
    difference,
    distance,
    is_blank,
    lightness,
    middle,
    name_of,
    saturation,
    warmth,
)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

#: Object and ground, each of the twelve colours once in both places.
GRAPHICS = (
    ("a red circle on a blue background", "red", "blue"),
    ("a yellow star on a purple background", "yellow", "purple"),
    ("a white triangle on a black background", "white", "black"),
    ("a green square on a pink background", "green", "pink"),
    ("a brown heart on a white background", "brown", "white"),
    ("a blue square on an orange background", "blue", "orange"),
    ("a black circle on a yellow background", "black", "yellow"),
    ("an orange triangle on a gray background", "orange", "gray"),
    ("a purple heart on a green background", "purple", "green"),
    ("a pink circle on a brown background", "pink", "brown"),
    ("a cyan square on a red background", "cyan", "red"),
    ("a gray circle on a cyan background", "gray", "cyan"),
)
STYLES = ("realistic", "anime", "artistic", "3d", "sketch")

Measure = Callable[[Picture], float]


def test_colours_are_where_the_prompt_says(paint: Paint) -> None:
    """The object's colour fills the middle and the ground's the border, in nine pictures of ten."""
    wrong = []
    for number, (prompt, colour, ground) in enumerate(GRAPHICS):
        for picture in paint(prompt, seed=10 * number, count=2):
            seen = (name_of(middle(picture)), name_of(border(picture)))
            if seen != (colour, ground):
                wrong.append(f"{prompt}: {seen[0]} on {seen[1]}")
    assert len(wrong) <= 0.1 * 2 * len(GRAPHICS), wrong


def _mean(measure: Measure, pictures: list[Picture]) -> float:
    return statistics.fmean(measure(picture) for picture in pictures)


def test_the_time_of_day_is_seen(paint: Paint) -> None:
    """A sunset is redder and darker than midday, and night is the darkest."""
    sunset = paint("a beautiful sunset over mountains", count=4)
    midday = paint("mountains at midday", count=4)
    night = paint("mountains at night", count=4)
    assert _mean(warmth, sunset) > _mean(warmth, midday) + 30
    assert _mean(lightness, sunset) < _mean(lightness, midday) - 5
    assert _mean(lightness, night) < _mean(lightness, midday) - 20
    assert _mean(lightness, night) < _mean(lightness, sunset)


def test_guidance_brings_the_colours_closer(paint: Paint) -> None:
    """At 7.5 the colours are nearer to the words than at 1, where the model is left to itself."""
    missed = {}
    for guidance in (1.0, 7.5):
        missed[guidance] = [
            distance(middle(picture), colour) + distance(border(picture), ground)
            for prompt, colour, ground in GRAPHICS[:4]
            for picture in paint(prompt, guidance_scale=guidance, count=2)
        ]
    assert statistics.fmean(missed[7.5]) < statistics.fmean(missed[1.0]) - 2, missed


@pytest.mark.parametrize(
    ("prompt", "negative", "measure", "is_more"),
    [
        ("mountains", "night", lightness, True),
        ("mountains", "sunset", warmth, False),
        ("a lake in the mountains", "black and white", saturation, True),
    ],
)
def test_a_negative_prompt_leads_away_from_what_it_says(
    paint: Paint, prompt: str, negative: str, measure: Measure, is_more: bool
) -> None:
    """Without night it is lighter, without sunset bluer, without black and white more colourful."""
    free = _mean(measure, paint(prompt, count=3))
    led = _mean(measure, paint(prompt, negative_prompt=negative, count=3))
    assert (led - free if is_more else free - led) > 4


def test_a_style_changes_the_picture(paint: Paint) -> None:
    """Every style that ships paints something else from the same noise."""
    (bare,) = paint("a house in the forest", steps=6)
    for style in STYLES:
        (styled,) = paint("a house in the forest", style=style, steps=6)
        assert difference(bare, styled) > 1, style
        assert not is_blank(styled), style


def test_the_tail_of_a_long_prompt_counts(paint: Paint) -> None:
    """Past the 77 tokens that the encoders read at once, words still change the picture; taken plainly they do not."""
    long = "mountains, " + ", ".join(["highly detailed", "masterpiece", "sharp focus"] * 30)
    day, night = f"{long}, a sunny day", f"{long}, night, moon and stars"
    for syntax, is_changed in (("compel", True), ("plain", False)):
        (one,) = paint(day, prompt_syntax=syntax, steps=6)
        (other,) = paint(night, prompt_syntax=syntax, steps=6)
        assert (difference(one, other) > 1) == is_changed, syntax
