"""Owns the catalogue of LoRAs: what lies in ``weights/loras``, what catalog.toml says of it, and what it fits."""

import functools
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from daguerre import adapterfile, editions, entries, layernames
from daguerre.catalog import CATALOG_FILE, SHIPPED, Model
from daguerre.editions import Edition
from daguerre.errors import CatalogError, FieldError, InvalidRecipe, LoraIncompatible, LoraNotFound
from daguerre.recipe import Draft, LoraUse

log = logging.getLogger(__name__)

FOLDER = "loras"  # within weights


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A LoRA's table in catalog.toml. Absent keys follow from the file's own metadata."""

    file: Annotated[str, Meta(pattern=r"^[^/\\]+\.safetensors$")] | None = None
    base: str | None = None
    weight: Annotated[float, Meta(ge=-2, le=2)] = 1.0
    trigger_words: tuple[str, ...] | None = None
    description: str = ""


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


class Loras:
    """The LoRAs of one weights folder. What changes there is seen when one is next asked for."""

    def __init__(self, weights: Path) -> None:
        self._weights = weights
        self._stamp: tuple[Any, ...] | None = None
        self._loras: dict[str, Lora] = {}
        self._broken: dict[str, str] = {}
        self._known: dict[str, tuple[Adapter, Entry, Lora]] = {}
        self._refresh()

    @property
    def loras(self) -> list[Lora]:
        """All that can be used, by name."""
        self._refresh()
        return [self._loras[name] for name in sorted(self._loras)]

    @property
    def problems(self) -> list[str]:
        """What is wrong with the others."""
        self._refresh()
        return [f"LoRA {name!r}: {why}" for name, why in sorted(self._broken.items())]

    def find(self, name: str) -> Lora:
        """The LoRA of that name.

        Raises:
            LoraNotFound: with the names that are known.
            LoraIncompatible: its file or its entry is broken.
        """
        self._refresh()
        if name in self._broken:
            raise LoraIncompatible(f"LoRA {name!r} cannot be used: {self._broken[name]}")
        if name not in self._loras:
            raise LoraNotFound(name[:80], sorted(self._loras))
        return self._loras[name]

    def chosen(self, draft: Draft, model: Model) -> dict[str, Lora]:
        """The LoRAs that a draft names, held against the model by their headers.

        Raises:
            InvalidRecipe: one is unknown, broken, named twice or does not fit the model.
        """
        found: dict[str, Lora] = {}
        errors: list[FieldError] = []
        for place, wish in enumerate(draft.loras):
            if wish.name in found:
                errors.append(FieldError(f"loras[{place}]", f"LoRA {wish.name!r} is named twice"))
            try:
                found[wish.name] = self.find(wish.name)
                check(found[wish.name], model)
            except (LoraNotFound, LoraIncompatible) as error:
                errors.append(FieldError(f"loras[{place}]", error.message))
        if errors:
            raise InvalidRecipe(errors)
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

    def _refresh(self) -> None:
        stamp = _stamp(self._weights)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            tables = entries.read(SHIPPED, self._weights / CATALOG_FILE)
        except CatalogError as error:  # what was read before stays in service
            log.warning("%s", error)
            return
        self._broken = dict(tables.broken.get("loras", {}))
        self._loras = dict(self._made(tables.of("loras", Entry, self._broken)))
        for problem in (f"LoRA {name!r}: {why}" for name, why in sorted(self._broken.items())):
            log.warning("%s", problem)

    def _made(self, named: Mapping[str, Entry]) -> Iterable[tuple[str, Lora]]:
        folder = self._weights / FOLDER
        files = {path.name: path for path in sorted(folder.glob("*.safetensors"))}
        entry_of = {entry.file or f"{name}.safetensors": (name, entry) for name, entry in named.items()}
        for file, path in files.items():
            name, entry = entry_of.get(file, (path.stem, Entry()))
            try:
                known = self._known.get(name)
                adapter = Adapter(name, path, editions.mark(path.stat()))
                if known is None or known[:2] != (adapter, entry):  # headers take a while to read
                    known = self._known[name] = adapter, entry, _lora(adapter, entry)
                yield name, known[2]
            except (CatalogError, OSError) as error:
                self._broken[name] = str(error) if isinstance(error, CatalogError) else "it cannot be read"
        for file, (name, _) in entry_of.items():
            if file not in files:
                self._broken.setdefault(name, f"there is no {file} in the folder of LoRAs")


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


def _stamp(weights: Path) -> tuple[Any, ...]:
    """Something that differs when the folder or catalog.toml has changed."""
    try:
        with os.scandir(weights / FOLDER) as found:
            files = sorted((entry.name, *editions.mark(entry.stat())) for entry in found)
    except OSError:
        files = []
    try:
        stat = (weights / CATALOG_FILE).stat()
    except OSError:
        return tuple(files)
    return (*files, *editions.mark(stat))
