"""Owns goals: a figure of a benchmark, the bound that it is to keep, and what was seen."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Goal(NamedTuple):
    """A bound for one figure; ``figure`` is the way to it through the mappings that ``run`` gives."""

    what: str
    figure: tuple[str, ...]
    bound: float
    is_least: bool = False  # the figure is to be at least the bound, not at most


class Judged(NamedTuple):
    """A goal and what was seen; the ratio is seen to goal."""

    what: str
    goal: str
    seen: float | None
    ratio: float | None
    verdict: str


def judge(goal: Goal, figures: Mapping[str, Any]) -> Judged:
    """Holds the figures against a goal."""
    seen: Any = figures
    for name in goal.figure:
        seen = seen[name]
    bound = f"{'≥' if goal.is_least else '≤'} {goal.bound:g}"
    if seen is None:
        return Judged(goal.what, bound, None, None, "lost in noise")
    is_met = seen >= goal.bound if goal.is_least else seen <= goal.bound
    ratio = round(seen / goal.bound, 3) if goal.bound else None
    return Judged(goal.what, bound, seen, ratio, "met" if is_met else "short")


def _shown(figure: float | None) -> str:
    return "–" if figure is None else f"{figure:g}"


def table(rows: Sequence[Judged]) -> str:
    """The rows as text, in columns."""
    cells = [("", "goal", "seen", "seen/goal", "verdict")]
    cells += [(row.what, row.goal, _shown(row.seen), _shown(row.ratio), row.verdict) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
