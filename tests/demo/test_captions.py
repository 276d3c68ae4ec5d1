"""The grammar is never empty, names what the picture shows, and follows from its seed."""

import random
import re

import pytest

from daguerre.demo.captions import SHAPE_NAMES, describe_landscape, invent_word, with_article
from daguerre.demo.graphic import COLOURS, Graphic
from daguerre.demo.landscape import Landscape
from daguerre.demo.scene import Scene, describe_scene, sample_scene


def test_captions_are_never_empty_and_have_no_double_spaces() -> None:
    """Two thousand scenes have clean captions."""
    choice = random.Random(3)
    for seed in range(2000):
        text = describe_scene(sample_scene(seed), choice)
        assert text.strip() == text
        assert text
        assert "  " not in text


def test_a_caption_follows_from_scene_and_seed() -> None:
    """The same scene and seed give the same words."""
    one, other = ([describe_scene(sample_scene(s), random.Random(5)) for s in range(50)] for _ in range(2))
    assert one == other


@pytest.mark.parametrize("shape", ["circle", "square", "triangle", "star", "heart"])
@pytest.mark.parametrize("ground", ["white", "blue"])
def test_a_graphic_s_caption_names_colour_and_shape(shape: str, ground: str) -> None:
    """What a graphic shows is in its caption, whatever the form."""
    choice = random.Random(1)
    for colour in (name for name in COLOURS if name != ground):
        for _ in range(20):
            text = describe_scene(Scene(Graphic(colour, ground, shape, "large"), "", 0), choice)
            names = "|".join(SHAPE_NAMES.get(shape, (shape,)))
            assert re.search(rf"\b({names})\b", text)
            assert colour in text or (colour == "gray" and "grey" in text)
            assert ground in text or ground == "white"


def test_a_ground_left_unnamed_is_white() -> None:
    """Only white grounds may go unnamed, and many do."""
    choice = random.Random(2)
    texts = [describe_scene(Scene(Graphic("red", "green", "star"), "", 0), choice) for _ in range(300)]
    assert all("green" in text for text in texts)
    bare = [describe_scene(Scene(Graphic("red", "white", "star"), "", 0), choice) for _ in range(300)]
    assert sum("white" not in text for text in bare) > 60


def test_some_landscapes_go_under_unknown_names_but_most_under_their_own() -> None:
    """Unknown subjects have pictures, and known ones are not drowned."""
    choice = random.Random(4)
    texts = [describe_landscape(Landscape("sunset", "mountains", ("sun",)), choice) for _ in range(1000)]
    own = sum(bool(re.search("mountain|peaks", text)) for text in texts)
    assert 850 < own < 950
    assert sum("sunset over mountains" in text for text in texts) > 30


def test_a_sunset_mostly_has_a_sun_even_where_it_is_not_named() -> None:
    """A low sun that does not show is rather called dusk, so that a plain "sunset" paints one."""
    choice = random.Random(8)
    texts = {
        things: [describe_landscape(Landscape("sunset", "hills", things), choice) for _ in range(500)]
        for things in ((), ("sun",))
    }
    plain = {things: sum("sunset" in t and not re.search(r"\bsun\b", t) for t in texts[things]) for things in texts}
    assert plain["sun",] > 1.5 * plain[()]


@pytest.mark.parametrize(("effect", "words"), [("blur", "blurry"), ("gray", "black and white|monochrome")])
def test_effects_are_named(effect: str, words: str) -> None:
    """Blurred and colourless pictures say so."""
    choice = random.Random(6)
    scene = Scene(Landscape("night", "sea", ("moon",)), effect, 0)
    assert all(re.search(words, describe_scene(scene, choice)) for _ in range(50))


def test_articles_and_words() -> None:
    """Vowels have "an", and invented words are letters only."""
    assert with_article("orange star") == "an orange star"
    assert with_article("red star") == "a red star"
    assert all(invent_word(random.Random(seed)).isalpha() for seed in range(50))
