"""Owns the drawing primitives: the canvas, value noise, blending and signed distances of the five shapes.

A picture is a float32 array [256,256,3] in 0..1; a mask is a float32 array [256,256] in 0..1. Distances are positive
inside a shape, so that `coverage` of a distance in pixels is an antialiased mask.
"""

import numpy as np
import numpy.typing as npt
from PIL import Image

SIZE = 256
SHAPES = ("circle", "square", "triangle", "star", "heart")

Floats = npt.NDArray[np.float32]

Y: Floats
X: Floats
Y, X = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
COLUMNS: Floats = np.arange(SIZE, dtype=np.float32)


def rgb(red: float, green: float, blue: float) -> Floats:
    """Turn a colour of 0..255 into one of 0..1."""
    return np.array([red, green, blue], np.float32) / np.float32(255)


def mix(one: Floats, other: Floats, share: float) -> Floats:
    """Mix two colours: `share` of the second."""
    return (one + (other - one) * np.float32(share)).astype(np.float32)


def coverage(distance: Floats) -> Floats:
    """Turn a distance in pixels, positive inside, into an antialiased mask."""
    return np.asarray(np.clip(distance + 0.5, 0, 1), np.float32)


def blend(picture: Floats, mask: Floats, colour: Floats) -> None:
    """Paint a colour over the picture through a mask, in place."""
    picture += mask[..., None] * (colour - picture)


def rectangle(picture: Floats, x0: float, y0: float, x1: float, y1: float, colour: Floats) -> None:
    """Fill a rectangle with hard edges, clipped to the picture, in place."""
    low_x, high_x = int(max(0, x0)), int(max(0, min(SIZE, x1)))
    low_y, high_y = int(max(0, y0)), int(max(0, min(SIZE, y1)))
    picture[low_y:high_y, low_x:high_x] = colour


def cloud_noise(rng: np.random.Generator, rows: int, columns: int) -> Floats:
    """Four octaves of value noise over the canvas, in about 0..1, the first on a grid of rows × columns."""
    total = np.zeros((SIZE, SIZE), np.float32)
    for octave in range(4):
        grid = rng.random((rows * 2**octave + 1, columns * 2**octave + 1)).astype(np.float32)
        total += 0.5**octave * np.asarray(Image.fromarray(grid).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    return total / np.float32(1.875)  # 1 + 1/2 + 1/4 + 1/8


def ridge_noise(
    rng: np.random.Generator, peaks: int, octaves: int, *, smooth: bool = True, fall: float = 0.5
) -> Floats:
    """Value noise along the columns, in 0..1: a skyline [256]."""
    total, weight = np.zeros(SIZE, np.float32), 0.0
    for octave in range(octaves):
        knots = peaks * 2**octave + 1
        values = rng.random(knots).astype(np.float32)
        place = np.linspace(0, knots - 1.001, SIZE).astype(np.float32)
        left = place.astype(int)
        part = place - left
        if smooth:
            part = part * part * (3 - 2 * part)
        total += fall**octave * (values[left] * (1 - part) + values[np.minimum(left + 1, knots - 1)] * part)
        weight += fall**octave
    return (total / np.float32(weight)).astype(np.float32)


def _circle(x: Floats, y: Floats) -> Floats:
    return 1 - np.hypot(x, y)


def _square(x: Floats, y: Floats) -> Floats:
    return np.float32(0.86) - np.maximum(np.abs(x), np.abs(y))


def _triangle(x: Floats, y: Floats) -> Floats:
    y = y - np.float32(0.15)
    return np.asarray(np.minimum(0.65 - y, (y + 1.1) * 0.5 - np.abs(x) * 0.92), np.float32)


def _star(x: Floats, y: Floats) -> Floats:
    """Five points: fold the plane into one half of one point and measure to its edge."""
    turn = 2 * np.pi / 5
    angle = (np.arctan2(x, -y) + turn / 2) % turn - turn / 2
    radius = np.hypot(x, y)
    along, across = radius * np.cos(angle), np.abs(radius * np.sin(angle))
    notch_x, notch_y = 0.42 * np.cos(turn / 2), 0.42 * np.sin(turn / 2)
    length = np.hypot(notch_y, 1 - notch_x)
    return np.asarray(((1 - along) * notch_y - across * (1 - notch_x)) / length, np.float32)


def _heart(x: Floats, y: Floats) -> Floats:
    """Two circles on a right angle, after Inigo Quilez's sdHeart, scaled to height and width of about 2."""
    scale = 0.58
    across, up = np.abs(x) * scale, 0.552 - y * scale
    lobe = np.hypot(across - 0.25, up - 0.75) - np.sqrt(2) / 4
    foot = 0.5 * np.maximum(across + up, 0)
    edge = np.minimum(np.hypot(across, up - 1), np.hypot(across - foot, up - foot)) * np.sign(across - up)
    return np.asarray(-np.where(across + up > 1, lobe, edge) / scale, np.float32)


_DISTANCES = {"circle": _circle, "square": _square, "triangle": _triangle, "star": _star, "heart": _heart}


def shape_mask(shape: str, centre_x: float, centre_y: float, radius: float) -> Floats:
    """Draw one of SHAPES as a mask; the radius is about half its width, in pixels."""
    x, y = (X - np.float32(centre_x)) / np.float32(radius), (Y - np.float32(centre_y)) / np.float32(radius)
    return coverage(_DISTANCES[shape](x, y) * np.float32(radius))


def to_bytes(picture: Floats) -> npt.NDArray[np.uint8]:
    """Round a picture to 8 bits."""
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)
