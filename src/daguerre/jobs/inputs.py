"""Owns the pictures that a recipe starts from: decoded with care, fitted to the recipe's size."""

import base64
import io
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from daguerre import imaging
from daguerre.errors import FieldError, InvalidRecipe
from daguerre.recipe import Draft
from daguerre.store.jobs import Pictures


@dataclass(frozen=True, slots=True)
class Inputs:
    """An image to start from, and perhaps a mask of what to paint anew."""

    image: Image.Image
    mask: Image.Image | None

    def fitted(self, size: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        """Both in that size: the image [H, W, 3], the mask [H, W]."""
        mask = None if self.mask is None else imaging.as_mask(self.mask, size)
        return imaging.on_white(self.image, size), mask

    def at(self, size: tuple[int, int]) -> Self:
        """Both in that size: a job that waits holds no more of an upload than will be painted from."""
        image, mask = self.fitted(size)
        return type(self)(_picture(image), None if mask is None else _picture(mask))

    def packed(self) -> Pictures:
        """Both as files, to be kept until the job is done."""
        return Pictures(_file(self.image), None if self.mask is None else _file(self.mask))

    @classmethod
    def unpacked(cls, pictures: Pictures) -> Self:
        """What `packed` gave."""
        return cls(imaging.decode(pictures.image), None if pictures.mask is None else imaging.decode(pictures.mask))


def _picture(pixels: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(pixels).convert("RGBA")


def _file(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def read(draft: Draft) -> Inputs | None:
    """The draft's pictures, decoded. It takes a while for large ones: not for the event loop.

    Raises:
        InvalidRecipe: naming the field that is no picture.
    """
    if draft.image is None:
        return None
    image = decoded("image", draft.image)
    return Inputs(image, None if draft.mask is None else decoded("mask", draft.mask))


def decoded(field: str, text: str) -> Image.Image:
    """The picture that a field holds as base64, with or without what a data URL puts in front.

    Raises:
        InvalidRecipe: naming the field.
    """
    try:
        return imaging.decode(unwrapped(field, text))
    except ValueError as error:
        raise InvalidRecipe([FieldError(field, str(error))]) from None


def unwrapped(field: str, text: str) -> bytes:
    """The bytes that a field holds as base64.

    Raises:
        InvalidRecipe: naming the field.
    """
    head, comma, rest = text.partition(",")
    encoded = rest if comma and head.startswith("data:") else text
    try:
        return base64.b64decode(encoded, validate=True)
    except ValueError:  # binascii's own, and text that is not ASCII
        raise InvalidRecipe([FieldError(field, "is not base64")]) from None
