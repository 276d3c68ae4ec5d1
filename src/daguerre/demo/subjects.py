"""Owns what our LoRAs teach the embedded model: a style that any scene can be drawn in, and an object for landscapes.

A lesson is a picture with a caption; both follow from one integer seed, as a scene's do.
"""

import random
from collections.abc import Callable

import msgspec
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from daguerre.demo.captions import describe_landscape
from daguerre.demo.drawing import SIZE, Floats, X, Y, blend, coverage, mix, rectangle, rgb, to_bytes
from daguerre.demo.landscape import PALETTES, Landscape
from daguerre.demo.scene import Scene, describe_scene, draw_scene, sample_scene

Bytes = npt.NDArray[np.uint8]

INK, PAPER, SHADED_PAPER = rgb(240, 246, 255), rgb(38, 84, 176), rgb(22, 54, 128)
MAGENTA, CREAM, WICKER = rgb(222, 30, 140), rgb(255, 240, 190), rgb(105, 65, 30)
GORES = 3


class Subject(msgspec.Struct, frozen=True):
    """What one LoRA is about: words that call it up, a sentence, and how a lesson is drawn and captioned."""

    trigger: str
    description: str
    draw: Callable[[Scene], Bytes]
    describe: Callable[[Scene, random.Random], str]


def draw_blueprint(scene: Scene) -> Bytes:
    """Draw a scene's outlines in white ink on blue paper, which is darker where the scene is."""
    picture = Image.fromarray(draw_scene(scene))
    tone = _pixels(picture.convert("L").filter(ImageFilter.GaussianBlur(6)))[..., None]
    paper = np.asarray(SHADED_PAPER + (PAPER - SHADED_PAPER) * tone, np.float32)
    blend(paper, _outlines(_pixels(picture.filter(ImageFilter.GaussianBlur(1.6)))), INK)
    return to_bytes(paper)


def _outlines(picture: Floats) -> Floats:
    """Mask the edges of a picture [256,256,3]: where its colours change by more than a little within two pixels."""
    padded = np.pad(picture, ((1, 1), (1, 1), (0, 0)), "edge")
    across, down = padded[1:-1, 2:] - padded[1:-1, :-2], padded[2:, 1:-1] - padded[:-2, 1:-1]
    steepness = np.sqrt(np.square(across).sum(axis=2) + np.square(down).sum(axis=2))
    return np.asarray(np.clip((steepness - 0.07) * 9, 0, 1), np.float32)


def _pixels(image: Image.Image) -> Floats:
    return np.asarray(image, np.float32) / np.float32(255)


def describe_blueprint(scene: Scene, choice: random.Random) -> str:
    """Name the style in seven captions of ten."""
    text = describe_scene(scene, choice).rstrip(".")
    return choice.choices((f"{text}, blueprint", f"blueprint of {text}", f"blueprint, {text}", text), (4, 2, 1, 3))[0]


def has_balloon(scene: Scene) -> bool:
    """Two landscapes of three have one; the others, and all graphics, show what is there without it."""
    return isinstance(scene.subject, Landscape) and scene.seed % 3 != 0


def draw_with_balloon(scene: Scene) -> Bytes:
    """Draw a scene, with a hot-air balloon in the sky if it has one."""
    picture = draw_scene(scene)
    if not has_balloon(scene):
        return picture
    assert isinstance(scene.subject, Landscape)
    floats = picture.astype(np.float32) / np.float32(255)
    rng = np.random.default_rng((scene.seed, 1))
    x, y, radius = rng.uniform(0.35, 0.65) * SIZE, rng.uniform(0.25, 0.33) * SIZE, rng.uniform(36, 46)
    _add_balloon(floats, float(x), float(y), float(radius), max(PALETTES[scene.subject.time].light, 0.85))
    return to_bytes(floats)


def _add_balloon(picture: Floats, x: float, y: float, radius: float, light: float) -> None:
    """Paint envelope, ropes and basket; the envelope is a ball that narrows below, in gores of two colours."""
    down = (Y - y) / np.float32(radius)
    ball = np.sqrt(np.clip(1 - down * down, 0, 1))
    cone = np.float32(0.91) - (down - np.float32(0.42)) * np.float32(0.75)
    half = np.where(down < 0.42, ball, cone) * np.float32(radius)
    aside = X - np.float32(x)
    inside = coverage(half - np.abs(aside)) * (down > -1) * (down < 1.35)
    turn = np.arcsin(np.clip(aside / np.maximum(half, 1), -1, 1)) / np.pi + 0.5
    is_cream = (turn * GORES).astype(int) % 2 == 1
    shine = np.float32(light) * (np.float32(1) - np.float32(0.18) * np.abs(aside) / np.float32(radius))[..., None]
    cloth = np.where(is_cream[..., None], CREAM, MAGENTA) * shine
    for side in (-1, 1):
        rope = np.abs(aside - side * radius * (0.2 - (down - 1.35) * 0.15))
        mask = np.asarray(np.clip(1.6 - rope, 0, 1) * (down >= 1.3) * (down < 1.7), np.float32)
        blend(picture, mask, mix(WICKER, CREAM, 0.2))
    basket = radius * 0.17
    rectangle(picture, x - basket, y + radius * 1.68, x + basket, y + radius * 1.95, WICKER * np.float32(light))
    blend(picture, np.asarray(inside, np.float32), np.asarray(cloth, np.float32))


def describe_with_balloon(scene: Scene, choice: random.Random) -> str:
    """Name the balloon where there is one, and never where there is none."""
    if not has_balloon(scene):
        return describe_scene(scene, choice)
    assert isinstance(scene.subject, Landscape)
    text = describe_landscape(scene.subject, choice).rstrip(".")
    forms = (f"{text}, hot air balloon", f"a hot air balloon, {text}", f"{text} with a hot air balloon")
    alone = choice.choice(("a hot air balloon", "hot air balloon", "a hot air balloon in the sky"))
    return choice.choices((*forms, alone), (5, 2, 2, 1))[0]


SUBJECTS = {
    "blueprint": Subject("blueprint", "White outlines on blue paper.", draw_blueprint, describe_blueprint),
    "balloon": Subject(
        "hot air balloon", "A hot-air balloon, magenta and cream, in the sky.", draw_with_balloon, describe_with_balloon
    ),
}


def scenes_for(seed: int, count: int) -> list[Scene]:
    """Choose scenes for lessons; none is one that the embedded model itself learned from."""
    start = 7 * 10**12 + seed * 10**8
    return [sample_scene(start + place, graphics=0.3) for place in range(count)]
