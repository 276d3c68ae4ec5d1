"""Owns shelves: folders of weight files that join by themselves, and the tables of catalog.toml that tell of them."""

import contextlib
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import msgspec
from msgspec import Meta

from daguerre import editions, entries
from daguerre.catalog import CATALOG_FILE, SHIPPED
from daguerre.errors import CatalogError

log = logging.getLogger(__name__)


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file's table in catalog.toml. Absent keys follow from the file's own metadata."""

    file: Annotated[str, Meta(pattern=r"^[^/\\]+\.safetensors$")] | None = None
    base: str | None = None
    description: str = ""


E = TypeVar("E", bound=Entry)
T = TypeVar("T")


class Shelf(ABC, Generic[E, T]):
    """The files of one folder of weights. What changes there is seen when one is next asked for."""

    noun: str  # what a file holds, for people
    folder: str  # within weights
    table: str | None  # of catalog.toml
    form: type[E]  # of such a table

    def __init__(self, weights: Path) -> None:
        self._weights = weights
        self._stamp: tuple[Any, ...] | None = None
        self._good: dict[str, T] = {}  # by name
        self._broken: dict[str, str] = {}
        self._refresh()

    @property
    def problems(self) -> list[str]:
        """What is wrong with the files that cannot be used."""
        self._refresh()
        return self._problems()

    def _problems(self) -> list[str]:
        return [f"{self.noun} {name!r}: {why}" for name, why in sorted(self._broken.items())]

    @abstractmethod
    def _made(self, name: str, path: Path, entry: E) -> T:
        """What a file and its table make together.

        Raises:
            CatalogError: it cannot be used.
            OSError: it cannot be read.
        """

    def _refresh(self) -> None:
        before = None
        try:
            stamp = _stamp(self._weights / self.folder, self._weights / CATALOG_FILE)
            if stamp != self._stamp:
                before = dict(vars(self))
                self._stamp = stamp
                self._read_all()
        except OSError:  # whoever cannot look has seen no change
            vars(self).update(before or {})

    def _read_all(self) -> None:
        named: dict[str, E] = {}
        broken: dict[str, str] = {}
        if self.table is not None:
            try:
                tables = entries.read(SHIPPED, self._weights / CATALOG_FILE)
            except CatalogError as error:  # what was read before stays in service
                log.warning("%s", error)
                return
            broken = dict(tables.broken.get(self.table, {}))
            named = tables.of(self.table, self.form, broken)
        self._broken = broken
        self._good = dict(sorted(self._read(named)))
        for problem in self._problems():
            log.warning("%s", problem)

    def _read(self, named: Mapping[str, E]) -> Iterator[tuple[str, T]]:
        files = {path.name: path for path in sorted((self._weights / self.folder).glob("*.safetensors"))}
        entry_of = {entry.file or f"{name}.safetensors": (name, entry) for name, entry in named.items()}
        for file, path in files.items():
            name, entry = entry_of.get(file, (path.stem, self.form()))
            try:
                yield name, self._made(name, path, entry)
            except CatalogError as error:
                self._broken[name] = str(error)
            except OSError as error:
                if editions.is_exhausted(error):
                    raise
                self._broken[name] = "it cannot be read"
        for file, (name, _) in entry_of.items():
            if file not in files:
                self._broken.setdefault(name, f"there is no {file} in the folder of {self.noun}s")


def _stamp(folder: Path, catalog: Path) -> tuple[Any, ...]:
    """Something that differs when the folder, one within it or catalog.toml has changed."""
    found = _listed(folder)
    for name, is_folder, *_ in tuple(found):
        found += _listed(folder / name) if is_folder else []
    try:
        stat = catalog.stat()
    except OSError:
        return tuple(found)
    return (*found, *editions.mark(stat))


def _listed(folder: Path) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    try:
        with os.scandir(folder) as files:
            for file in files:
                with contextlib.suppress(OSError):  # a link to nothing costs no other
                    found.append((file.name, file.is_dir(), *editions.mark(file.stat())))
    except OSError as error:
        if editions.is_exhausted(error):
            raise
    return sorted(found)
