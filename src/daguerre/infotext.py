"""Owns what a picture says of its making: AUTOMATIC1111's infotext for the tools that read it, and our own JSON."""

import json
import re
from collections.abc import Mapping

import msgspec

from daguerre.job import SafetyResult
from daguerre.recipe import Recipe
from daguerre.samplers import DIFFUSION, FLOW
from daguerre.version import __version__

# A key's length is bounded, or a long line without a colon would be searched anew from each of its letters.
_PAIR = re.compile(r'\s*([\w ()/-]{1,60}):\s*(?:("(?:\\.|[^\\"])*")|([^,]*))(?:,|$)')
#: Of ``key: value`` pairs in a line that is not the prompt's.
_FEWEST_PAIRS = 3
#: What a recipe says that changes nothing in one picture of it.
_NOT_OF_A_PICTURE = ("count", "quality", "preview_every")


def chunks(recipe: Recipe, seed: int, safety: SafetyResult | None = None) -> dict[str, str]:
    """The text chunks of one picture, by their PNG keywords; ``safety`` is what filters said of it."""
    own = {name: value for name, value in msgspec.to_builtins(recipe).items() if name not in _NOT_OF_A_PICTURE}
    own |= {"seed": seed, "version": __version__}
    if safety is not None:
        own["safety_filter_result"] = safety
    return {"parameters": infotext(recipe, seed), "daguerre": json.dumps(own, ensure_ascii=True)}


def infotext(recipe: Recipe, seed: int) -> str:
    """AUTOMATIC1111's format: the prompt, the negative prompt unless empty, then one line of ``key: value`` pairs."""
    label, schedule = _split_schedule(sampler_label(recipe.scheduler))
    pairs: dict[str, object] = {"Steps": recipe.steps, "Sampler": label}
    if schedule:
        pairs["Schedule type"] = schedule
    pairs |= {
        "CFG scale": f"{recipe.guidance_scale:g}",
        "Seed": seed,
        "Size": f"{recipe.width}x{recipe.height}",
        "Model": recipe.model,
    }
    if recipe.strength is not None:
        pairs["Denoising strength"] = f"{recipe.strength:g}"
    if recipe.clip_skip:
        pairs["Clip skip"] = recipe.clip_skip + 1  # AUTOMATIC1111 counts the last layer as 1
    pairs["Version"] = f"daguerre {__version__}"
    negative = [f"Negative prompt: {recipe.negative_prompt}"] if recipe.negative_prompt else []
    prompt = " ".join([recipe.prompt, *(f"<lora:{use.name}:{use.weight:g}>" for use in recipe.loras)])
    return "\n".join([prompt, *negative, _line(pairs)])


def sampler_label(name: str) -> str:
    """AUTOMATIC1111's name of a sampler, its schedule included."""
    sampler = DIFFUSION.get(name) or FLOW.get(name)
    return sampler.label if sampler else name


def parse(text: str) -> dict[str, str]:
    """What an infotext says, by its keys; ``Size`` in two parts, as AUTOMATIC1111 gives it."""
    *lines, last = text.strip().split("\n")
    pairs = {key: _unquoted(quoted) if quoted else value for key, quoted, value in _PAIR.findall(last)}
    if len(pairs) < _FEWEST_PAIRS:  # the last line is one of the prompt's
        lines, pairs = [*lines, last], {}
    prompt, mark, negative = "\n".join(lines).partition("Negative prompt: ")
    found = {"Prompt": prompt.rstrip("\n"), "Negative prompt": negative if mark else ""} | pairs
    size = found.pop("Size", "")
    if "x" in size:
        found["Size-1"], found["Size-2"] = size.split("x", 1)
    return found


def _unquoted(value: str) -> str:
    try:
        return str(json.loads(value))
    except ValueError:
        return value


def _split_schedule(label: str) -> tuple[str, str]:
    """AUTOMATIC1111 names the schedule of the sigmas apart from the sampler."""
    name, _, last = label.rpartition(" ")
    return (name, last) if last == "Karras" else (label, "")


def _line(pairs: Mapping[str, object]) -> str:
    return ", ".join(f"{key}: {_quoted(str(value))}" for key, value in pairs.items())


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if any(mark in value for mark in ',\n:"') else value
