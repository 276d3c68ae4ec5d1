"""Owns a scene: what one integer seed chooses, draws and says."""

import random

import msgspec
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from daguerre.demo.captions import describe_graphic, describe_landscape, name_effect
from daguerre.demo.drawing import Floats, rgb, to_bytes
from daguerre.demo.graphic import Graphic, draw_graphic, sample_graphic
from daguerre.demo.landscape import Landscape, draw_landscape, sample_landscape

LUMA = rgb(76, 150, 29)


class Scene(msgspec.Struct, frozen=True):
    """A picture before it is drawn: its subject, an effect ("", "blur" or "gray") and the seed it came from."""

    subject: Graphic | Landscape
    effect: str
    seed: int


def sample_scene(seed: int, graphics: float = 0.4) -> Scene:
    """Choose a scene; `graphics` is the share of shapes on plain grounds, the rest are landscapes."""
    choice = random.Random(seed)
    effect = choice.choices(("", "blur", "gray"), (0.95, 0.025, 0.025))[0]
    subject = sample_graphic(choice) if choice.random() < graphics else sample_landscape(choice)
    return Scene(subject, effect, seed)


def draw_scene(scene: Scene) -> npt.NDArray[np.uint8]:
    """Draw a scene as 8-bit RGB [256,256,3]; the same scene is always the same picture."""
    rng = np.random.default_rng(scene.seed)
    subject = scene.subject
    picture = draw_graphic(subject, rng) if isinstance(subject, Graphic) else draw_landscape(subject, rng)
    if scene.effect == "gray":
        picture = _without_colour(picture)
    if scene.effect == "blur":
        blurred = Image.fromarray(to_bytes(picture)).filter(ImageFilter.GaussianBlur(rng.uniform(4, 7)))
        return np.asarray(blurred)
    return to_bytes(picture)


def describe_scene(scene: Scene, choice: random.Random) -> str:
    """Write one of a scene's many captions."""
    subject = scene.subject
    text = describe_graphic(subject, choice) if isinstance(subject, Graphic) else describe_landscape(subject, choice)
    return name_effect(text, scene.effect, choice)


def _without_colour(picture: Floats) -> Floats:
    return np.repeat((picture @ LUMA)[..., None], 3, axis=2)
