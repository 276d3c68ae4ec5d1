"""Owns AUTOMATIC1111's prompt syntax: ``(word)``, ``(word:1.3)``, ``[word]``, ``BREAK``, ``<lora:name:0.8>``.

A round bracket counts what is in it 1.1 times, or as many times as its number says; a square one 1 / 1.1 times; a
backslash takes a bracket's meaning away. Where AUTOMATIC1111 guesses at brackets that do not match, this refuses; so it
does prompts that would change from step to step, ``[from:to:when]`` and ``[one|other]``.
"""

import re
from dataclasses import dataclass, field

ROUND, SQUARE = 1.1, 1 / 1.1
MOST = 10.0

_MARKS = re.compile(
    r"\\(?P<escaped>[\\()\[\]:|<>])|<(?:lora|lyco):(?P<lora>[^<>]*)>|(?P<tag><(?:lora|lyco):)"
    r"|:\s*(?P<number>[-+]?[\d.]+)\s*\)|\b(?P<break>BREAK)\b|(?P<mark>[()\[\]])"
)


class SyntaxProblem(Exception):
    """A prompt cannot be read; ``position`` counts its characters from 1."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(f"at character {position + 1}: {message}")


@dataclass(slots=True)
class Fragment:
    """Text of one weight."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class LoraTag:
    """A LoRA that a prompt names; without a weight it has the catalogue's."""

    name: str
    weight: float | None


@dataclass(slots=True)
class Parsed:
    """A prompt in its sections, between which it said BREAK, and what it is without the LoRAs that it names."""

    sections: list[list[Fragment]] = field(default_factory=lambda: [[]])
    loras: list[LoraTag] = field(default_factory=list)
    rest: str = ""

    @property
    def is_weighted(self) -> bool:
        """Whether it is more than a text."""
        return len(self.sections) > 1 or any(part.weight != 1.0 for section in self.sections for part in section)

    @property
    def text(self) -> str:
        """Nothing but its words."""
        return "".join(part.text for section in self.sections for part in section)


@dataclass(frozen=True, slots=True)
class _Open:
    """A bracket that waits for its end, and the first fragment within."""

    mark: str
    position: int
    first: int


def parse(prompt: str) -> Parsed:
    """Reads a prompt.

    Raises:
        SyntaxProblem: a bracket has no other side, a number is none, or it would change from step to step.
    """
    parsed, end = Parsed(), 0
    parts: list[Fragment] = []
    stack: list[_Open] = []
    breaks: set[int] = set()
    for match in _MARKS.finditer(prompt):
        _text(parts, prompt[end : match.start()], end, stack)
        end, position = match.end(), match.start()
        if match["lora"] is not None:
            parsed.loras.append(_lora(match["lora"], position))
            continue
        if match["escaped"]:
            parts.append(Fragment(match["escaped"]))
        elif match["tag"]:
            raise SyntaxProblem("a LoRA is written <lora:name> or <lora:name:weight>", position)
        elif match["break"]:
            breaks.add(len(parts))
        elif match["number"]:
            _close(parts, stack, ")", position + match[0].rindex(")"), _number(match["number"], position + 1))
        elif match["mark"] in "([":
            stack.append(_Open(match["mark"], position, len(parts)))
        else:
            _close(parts, stack, match["mark"], position, ROUND if match["mark"] == ")" else SQUARE)
    _text(parts, prompt[end:], end, stack)
    if stack:
        raise SyntaxProblem(
            f"{stack[-1].mark!r} is never closed; a bracket that is meant as such is \\(", stack[-1].position
        )
    for place, part in enumerate(parts):
        if place in breaks:
            parsed.sections.append([])
        parsed.sections[-1].append(part)
    parsed.rest = _without_tags(prompt)
    return parsed


def _without_tags(prompt: str) -> str:
    return re.sub(r"(?<!\\)<(?:lora|lyco):[^<>]*>", "", prompt).strip()


def _text(parts: list[Fragment], text: str, begin: int, stack: list[_Open]) -> None:
    if stack and stack[-1].mark == "[" and (found := re.search(r"[:|]", text)):
        raise SyntaxProblem("prompts that change from step to step are not served", begin + found.start())
    if text:
        parts.append(Fragment(text))


def _close(parts: list[Fragment], stack: list[_Open], mark: str, position: int, weight: float) -> None:
    wanted = "(" if mark == ")" else "["
    if not stack or stack[-1].mark != wanted:
        raise SyntaxProblem(f"{mark!r} closes nothing; a bracket that is meant as such is \\{mark}", position)
    for part in parts[stack.pop().first :]:
        part.weight *= weight


def _number(text: str, position: int) -> float:
    try:
        number = float(text)
    except ValueError:
        raise SyntaxProblem(f"{text[:20]!r} is no number", position) from None
    if abs(number) > MOST:
        raise SyntaxProblem(f"weights are between -{MOST:g} and {MOST:g}", position)
    return number


def _lora(inner: str, position: int) -> LoraTag:
    name, colon, weight = inner.partition(":")
    if not name.strip() or (colon and not re.fullmatch(r"\s*[-+]?(\d+\.?\d*|\.\d+)\s*", weight)):
        raise SyntaxProblem("a LoRA is written <lora:name> or <lora:name:weight>", position)
    number = float(weight) if colon else None
    if number is not None and abs(number) > 2:
        raise SyntaxProblem("the weight of a LoRA is between -2 and 2", position)
    return LoraTag(name.strip(), number)
