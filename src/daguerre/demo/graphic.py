"""Owns the graphics: one coloured shape of three sizes on a plain ground."""

import random

import msgspec
import numpy as np

from daguerre.demo.drawing import SHAPES, SIZE, Floats, rgb, shape_mask

COLOURS: dict[str, Floats] = {
    "red": rgb(220, 30, 30),
    "green": rgb(35, 165, 60),
    "blue": rgb(35, 70, 220),
    "yellow": rgb(250, 220, 40),
    "orange": rgb(250, 140, 25),
    "purple": rgb(135, 45, 170),
    "pink": rgb(250, 140, 185),
    "white": rgb(250, 250, 250),
    "black": rgb(15, 15, 15),
    "gray": rgb(130, 130, 130),
    "cyan": rgb(50, 210, 220),
    "brown": rgb(120, 72, 35),
}
PALE = ("pink", "yellow", "cyan", "orange", "gray")
RADII = {"small": (0.11, 0.16), "": (0.24, 0.33), "large": (0.38, 0.44)}  # shares of the picture's side


class Graphic(msgspec.Struct, frozen=True):
    """A shape of one colour on a ground of another; no shape is a plain ground."""

    colour: str
    ground: str
    shape: str
    size: str = ""


def sample_graphic(choice: random.Random) -> Graphic:
    """Choose a graphic; white grounds, and pale shapes on them, come more often than chance would have it."""
    colour, ground = choice.sample(list(COLOURS), 2)
    if choice.random() < 0.3:
        ground = "white"
        if choice.random() < 0.4:  # white grounds swallow pale shapes unless these are seen often
            colour = choice.choice(PALE)
        elif colour == "white":
            colour = "black"
    shape = choice.choice(SHAPES) if choice.random() < 0.98 else ""
    return Graphic(colour, ground, shape, choice.choice(("", "", "", "small", "large")))


def draw_graphic(graphic: Graphic, rng: np.random.Generator) -> Floats:
    """Draw a graphic near the middle, its colours slightly off their names' values."""
    colour = np.clip(COLOURS[graphic.colour] + rng.normal(0, 0.02, 3), 0, 1).astype(np.float32)
    ground = np.clip(COLOURS[graphic.ground] + rng.normal(0, 0.02, 3), 0, 1).astype(np.float32)
    radius = SIZE * rng.uniform(*RADII[graphic.size])
    slack = SIZE * 0.05
    x, y = SIZE / 2 + rng.uniform(-slack, slack, 2)
    if not graphic.shape:
        return np.broadcast_to(ground, (SIZE, SIZE, 3)).copy()
    mask = shape_mask(graphic.shape, float(x), float(y), float(radius))
    return (ground + mask[..., None] * (colour - ground)).astype(np.float32)
