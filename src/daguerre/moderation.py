"""Owns moderation: prompts that match the operator's rules are refused, however they are spelled.

The rules are a TOML file with a table for each category: ``words`` (or phrases), which match whole words, and
``patterns``, regular expressions for one word or several. Both are compared with every reading of the prompt.

No pattern can take long. Groups may be optional but not repeated, and repetitions must have a bound, so a pattern is
tried on at most as many paths as the product of its choices; that product is bounded, and paths begin at words only.
"""

import logging
import re
import tomllib
from pathlib import Path
from typing import Literal

import msgspec

from daguerre.errors import ModerationFailed, PromptRefused
from daguerre.job import SafetyResult
from daguerre.spellings import folded, readings_of, runs_of, words_of

log = logging.getLogger(__name__)

#: Ways in which a pattern may match at one place, and how often a character of it may be repeated.
MOST_PATHS, MOST_REPEATS = 1000, 50


class Category(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The rules of one category, as they are written."""

    words: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()


class Rules:
    """The rules of all categories, made ready.

    Raises:
        ValueError: a word has no letters, or a pattern is none, or may not be used; the message says which.
    """

    def __init__(self, categories: dict[str, Category]) -> None:
        self._words: dict[str, str] = {}
        self._phrases: dict[str, list[tuple[list[str], str]]] = {}
        self._patterns: list[tuple[re.Pattern[str], str]] = []
        for name, category in categories.items():
            for text in category.words:
                self._add(text, name)
            self._patterns += [(_compiled(_vetted(pattern, name)), name) for pattern in category.patterns]
        # One search for all of them; which it was is asked only then.
        every = [pattern for category in categories.values() for pattern in category.patterns]
        self._any_pattern = _compiled(*every) if every else None

    def _add(self, text: str, category: str) -> None:
        words = words_of(folded(text))
        if not words:
            raise ValueError(f"{category}: a word without letters")
        if len(words) == 1:
            self._words[words[0]] = category
        else:
            self._phrases.setdefault(words[0], []).append((words, category))

    def match(self, text: str) -> str | None:
        """The category of a rule that the text matches."""
        readings = list(readings_of(folded(text)))
        lines = [" ".join(words) for words in readings]
        runs = " ".join({run for line in lines for run in runs_of(line)})
        return (
            next((found for words in readings if (found := self._listed(words)) is not None), None)
            or self._within(runs)
            or next((found for line in (runs, *lines) if (found := self._described(line)) is not None), None)
        )

    def _listed(self, words: list[str]) -> str | None:
        known = set(words)
        for word in self._words.keys() & known:
            return self._words[word]
        if self._phrases.keys().isdisjoint(known):
            return None
        for place, word in enumerate(words):
            for phrase, category in self._phrases.get(word, ()):
                if words[place : place + len(phrase)] == phrase:
                    return category
        return None

    def _within(self, runs: str) -> str | None:
        """Nobody writes many letters apart, so a word among them needs no ends."""
        words = self._words.items() if runs else ()
        return next((category for word, category in words if len(word) > 2 and word in runs), None)

    def _described(self, line: str) -> str | None:
        if self._any_pattern is None or not self._any_pattern.search(line):
            return None
        return next(category for pattern, category in self._patterns if pattern.search(line))


def _compiled(*patterns: str) -> "re.Pattern[str]":
    return re.compile(rf"(?<!\S)(?:{'|'.join(patterns)})(?!\S)")


def _vetted(pattern: str, category: str) -> str:
    """The pattern, if it can be searched for in little time."""
    try:
        paths = _paths(pattern)
        re.compile(pattern)
    except (re.error, ValueError) as error:
        raise ValueError(f"{category}: pattern {pattern[:80]!r}: {error}") from None
    if paths > MOST_PATHS:
        raise ValueError(f"{category}: pattern {pattern[:80]!r}: more than {MOST_PATHS} ways to match at one place")
    return pattern


_PIECE = re.compile(
    r"\\(?P<escape>.)|(?P<set>\[\^?\]?(?:\\.|[^\]\\])*\])|(?P<open>\((?:\?:)?)|(?P<close>\))|(?P<or>\|)"
    r"|\{(?P<least>\d{0,4})(?P<comma>,?)(?P<most>\d{0,4})\}|(?P<maybe>\?)|(?P<other>.)",
    re.DOTALL,
)


def _paths(pattern: str) -> int:
    """In how many ways a pattern can be tried at one place.

    Raises:
        ValueError: it repeats without a bound, repeats a group, looks around or refers back.
    """
    # Of each open group: the ways of its finished branches, and those of the present one.
    levels, after_group = [[0, 1]], False
    for piece in _PIECE.finditer(pattern):
        _refuse(piece, after_group=after_group)
        match piece.lastgroup:
            case "open":
                levels.append([0, 1])
            case "or":
                levels[-1] = [sum(levels[-1]), 1]
            case "close" if len(levels) > 1:
                ways = sum(levels.pop())
                levels[-1][1] *= ways + pattern.startswith("?", piece.end())
            case "maybe" if not after_group:
                levels[-1][1] *= 2
            case "most":
                levels[-1][1] *= _choices(piece["least"], piece["comma"], piece["most"])
        after_group = piece.lastgroup == "close"
    return sum(levels[0])


def _refuse(piece: "re.Match[str]", *, after_group: bool) -> None:
    """Refuses what a pattern must not hold; what is not one at all, Python tells."""
    escape, other = piece["escape"] or "", piece["other"] or ""
    if escape.isalnum() and escape not in "wWdDsS":
        raise ValueError(f"\\{escape} is not allowed; a match begins and ends with a word anyway")
    if other and other in "*+^$":
        raise ValueError(f"{other} is not allowed; repeat with a bound, like {{0,20}}")
    if other == "{":
        raise ValueError("{ must begin a number of repetitions")
    if piece["open"] and piece.string.startswith("?", piece.end()):
        raise ValueError("groups may only begin with ( or (?:")
    if piece.lastgroup == "most" and after_group:
        raise ValueError("a group may be optional, but not repeated")


def _choices(least: str, comma: str, most: str) -> int:
    """How many numbers of repetitions ``{least,most}`` allows."""
    if comma and not most:
        raise ValueError("repetitions need an upper bound, like {0,20}")
    low = int(least or 0)
    high = int(most) if comma else low
    if high > MOST_REPEATS:
        raise ValueError(f"more than {MOST_REPEATS} repetitions")
    return max(1, high - low + 1)


class Moderation:
    """The rules of a file, which is read again when it changes.

    ``fails`` says what becomes of prompts while it cannot be used: refused (closed), or painted unchecked (open).
    """

    def __init__(self, path: Path, fails: Literal["closed", "open"]) -> None:
        self._path = path
        self._fails = fails
        self._seen: tuple[int, ...] | None = None  # which file was read; () for one that cannot be
        self._rules: Rules | None = None
        self._read()

    def judge(self, prompt: str) -> SafetyResult:
        """Lets a prompt pass.

        Raises:
            PromptRefused: it matches a rule.
            ModerationFailed: there are no rules to be had, and that is to be waited out.
        """
        rules = self._read()
        if rules is None:
            if self._fails == "closed":
                raise ModerationFailed
            return "unchecked"
        category = rules.match(prompt)
        if category is not None:
            raise PromptRefused(category)
        return "passed"

    def _read(self) -> Rules | None:
        try:
            status = self._path.stat()
            seen = (status.st_ino, status.st_mtime_ns, status.st_size)
            if seen != self._seen:
                self._seen, self._rules = seen, None
                self._rules = read(self._path)
                log.info("moderation: rules read")
        except OSError as error:
            if self._seen != ():  # told once
                log.error("moderation: the rules cannot be read: %s", error.strerror)  # noqa: TRY400
            self._seen, self._rules = (), None
        except ValueError as error:
            log.error("moderation: the rules cannot be used: %s", error)  # noqa: TRY400
        return self._rules


def read(path: Path) -> Rules:
    """The rules of a file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not TOML, or holds what is no rule.
    """
    try:
        return Rules(msgspec.convert(tomllib.loads(path.read_text("utf-8")), dict[str, Category]))
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None
