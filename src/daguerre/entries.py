"""Owns catalog.toml as text: its tables one by one, so that a broken one is told with its line and costs no other."""

import itertools
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from daguerre import editions
from daguerre.errors import CatalogError

KINDS = ("models", "vaes", "loras", "ip_adapters", "safety_checkers", "styles")

T = TypeVar("T")  # 3.11 has no type parameters yet

_TABLE = re.compile(r"^\s*\[", re.MULTILINE)
_KEY = re.compile(r"unknown field `(\w+)`|at `\$\.(\w+)")


class Tables:
    """The tables of a user's file over those that are shipped, key by key."""

    def __init__(self, shipped: Mapping[str, Any], text: str, name: str) -> None:
        self._text = text
        self._name = name
        self.problems: list[str] = []
        self.broken: dict[str, dict[str, str]] = {kind: {} for kind in KINDS}
        own = self._parsed()
        for kind in own.keys() - set(KINDS):
            self.problems.append(f"{name}:{self._line(kind)}: unknown table {kind!r}; known are {', '.join(KINDS)}")
        self._tables = {kind: _over(shipped.get(kind, {}), own.get(kind, {})) for kind in KINDS}

    def of(self, kind: str, form: type[T], broken: dict[str, str] | None = None) -> dict[str, T]:
        """The tables of a kind by name; what is wrong with the others goes to ``problems`` and ``broken``."""
        good: dict[str, T] = {}
        for name, table in self._tables[kind].items():
            try:
                good[name] = msgspec.convert(table, form)
            except msgspec.ValidationError as error:
                found = _KEY.search(str(error))
                place = self.place(kind, name, (found[1] or found[2]) if found else None)
                why = f"{place}{str(error).split(' - at ')[0]}"
                self.problems.append(f"[{kind}.{name}] {why}")
                if broken is not None:
                    broken[name] = why
        return good

    def place(self, kind: str, name: str, key: str | None = None) -> str:
        """``catalog.toml:12: `` where the file has that table, else nothing."""
        line = self._line(kind, name, key)
        return f"{self._name}:{line}: " if line else ""

    def _line(self, kind: str, name: str | None = None, key: str | None = None) -> int:
        inner = "" if name is None else rf"\s*\.\s*[\"']?{re.escape(name)}[\"']?\s*\]"
        table = re.search(rf"^\s*\[\s*{re.escape(kind)}{inner}", self._text, re.MULTILINE)
        if table is None:
            return 0
        end = _TABLE.search(self._text, table.end())
        inside = self._text[table.end() : end.start() if end else None]
        found = re.search(rf"^\s*{key}\s*=", inside, re.MULTILINE) if key else None
        last = table.end() + found.end() if found else table.end()
        return self._text.count("\n", 0, last) + 1

    def _parsed(self) -> dict[str, Any]:
        """The file's tables; where it is no TOML as a whole, those parts of it that are."""
        try:
            return tomllib.loads(self._text)
        except tomllib.TOMLDecodeError:
            whole: dict[str, Any] = {}
            for line, part in self._parts():
                self._join(whole, line, part)
            return whole

    def _parts(self) -> Iterator[tuple[int, str]]:
        starts = [0, *(match.start() for match in re.finditer(r"^\[", self._text, re.MULTILINE)), len(self._text)]
        for start, end in itertools.pairwise(starts):
            yield self._text.count("\n", 0, start), self._text[start:end]

    def _join(self, whole: dict[str, Any], line: int, part: str) -> None:
        """Adds one table of the text to those that were read, or says what is wrong with it."""
        head = re.match(r"\[\s*(\w+)\s*\.\s*[\"']?([^\]\"']+?)[\"']?\s*\]", part)
        try:
            tables = tomllib.loads(part)
        except tomllib.TOMLDecodeError as error:
            why, at = str(error), re.search(r"at line (\d+)", str(error))
            line += int(at[1]) if at else part.count("\n")
            message = f"{self._name}:{line}: not TOML: {why.split(' (at')[0]}"
        else:
            if head is None or head[2] not in whole.get(head[1], {}):
                for kind, table in tables.items():
                    whole[kind] = whole.get(kind, {}) | table if isinstance(table, dict) else table
                return
            message = f"{self._name}:{line + 1}: this table stands twice"
        self.problems.append(message)
        if head is not None and head[1] in KINDS:
            self.broken[head[1]][head[2]] = message


def read(shipped: Path, own: Path) -> Tables:
    """The tables of both files; the user's may be absent.

    Raises:
        CatalogError: the user's file cannot be read at all.
        OSError: nobody can look now.
    """
    try:
        text = own.read_text()
    except FileNotFoundError:
        text = ""
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and editions.is_exhausted(error):
            raise
        raise CatalogError(f"{own.name} cannot be read as text") from None
    return Tables(tomllib.loads(shipped.read_text()), text, own.name)


def _over(shipped: Mapping[str, Any], own: Any) -> dict[str, Any]:
    if not isinstance(own, dict):
        return dict(shipped)
    keyed = {name: shipped.get(name, {}) | table if isinstance(table, dict) else table for name, table in own.items()}
    return {**shipped, **keyed}
