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

#: Pixels of a reference image's longer side. What looks at it sees it in 224 or 336.
REFERENCE_SIDE = 1024


@dataclass(frozen=True, slots=True)
class Inputs:
    """An image to start from, perhaps a mask of what to paint anew, and the reference images that came along."""

    image: Image.Image | None
    mask: Image.Image | None
    references: tuple[Image.Image, ...] = ()

    @property
    def size(self) -> tuple[int, int] | None:
        """Of the image to start from, in pixels."""
        return None if self.image is None else self.image.size

    def fitted(self, size: tuple[int, int]) -> tuple[NDArray[np.uint8] | None, NDArray[np.uint8] | None]:
        """Image and mask in that size: the image [H, W, 3], the mask [H, W]."""
        mask = None if self.mask is None else imaging.as_mask(self.mask, size)
        return None if self.image is None else imaging.on_white(self.image, size), mask

    def at(self, size: tuple[int, int]) -> Self:
        """Both in that size: a job that waits holds no more of an upload than will be painted from."""
        image, mask = (None if pixels is None else _picture(pixels) for pixels in self.fitted(size))
        return type(self)(image, mask, self.references)

    def packed(self) -> Pictures:
        """All of them as files, to be kept until the job is done."""
        image, mask = (None if picture is None else _file(picture) for picture in (self.image, self.mask))
        return Pictures(image, mask, tuple(map(_file, self.references)))

    @classmethod
    def unpacked(cls, pictures: Pictures) -> Self:
        """What `packed` gave."""
        image, mask = (None if file is None else imaging.decode(file) for file in pictures[:2])
        return cls(image, mask, tuple(map(imaging.decode, pictures.references)))


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
    if not draft.has_pictures:
        return None
    image, mask = (
        None if text is None else decoded(field, text) for field, text in (("image", draft.image), ("mask", draft.mask))
    )
    return Inputs(image, mask, references(draft))


def references(draft: Draft) -> tuple[Image.Image, ...]:
    """The reference images that came with the draft, in their order, none larger than needed.

    Raises:
        InvalidRecipe: naming the one that is no picture.
    """
    wishes = enumerate(draft.reference_images)
    inline = [(f"reference_images[{place}]", wish.image) for place, wish in wishes if wish.image is not None]
    return tuple(reduced(decoded(field, text)) for field, text in inline)


def reduced(image: Image.Image) -> Image.Image:
    """A reference image in the size in which it is kept."""
    image.thumbnail((REFERENCE_SIDE, REFERENCE_SIDE), Image.Resampling.LANCZOS)
    return image


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
    if "\n" in encoded:  # tools break its lines
        encoded = "".join(encoded.split())
    try:
        return base64.b64decode(encoded, validate=True)
    except ValueError:  # binascii's own, and text that is not ASCII
        raise InvalidRecipe([FieldError(field, "is not base64")]) from None
