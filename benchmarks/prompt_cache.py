"""Measures what a prompt costs that comes again: the time for its embeddings, against the first time it came.

The text encoders are the embedded model's, on the device that pictures are painted on. Each prompt is encoded together
with a negative one, as a guided picture needs it, in each of the three syntaxes. First all come once, then all come
again. On a GPU each is timed until the device has done it. What is timed is all that stands between a recipe and the
denoising: the look-up too, and the parsing of the prompt's syntax.
"""

import statistics
import time
import warnings
from typing import Any

from benchmarks import machine
from benchmarks.goals import Goal

PROMPTS = 12
SYNTAXES = {
    "compel": "a (red)1.3 sun over lake number {} in the mountains",
    "a1111": "a (red:1.3) sun over lake number {} in the mountains",
    "plain": "a red sun over lake number {} in the mountains",
}

GOALS = tuple(
    Goal(f"times as fast the second time, {syntax}", (syntax, "times"), 50.0, is_least=True) for syntax in SYNTAXES
)


def run() -> dict[str, Any]:
    """The figures of every syntax; medians."""
    import torch

    from daguerre import catalog
    from daguerre.engine.pipelines import Room, load, quiet

    quiet()
    warnings.simplefilter("ignore")
    model = catalog.read(machine.ROOT / machine.MODEL.parent, machine.MODEL.name).model()
    device = torch.device(machine.device())
    pipeline = load(model, torch.float32, Room(device))
    pipeline.to_device()
    with torch.no_grad():
        return {syntax: _measured(pipeline, model, syntax, prompt) for syntax, prompt in SYNTAXES.items()}


def _measured(pipeline: Any, model: Any, syntax: str, prompt: str) -> dict[str, float]:
    from daguerre.recipe import Draft, resolve

    fields: dict[str, Any] = {"prompt_syntax": syntax, "negative_prompt": "a grey sky", "guidance_scale": 5.0}
    recipes = [resolve(Draft(prompt=prompt.format(i), **fields), model, 0, {}) for i in range(PROMPTS)]
    _seconds(pipeline, resolve(Draft(prompt="a warm-up", **fields), model, 0, {}))
    first = statistics.median(_seconds(pipeline, recipe) for recipe in recipes)
    again = statistics.median(_seconds(pipeline, recipe) for recipe in recipes)
    return {"first_ms": round(first * 1e3, 3), "again_ms": round(again * 1e3, 4), "times": round(first / again)}


def _seconds(pipeline: Any, recipe: Any) -> float:
    import torch

    begun = time.perf_counter()
    pipeline._conditioning.arguments(recipe)
    if machine.device() != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - begun
