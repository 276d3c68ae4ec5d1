"""How long a prompt of 8,000 characters takes to be checked: against 1,000 words, 50 phrases and 20 patterns."""

import random
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.goals import Goal
from daguerre.moderation import Category, Rules

LENGTH, TRIES = 8_000, 50
LETTERS = "etaoinshrdlucmfwypvbgkjqxz"


def run() -> dict[str, Any]:
    """Milliseconds of processor time for prompts that match no rule, so that every rule is tried."""
    chance = random.Random(7)
    rules = _rules(chance)
    return {name: _timed(rules, _prompt(chance, word)) for name, word in PROMPTS.items()}


def _word(chance: random.Random) -> str:
    return "".join(chance.choices(LETTERS, range(26, 0, -1), k=chance.randrange(2, 10)))


def _leet(chance: random.Random) -> str:
    return _word(chance).translate(str.maketrans("oeastil", "03@$71!"))


def _cyrillic(chance: random.Random) -> str:
    return _word(chance).translate(str.maketrans("aeopcyx", "аеорсух"))


def _apart(chance: random.Random) -> str:
    return ".".join(_word(chance))


def _letters(chance: random.Random) -> str:
    return " ".join(_word(chance))


PROMPTS: dict[str, Callable[[random.Random], str]] = {
    "plain": _word,
    "digits_for_letters": _leet,
    "other_scripts": _cyrillic,
    "punctuation_between": _apart,
    "spaces_between": _letters,
}

GOALS = tuple(Goal(f"milliseconds, {name.replace('_', ' ')}", (name, "median_ms"), 5.0) for name in PROMPTS)


def _rules(chance: random.Random) -> Rules:
    words = tuple(f"{_word(chance)}zzq{_word(chance)}" for _ in range(1000))
    phrases = tuple(f"{_word(chance)} zzq {_word(chance)}" for _ in range(50))
    patterns = tuple(rf"{_word(chance)}zz(ed|ing|s)? .{{0,20}}{_word(chance)}" for _ in range(20))
    return Rules({"words": Category(words, ()), "phrases": Category(phrases, ()), "patterns": Category((), patterns)})


def _prompt(chance: random.Random, word: Callable[[random.Random], str]) -> str:
    text = ""
    while len(text) < LENGTH:
        text += word(chance) + chance.choice((" ", " ", " ", ", "))
    return text[:LENGTH]


def _timed(rules: Rules, prompt: str) -> dict[str, float]:
    took = []
    for _ in range(TRIES):
        began = time.thread_time()
        assert rules.match(prompt) is None
        took.append(1000 * (time.thread_time() - began))
    return {"median_ms": round(statistics.median(took), 2), "worst_ms": round(max(took), 2)}
