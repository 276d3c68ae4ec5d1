"""Owns the eye: what can be said of a picture without a model. It knows nothing of how the pictures are made."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]  # [H, W, 3]
Paint = Callable[..., list[Picture]]  # what the fixture of that name is
Floats = NDArray[np.float64]

#: The twelve colours as CSS and the painters' word for them have it, in sRGB.
COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 128, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "orange": (255, 165, 0),
    "purple": (128, 0, 128),
    "pink": (255, 150, 190),
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "gray": (128, 128, 128),
    "cyan": (0, 255, 255),
    "brown": (140, 70, 20),
}

_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
_WHITE = np.array([0.9505, 1.0, 1.089])


def lab(colours: NDArray[np.generic]) -> Floats:
    """CIELAB of sRGB in 0 to 255, last axis; distances in it are about what an eye sees."""
    values = np.asarray(colours, dtype=np.float64) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    x, y, z = np.moveaxis(np.cbrt(linear @ _TO_XYZ.T / _WHITE + 1e-4), -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def distance(colour: NDArray[np.generic], name: str) -> float:
    """How far a colour is from the named one; 100 is from black to white."""
    return float(np.linalg.norm(lab(colour) - lab(np.array(COLOURS[name]))))


def name_of(colour: NDArray[np.generic]) -> str:
    """The name of the nearest of the twelve."""
    return min(COLOURS, key=lambda name: distance(colour, name))


def middle(picture: Picture) -> Floats:
    """The dominant colour in the middle of a picture."""
    rows, columns = picture.shape[0], picture.shape[1]
    core = picture[rows * 7 // 16 : rows * 9 // 16, columns * 7 // 16 : columns * 9 // 16]
    return np.asarray(np.median(core.reshape(-1, 3), axis=0))


def border(picture: Picture) -> Floats:
    """The dominant colour along a picture's border."""
    width = picture.shape[0] // 32
    inside = np.zeros(picture.shape[:2], dtype=bool)
    inside[width:-width, width:-width] = True
    return np.asarray(np.median(picture[~inside], axis=0))


def lightness(picture: Picture) -> float:
    """The mean lightness, 0 to 100."""
    return float(lab(picture)[..., 0].mean())


def warmth(picture: Picture) -> float:
    """How much more red than blue there is in the mean, in units of 1/255."""
    return float(picture[..., 0].mean() - picture[..., 2].mean())


def saturation(picture: Picture) -> float:
    """The mean distance from gray in CIELAB."""
    return float(np.linalg.norm(lab(picture)[..., 1:], axis=-1).mean())


def off_blueprint(picture: Picture) -> float:
    """How far its pixels are, in the mean and in CIELAB, from the line between dark blue paper and white ink."""
    paper, ink = lab(np.array([(22, 54, 128), (240, 246, 255)]))
    pixels, along = lab(picture), ink - paper
    share = np.clip((pixels - paper) @ along / (along @ along), 0, 1)
    return float(np.linalg.norm(pixels - paper - share[..., None] * along, axis=-1).mean())


def magenta(picture: Picture) -> float:
    """The share of a picture that is magenta in its upper six tenths, where the sky is."""
    _, red, yellow = np.moveaxis(lab(picture[: picture.shape[0] * 6 // 10]), -1, 0)
    return float(((red > 50) & (yellow > -35) & (yellow < 5)).mean()) * 0.6


def difference(one: Picture, other: Picture) -> float:
    """The mean absolute difference, in units of 1/255."""
    return float(np.abs(one.astype(int) - other.astype(int)).mean())


def is_blank(picture: Picture) -> bool:
    """Whether a picture is about one colour."""
    return float(picture.std(axis=(0, 1)).max()) < 4.0
