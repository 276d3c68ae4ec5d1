"""Owns the driver: the real engine and plain diffusers in one process, on the same tiny weights, on one CPU thread."""

import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import torch
from diffusers import DiffusionPipeline

from benchmarks import models
from daguerre import catalog, recipe
from daguerre.catalog import Model
from daguerre.engine import Engine, Event, ModelReady, Painted, RunEnded, Submission


@dataclass(frozen=True)
class Pair:
    """Both sides."""

    engine: Engine
    events: "SimpleQueue[Event]"
    model: Model
    pipe: Any

    def submit(self, name: str, **fields: Any) -> None:
        """Hands a recipe to the engine; its client is its name."""
        draft = recipe.Draft(prompt=f"picture {name}", **fields)
        whole = recipe.resolve(draft, self.model, 0, {})
        self.engine.submit(Submission(name, whole, self.model, client=name))

    def next_picture(self, timeout: float | None = None) -> Painted | None:
        """The engine's next picture, or None when none has come in time."""
        end = None if timeout is None else time.perf_counter() + timeout
        while True:
            try:
                event = self.events.get(timeout=None if end is None else max(0.0, end - time.perf_counter()))
            except Empty:
                return None
            if isinstance(event, RunEnded):
                raise event.error
            if isinstance(event, Painted):
                return event

    def plain(self, name: str, *, width: int, height: int, steps: int, seed: int) -> None:
        """The same picture by diffusers alone."""
        generator = torch.Generator().manual_seed(seed)
        self.pipe(f"picture {name}", width=width, height=height, num_inference_steps=steps, generator=generator)


@contextlib.contextmanager
def pair(max_runs: int = 16) -> Iterator[Pair]:
    """Both sides, loaded and warm."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder)
        models.write_sd(weights)
        model = catalog.read(weights, "sd-tiny").model()
        # Before the engine: two loads at once in one process break each other (diffusers issue 14347).
        pipe = DiffusionPipeline.from_pretrained(model.path)
        pipe.set_progress_bar_config(disable=True)
        events: SimpleQueue[Event] = SimpleQueue()
        engine = Engine(events.put, "cpu", "float32", max_runs)
        engine.start(model)
        while not isinstance(events.get(), ModelReady):
            pass
        yield Pair(engine, events, model, pipe)
        engine.close(30)
