"""The table in README.md is whole: each row names tests that are there, and says how they were seen to fail."""

import ast
import functools
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
README = TESTS / "security" / "README.md"
#: A test as the table names it: a file under tests, and its name there.
NAMED = re.compile(r"`(\w+/test_\w+\.py)::(\w+)`")


def rows(heading: str) -> list[list[str]]:
    """The cells of each row of the tables under a heading."""
    (part,) = re.findall(rf"^## {heading}.*?\n(.*?)(?=^## |\Z)", README.read_text(), re.DOTALL | re.MULTILINE)
    _, *lines = [line for line in part.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


@functools.cache
def _names_in(path: Path) -> set[str]:
    """The names of the tests in a file."""
    tree = ast.parse(path.read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


#: How many rows each part of the list has: of systems, of libraries, of classes of input.
PARTS = {"Advisories of systems": 32, "Advisories of libraries": 9, "Classes of input": 11}


@pytest.mark.parametrize("heading", PARTS)
def test_every_test_that_is_named_is_there(heading: str) -> None:
    """In its file, under its name; and each row has one, or says why it does not concern us."""
    found = rows(heading)
    assert len(found) == PARTS[heading], [row[0] for row in found]
    for row in found:
        assert len(row) == 3, row
        named = NAMED.findall(row[1])
        assert named or "does not concern us" in row[1], row
        for file, test in named:
            assert test in _names_in(TESTS / file), (file, test)


@pytest.mark.parametrize("heading", PARTS)
def test_every_row_was_seen_to_fail(heading: str) -> None:
    """By a test of its own on something naive, which the row names; or the tests of the row hold a good one beside."""
    for row in rows(heading):
        named = NAMED.findall(row[2])
        assert named or row[2].startswith("itself: ") or "does not concern us" in row[1], row
        for file, test in named:
            assert test in _names_in(TESTS / file), (file, test)


def test_there_are_sixty() -> None:
    """Tests by name that hold the list, each counted once."""
    named = {test for heading in PARTS for row in rows(heading) for test in NAMED.findall(row[1])}
    assert len(named) >= 60
