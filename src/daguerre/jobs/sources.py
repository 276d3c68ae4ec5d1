"""Owns what a recipe draws on beside its model and LoRAs: reference images, and textual inversions in its prompts."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from daguerre import imaging
from daguerre.catalog import Model
from daguerre.embeddings import Embedding, Embeddings, Learned
from daguerre.engine import Reference
from daguerre.errors import FieldError, InvalidRecipe
from daguerre.jobs.inputs import Inputs, reduced
from daguerre.recipe import Draft, Recipe
from daguerre.references import IpAdapter, References


@dataclass(frozen=True, slots=True)
class Found:
    """Where a recipe's sources lie."""

    recipe: Recipe
    ip_adapter: IpAdapter | None
    pictures: tuple[Path | None, ...]  # None: it came with the request
    embeddings: tuple[Embedding, ...]

    def __bool__(self) -> bool:
        return bool(self.pictures or self.embeddings)

    def read(self, inputs: Inputs | None) -> tuple[tuple[Reference, ...], tuple[Learned, ...]]:
        """All of them, read and decoded: not for the event loop.

        Raises:
            InvalidRecipe: a file can no longer be read.
        """
        inline = iter(() if inputs is None else inputs.references)
        if inputs is None and None in self.pictures:
            raise InvalidRecipe([FieldError("reference_images", "the pictures that came with the request are lost")])
        pictures = [next(inline) if path is None else _opened(path) for path in self.pictures]
        scales = [use.scale for use in self.recipe.reference_images]
        learned = tuple(embedding.read() for embedding in self.embeddings)
        return tuple(_reference(*pair) for pair in zip(pictures, scales, strict=True)), learned


class Sources:
    """The catalogues of both. Used on the event loop only."""

    def __init__(self, references: References, embeddings: Embeddings) -> None:
        self.references = references
        self.embeddings = embeddings

    def completed(self, recipe: Recipe, draft: Draft, model: Model) -> Recipe:
        """The recipe with the draft's reference images; the embeddings that its prompts name fit its model.

        Raises:
            InvalidRecipe: something is unknown, broken or made for another model.
        """
        self.embeddings.check(recipe, model)
        return self.references.completed(recipe, draft, model)

    def find(self, recipe: Recipe, model: Model) -> Found:
        """Where a recipe's sources lie now.

        Raises:
            InvalidRecipe: one is there no more, or has changed and fits no more.
        """
        uses = recipe.reference_images
        return Found(
            recipe,
            None if recipe.ip_adapter is None else self.references.adapter(recipe.ip_adapter, model),
            tuple(None if use.name is None else self.references.picture(use.name) for use in uses),
            self.embeddings.used(recipe, model),
        )


def _opened(path: Path) -> Image.Image:
    try:
        return reduced(imaging.decode(path.read_bytes()))
    except OSError:
        why = "cannot be read"
    except ValueError as error:
        why = str(error)
    raise InvalidRecipe([FieldError("reference_images", f"the reference image {path.stem!r} {why}")])


def _reference(picture: Image.Image, scale: float) -> Reference:
    pixels = np.ascontiguousarray(imaging.on_white(picture, picture.size))
    return Reference(pixels, scale, hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest())
