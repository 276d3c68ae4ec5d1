"""Measures the share of wall time in which a forward of the denoiser is running, with two clients who never pause."""

import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers import UNet2DConditionModel

from benchmarks.driver import pair
from benchmarks.goals import Goal

CLIENTS, STEPS, PICTURES = 2, 30, 16
SIDES = (64, 128)

GOALS = tuple(Goal(f"{side}²: time within forwards", (f"{side}px", "share"), 0.9, is_least=True) for side in SIDES)


def run() -> dict[str, Any]:
    """The share, by the pictures' side."""
    with _clock() as spans, pair() as both:
        figures = {}
        for side in SIDES:
            for client in range(CLIENTS):  # warm
                both.submit(str(client), width=side, height=side, steps=2, seed=client)
                both.next_picture()
            spans.clear()
            began = time.perf_counter()
            for number in range(PICTURES):
                both.submit(str(number % CLIENTS), width=side, height=side, steps=STEPS, seed=number)
                if number >= CLIENTS:
                    both.next_picture()
            for _ in range(CLIENTS):
                both.next_picture()
            seconds = time.perf_counter() - began
            figures[f"{side}px"] = {
                "share": round(sum(spans) / seconds, 3),
                "forwards": len(spans),
                "seconds": round(seconds, 2),
            }
        return figures


@contextmanager
def _clock() -> Iterator[list[float]]:
    """The seconds of every forward of a UNet, as long as this lasts."""
    spans: list[float] = []
    compute = UNet2DConditionModel.forward

    @functools.wraps(compute)
    def forward(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return compute(*args, **kwargs)
        finally:
            spans.append(time.perf_counter() - began)

    UNet2DConditionModel.forward = forward
    try:
        yield spans
    finally:
        UNet2DConditionModel.forward = compute
