"""Owns the warm-up: a model's first forwards, made before anybody waits for them, and measured."""

import logging
import time
from typing import Any

import torch

from daguerre.engine.pipelines import Pipeline, Timer
from daguerre.engine.rendezvous import Call, Run
from daguerre.engine.scheduler import BUCKETS, Curve
from daguerre.recipe import Draft, resolve

log = logging.getLogger(__name__)

STEPS = 2


def warm_up(pipeline: Pipeline, curve: Curve, device: torch.device) -> None:
    """Paints one picture of the model's defaults, its first call in every bucket of rows; what each took is recorded.

    A bucket that does not fit into memory becomes the key's limit. The first forward of a bucket compiles and chooses
    kernels, so the second is the one that is measured.
    """
    model = pipeline.model
    recipe = resolve(Draft(prompt="a lake in the mountains", steps=STEPS, prompt_syntax="plain"), model, 0, {})
    run = Run(
        lambda: pipeline.paint(recipe, None, None, 0, lambda *_: None, Timer()),
        (model.name, recipe.width, recipe.height),
    )
    outcome = run.resume()
    is_first = True
    while isinstance(outcome, Call):
        output = _measured(outcome, curve, device) if is_first else outcome.meeting.forward([outcome], outcome.rows)[0]
        outcome, is_first = run.resume(output), False
    outcome.array()


def _measured(call: Call, curve: Curve, device: torch.device) -> Any:
    """The call's output, after it has been computed in every bucket that holds it and fits."""
    output = call.meeting.forward([call], call.rows)[0]
    if call.key is None:
        return output
    for rows in (size for size in BUCKETS if size >= call.rows):
        try:
            for _ in range(2):
                began = time.perf_counter()
                call.meeting.forward([call], rows)
                _wait_for(device)
                seconds = time.perf_counter() - began
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            curve.limit(call.key, rows)
            break
        for _ in range(2):  # one measurement is a first impression, two are knowledge
            curve.record(call.key, rows, seconds)
    return output


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
