"""Owns the catalogue of LoRAs: what lies in ``weights/loras``, what catalog.toml says of it, and what it fits."""

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from daguerre import adapterfile, editions, layernames, shelf
from daguerre.catalog import Model
from daguerre.editions import Edition
from daguerre.errors import CatalogError, FieldError, InvalidRecipe, LoraIncompatible, LoraMisfit, LoraNotFound
from daguerre.recipe import Draft, LoraUse

FOLDER = "loras"  # within weights


class Entry(shelf.Entry, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A LoRA's table in catalog.toml."""

    weight: Annotated[float, Meta(ge=-2, le=2)] = 1.0
    trigger_words: tuple[str, ...] | None = None


class Adapter(msgspec.Struct, frozen=True):
    """A LoRA's file as it is now: what the engine needs to know of it."""

    name: str
    path: Path
    mark: tuple[int, int, int]  # what differs once it is another file, or another's content

    @property
    def key(self) -> tuple[str, tuple[int, int, int]]:
        """The same without its path: it may stand in logs and dumps."""
        return self.name, self.mark


class Lora(msgspec.Struct, frozen=True, kw_only=True):
    """A LoRA that can be used."""

    name: str
    adapter: Adapter
    family: str | None
    rank: int
    bytes: int
    default_weight: float
    trigger_words: tuple[str, ...]
    description: str


class Loras(shelf.Shelf[Entry, Lora]):
    """The LoRAs of one weights folder."""

    noun, folder, table, form = "LoRA", FOLDER, "loras", Entry

    def __init__(self, weights: Path) -> None:
        self._known: dict[str, tuple[Adapter, Entry, Lora]] = {}
        super().__init__(weights)

    @property
    def loras(self) -> list[Lora]:
        """All that can be used, by name."""
        self._refresh()
        return list(self._good.values())

    def find(self, name: str) -> Lora:
        """The LoRA of that name.

        Raises:
            LoraNotFound: with the names that are known.
            LoraIncompatible: its file or its entry is broken.
        """
        self._refresh()
        if name in self._broken:
            raise LoraIncompatible(f"LoRA {name!r} cannot be used: {self._broken[name]}")
        if name not in self._good:
            raise LoraNotFound(name[:80], list(self._good))
        return self._good[name]

    def chosen(self, draft: Draft, model: Model) -> dict[str, Lora]:
        """The LoRAs that a draft names, held against the model by their headers.

        Raises:
            LoraMisfit: one is broken or does not fit the model.
            InvalidRecipe: one is unknown or named twice.
        """
        found: dict[str, Lora] = {}
        errors: list[FieldError] = []
        kind: type[InvalidRecipe] = LoraMisfit
        for place, wish in enumerate(draft.loras):
            if wish.name in found:
                errors.append(FieldError(f"loras[{place}]", f"LoRA {wish.name!r} is named twice"))
                kind = InvalidRecipe
            try:
                found[wish.name] = self.find(wish.name)
                check(found[wish.name], model)
            except (LoraNotFound, LoraIncompatible) as error:
                errors.append(FieldError(f"loras[{place}]", error.message))
                kind = kind if isinstance(error, LoraIncompatible) else InvalidRecipe
        if errors:
            raise kind(errors)
        return found

    def check_some(self, lora: Lora, models: Iterable[Model]) -> None:
        """Holds a LoRA against all models that are on this machine: one at least is to be for it.

        Raises:
            LoraIncompatible: there is none.
        """
        here = [model for model in models if model.is_here]
        for model in here:
            try:
                check(lora, model)
            except LoraIncompatible:
                continue
            return
        raise LoraIncompatible(f"LoRA {lora.name!r} fits none of the models {', '.join(m.name for m in here)}")

    def adapters(self, uses: Iterable[LoraUse]) -> tuple[tuple[Adapter, float], ...]:
        """What the engine is given for a recipe's LoRAs.

        Raises:
            LoraNotFound, LoraIncompatible: one is there no more.
        """
        return tuple((self.find(use.name).adapter, use.weight) for use in uses)

    def _made(self, name: str, path: Path, entry: Entry) -> Lora:
        known = self._known.get(name)
        adapter = Adapter(name, path, editions.mark(path.stat()))
        if known is None or known[:2] != (adapter, entry):  # headers take a while to read
            known = self._known[name] = adapter, entry, _lora(adapter, entry)
        return known[2]


def _lora(adapter: Adapter, entry: Entry) -> Lora:
    file = adapterfile.read(adapter.path)
    return Lora(
        name=adapter.name,
        adapter=adapter,
        family=entry.base or file.family,
        rank=file.rank,
        bytes=file.bytes,
        default_weight=entry.weight,
        trigger_words=file.trigger_words if entry.trigger_words is None else entry.trigger_words,
        description=entry.description,
    )


def check(lora: Lora, model: Model) -> None:
    """Holds a LoRA against a model by their headers.

    Of a checkpoint in a single file only the family is known before it is loaded; the engine holds its layers against
    the LoRA's then.

    Raises:
        LoraIncompatible: the model lacks its layers, or has them in other shapes.
    """
    if model.path.is_dir():
        why = _misfit(lora.adapter, model.path, model.edition)
        told = f"; it seems to be for {lora.family}" if lora.family not in (None, model.family) else ""
        if why is not None:
            message = f"LoRA {lora.name!r} does not fit {model.name!r}, which is {model.family}: {why}{told}"
            raise LoraIncompatible(message)
    elif lora.family not in (None, model.family):
        raise LoraIncompatible(f"LoRA {lora.name!r} is for {lora.family}; {model.name!r} is {model.family}")


@functools.lru_cache(maxsize=256)
def _misfit(adapter: Adapter, folder: Path, _edition: Edition) -> str | None:
    """Why an adapter does not fit a folder's model as it is now."""
    try:
        adapterfile.match(adapterfile.read(adapter.path), layernames.of_folder(folder))
    except CatalogError as error:
        return str(error)
    return None
