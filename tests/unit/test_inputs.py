"""Uploads: what is kept of them while a job waits is what the job will paint from, and no more."""

import io

import numpy as np
import pytest
from PIL import Image

from daguerre import imaging
from daguerre.jobs.inputs import Inputs
from daguerre.recipe import MAX_SIDE


def _noise(mode: str, size: tuple[int, int]) -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], channels), np.uint8)
    return Image.fromarray(pixels.squeeze())


@pytest.mark.parametrize("size", [(64, 64), (96, 40)])
def test_fitting_twice_changes_nothing(size: tuple[int, int]) -> None:
    """An upload made fit when its job came gives the very pixels that it gave when fitted as the job began."""
    whole = Inputs(_noise("RGBA", (90, 70)), _noise("RGBA", (90, 70)))
    kept = Inputs.unpacked(whole.at(size).packed())
    for before, after in zip(whole.fitted(size), kept.fitted(size), strict=True):
        assert before is not None
        assert after is not None
        np.testing.assert_array_equal(before, after)
    assert kept.image.size == size


def test_without_a_mask() -> None:
    """There is none afterwards."""
    assert Inputs(_noise("RGBA", (9, 9)), None).at((8, 8)).mask is None


@pytest.mark.parametrize(
    ("mode", "form"),
    [
        (mode, form)
        for mode in ("L", "RGB", "RGBA")
        for form in ("PNG", "JPEG", "WEBP")
        if (mode, form) != ("RGBA", "JPEG")
    ],
)
def test_an_upload_is_no_larger_than_what_can_be_painted(mode: str, form: str) -> None:
    """It is made smaller as it is read, in its own shape."""
    file = io.BytesIO()
    Image.new(mode, (4096, 1024), "red" if mode != "L" else 76).save(file, form)
    read = imaging.decode(file.getvalue())
    assert (read.mode, read.size) == ("RGBA", (MAX_SIDE, MAX_SIDE // 4))
    red, _, blue, alpha = read.getpixel((5, 5))  # type: ignore[misc]
    assert (red > 70, blue < 90, alpha) == (True, True, 255)


def test_what_fits_is_left_alone() -> None:
    """Bit for bit."""
    picture = _noise("RGB", (64, 40))
    file = io.BytesIO()
    picture.save(file, "PNG")
    np.testing.assert_array_equal(np.asarray(imaging.decode(file.getvalue()))[..., :3], np.asarray(picture))


def test_an_upload_is_turned_upright() -> None:
    """Also where it is made smaller."""
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.new("RGB", (4096, 1024)).save(file, "JPEG", exif=exif)
    assert imaging.decode(file.getvalue()).size == (MAX_SIDE // 4, MAX_SIDE)
