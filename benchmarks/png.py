"""Measures the PNG encoder against Pillow's default: time, bytes and bit-exactness, one after the other in one run."""

import io
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.goals import Goal
from daguerre.imaging import Pixels, encode_png

SIDE = 1024
ROUNDS = 9

GOALS = (
    Goal("times as fast as Pillow's default, noisy photo", ("photo with noise", "times_as_fast"), 40.0, is_least=True),
    Goal("bytes to Pillow's default, noisy photo", ("photo with noise", "bytes_ratio"), 1.15),
)


def photo(side: int = SIDE, noise: float = 2.0, seed: int = 0) -> Pixels:
    """Structure of every size, as a photograph has, and the noise of a sensor in units of 1/255."""
    random = np.random.default_rng(seed)
    picture = np.full((side, side, 3), 128.0)
    for cells, strength in ((4, 60), (8, 40), (16, 25), (32, 14), (64, 8), (128, 4)):
        for channel in range(3):
            layer = Image.fromarray(random.normal(0, strength, (cells, cells)).astype(np.float32))
            picture[..., channel] += np.asarray(layer.resize((side, side), Image.Resampling.BICUBIC))
    picture += random.normal(0, noise, picture.shape)
    return picture.clip(0, 255).round().astype(np.uint8)


def enlarged(side: int = SIDE, seed: int = 0) -> Pixels:
    """What a small model paints: no detail below eight pixels."""
    small = Image.fromarray(photo(side // 8, noise=4.0, seed=seed))
    return np.asarray(small.resize((side, side), Image.Resampling.BICUBIC))


def drawing(side: int = SIDE, seed: int = 0) -> Pixels:
    """Flat shapes on a flat ground."""
    random = np.random.default_rng(seed)
    picture = Image.new("RGB", (side, side), (230, 220, 200))
    pen = ImageDraw.Draw(picture)
    for left, top, size, *colour in random.integers(0, (side, side, side // 5, 256, 256, 256), (60, 6)).tolist():
        shape = pen.ellipse if size % 2 else pen.rectangle
        shape((left, top, left + size, top + size), fill=tuple(colour))
    return np.asarray(picture)


def fixtures() -> dict[str, Pixels]:
    """The pictures that are measured; the goal is about the first."""
    return {
        "photo with noise": photo(),
        "smooth photo": photo(noise=0.0),
        "enlarged": enlarged(),
        "drawing": drawing(),
    }


def by_pillow(pixels: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def by_daguerre(pixels: Pixels) -> bytes:
    return encode_png(pixels, {})


def seconds(encode: Callable[[Pixels], bytes], pixels: Pixels) -> float:
    start = time.perf_counter()
    encode(pixels)
    return time.perf_counter() - start


def compare(pixels: Pixels, rounds: int = ROUNDS) -> dict[str, object]:
    """Both encoders in turns, so that a slower or faster spell of the machine meets both."""
    theirs, ours = by_pillow(pixels), by_daguerre(pixels)
    times = [(seconds(by_pillow, pixels), seconds(by_daguerre, pixels)) for _ in range(rounds)]
    pillow, daguerre = (statistics.median(column) for column in zip(*times, strict=True))
    return {
        "pillow_ms": round(pillow * 1000, 2),
        "daguerre_ms": round(daguerre * 1000, 2),
        "times_as_fast": round(pillow / daguerre, 1),
        "pillow_bytes": len(theirs),
        "daguerre_bytes": len(ours),
        "bytes_ratio": round(len(ours) / len(theirs), 3),
        "is_bit_exact": np.array_equal(np.asarray(Image.open(io.BytesIO(ours))), pixels),
    }


def run() -> dict[str, object]:
    """The figures of every fixture."""
    return {name: compare(pixels) for name, pixels in fixtures().items()}


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
