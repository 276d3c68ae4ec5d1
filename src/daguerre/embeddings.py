"""Owns the catalogue of textual inversions: what lies in ``weights/embeddings``, which prompts name it, what it fits.

Textual inversion (Gal et al. 2022): a word that stands for vectors of its own. The files are AUTOMATIC1111's
(``emb_params``), those of SDXL (``clip_l``, ``clip_g``) and diffusers' (one tensor under the word). A prompt names one
by its file's name, whatever the case, as a word of its own.
"""

import functools
import hashlib
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from daguerre import editions, weightfile
from daguerre.adapterfile import FLOATS
from daguerre.catalog import Model
from daguerre.errors import CatalogError, FieldError, InvalidRecipe
from daguerre.recipe import Recipe

log = logging.getLogger(__name__)

FOLDER = "embeddings"  # within weights
#: What a prompt has room for, and a size that no file of so many vectors needs.
MAX_VECTORS, MAX_BYTES = 75, 4 << 20
#: Text encoders by family of models; other families' take no vectors.
ENCODERS = {"sd": ("text_encoder",), "sdxl": ("text_encoder", "text_encoder_2")}

#: Where checkpoints in a single file may have the vectors of words.
_WORDS = {
    "sd": (
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
        "cond_stage_model.model.token_embedding.weight",  # 2.x
    ),
    "sdxl": (
        "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight",
        "conditioner.embedders.1.model.token_embedding.weight",
    ),
}


class Learned(msgspec.Struct, frozen=True):
    """A textual inversion as the engine is given it: its file, read whole."""

    name: str
    tensors: tuple[str, ...]
    data: bytes
    digest: str  # of the data: what tells it from what its file held before


class Embedding(msgspec.Struct, frozen=True, kw_only=True):
    """A textual inversion that can be used."""

    name: str
    path: Path
    tensors: tuple[str, ...]  # for each text encoder
    widths: tuple[int, ...]  # of the vectors for each text encoder
    vectors: int

    def misfit(self, model: Model) -> str | None:
        """Why it does not fit a model, from their headers."""
        wanted = _widths(model)
        if self.widths == wanted:
            return None
        has = " and ".join(map(str, self.widths))
        needs = " and ".join(map(str, wanted))
        told = f"needs vectors of {needs}" if wanted else "takes none"
        return f"embedding {self.name!r} has vectors of {has}; {model.name!r}, which is {model.family}, {told}"

    def read(self) -> Learned:
        """Its file, read whole: not for the event loop.

        Raises:
            InvalidRecipe: it cannot be read.
        """
        try:
            data = self.path.read_bytes()
        except OSError:
            raise InvalidRecipe([FieldError("prompt", f"embedding {self.name!r} cannot be read")]) from None
        return Learned(self.name, self.tensors, data, hashlib.sha256(data).hexdigest())


class Embeddings:
    """The textual inversions of one weights folder. What changes there is seen when a prompt is next looked at."""

    def __init__(self, weights: Path) -> None:
        self._folder = weights / FOLDER
        self._stamp: tuple[Any, ...] | None = None
        self._embeddings: dict[str, Embedding] = {}
        self._broken: dict[str, str] = {}
        self._refresh()

    @property
    def embeddings(self) -> list[Embedding]:
        """All that can be used, by name."""
        self._refresh()
        return [self._embeddings[name] for name in sorted(self._embeddings)]

    @property
    def problems(self) -> list[str]:
        """What is wrong with the others."""
        self._refresh()
        return [f"embedding {name!r}: {why}" for name, why in sorted(self._broken.items())]

    def check(self, recipe: Recipe, model: Model) -> None:
        """Holds the embeddings that a recipe's prompts name against its model.

        Raises:
            InvalidRecipe: one is broken, or made for another model.
        """
        errors = [
            FieldError(field, why)
            for field in ("prompt", "negative_prompt")
            for name in self._named(getattr(recipe, field))
            if (why := self._problem(name, model)) is not None
        ]
        if errors:
            raise InvalidRecipe(errors)

    def used(self, recipe: Recipe, model: Model) -> tuple[Embedding, ...]:
        """Those that a recipe's prompts name.

        Raises:
            InvalidRecipe: one is broken, or made for another model.
        """
        self.check(recipe, model)
        names = {name for text in (recipe.prompt, recipe.negative_prompt) for name in self._named(text)}
        return tuple(self._embeddings[name] for name in sorted(names))

    def _named(self, text: str) -> list[str]:
        self._refresh()
        names = {name.casefold(): name for name in (*self._embeddings, *self._broken)}
        return list({names[found.casefold()]: None for found in find(text, names.values())})

    def _problem(self, name: str, model: Model) -> str | None:
        if name in self._broken:
            return f"embedding {name!r} cannot be used: {self._broken[name]}"
        return self._embeddings[name].misfit(model)

    def _refresh(self) -> None:
        stamp = _stamp(self._folder)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        self._broken = {}
        self._embeddings = dict(self._made())
        for name, why in sorted(self._broken.items()):
            log.warning("embedding %r: %s", name, why)

    def _made(self) -> Iterator[tuple[str, Embedding]]:
        for path in sorted(self._folder.glob("*.safetensors")):
            try:
                yield path.stem, _embedding(path)
            except CatalogError as error:
                self._broken[path.stem] = str(error)


def find(text: str, names: Iterable[str]) -> list[str]:
    """The names that stand in a text as words of their own, as they stand there."""
    pattern = _pattern(tuple(names))
    return [] if pattern is None else [found[0] for found in pattern.finditer(text)]


def replaced(text: str, words: Mapping[str, str]) -> str:
    """The text with each name in it replaced by its words."""
    pattern = _pattern(tuple(words))
    by_name = {name.casefold(): word for name, word in words.items()}
    return text if pattern is None else pattern.sub(lambda found: by_name[found[0].casefold()], text)


@functools.lru_cache(maxsize=32)
def _pattern(names: tuple[str, ...]) -> re.Pattern[str] | None:
    """Of two that begin alike the longer counts."""
    words = [
        (r"(?<!\w)" if re.match(r"\w", name) else "") + re.escape(name) + (r"(?!\w)" if re.search(r"\w$", name) else "")
        for name in sorted(names, key=len, reverse=True)
    ]
    return re.compile("|".join(words), re.IGNORECASE) if words else None


def _embedding(path: Path) -> Embedding:
    header = weightfile.read_header(path)
    names = tuple(header.shapes)
    if set(names) == {"clip_l", "clip_g"}:
        names = ("clip_l", "clip_g")
    elif len(names) > 1:
        names = tuple(name for name in names if name == "emb_params")
        if not names:
            raise CatalogError("it is no textual inversion: several tensors, and none of the names that are known")
    shapes = [header.shapes[name] for name in names]
    if any(len(shape) not in (1, 2) or 0 in shape or header.dtypes[name] not in FLOATS
           for name, shape in zip(names, shapes, strict=True)):  # fmt: skip
        raise CatalogError("it is no textual inversion: its tensors are no vectors")
    counts = {shape[0] if len(shape) == 2 else 1 for shape in shapes}
    if len(counts) != 1 or max(counts) > MAX_VECTORS or path.stat().st_size > MAX_BYTES:
        raise CatalogError(f"its tensors are not the same number of vectors, at most {MAX_VECTORS}")
    return Embedding(
        name=path.stem, path=path, tensors=names, widths=tuple(shape[-1] for shape in shapes), vectors=counts.pop()
    )


def _widths(model: Model) -> tuple[int, ...]:
    """Channels of the vectors of a model's text encoders; nothing where those take none."""
    if not model.is_here:
        return ()
    if model.path.is_dir():
        parts = ENCODERS.get(model.family, ())
        found = [weightfile.read_json(model.path / part / "config.json").get("hidden_size") for part in parts]
    else:
        shapes = weightfile.read_header(model.path).shapes
        found = [shapes.get(name, (None,))[-1] for name in _WORDS.get(model.family, ())]
    return tuple(width for width in found if isinstance(width, int))


def _stamp(folder: Path) -> tuple[Any, ...]:
    """Something that differs when the folder has changed."""
    try:
        with os.scandir(folder) as found:
            return tuple(sorted((file.name, *editions.mark(file.stat())) for file in found))
    except OSError:
        return ()
