"""Owns the driver: the real engine and plain diffusers in one process, on the same random weights."""

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

from benchmarks import machine, models
from daguerre import catalog, recipe
from daguerre.catalog import Model
from daguerre.engine import Engine, Event, ModelReady, Options, Painted, RunEnded, Submission, Tuning, pipelines
from daguerre.engine.tuning import UNTUNED


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
        generator, scale = torch.Generator().manual_seed(seed), self.model.guidance_scale
        self.pipe(
            f"picture {name}",
            width=width,
            height=height,
            num_inference_steps=steps,
            guidance_scale=scale,
            generator=generator,
        )

    @staticmethod
    def peak_memory() -> int:
        """Bytes of device memory that were allocated at once, at most; 0 on the CPU."""
        return int(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else 0


@contextlib.contextmanager
def pair(write: models.Writer = models.write_sd, tuning: Tuning = UNTUNED) -> Iterator[Pair]:
    """Both sides, loaded and warm; on a CPU both have one thread, in float32."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder))
        model = catalog.read(Path(folder), path.name).model()
        device = pipelines.choose_device(machine.device())
        # Before the engine: two loads at once in one process break each other (diffusers issue 14347).
        pipe = DiffusionPipeline.from_pretrained(model.path, dtype=pipelines.choose_dtype("auto", device)).to(device)
        pipe.set_progress_bar_config(disable=True)
        events: SimpleQueue[Event] = SimpleQueue()
        engine = Engine(events.put, Options(machine.device(), tuning=tuning))
        engine.start(model)
        while not isinstance(events.get(), ModelReady):
            pass
        yield Pair(engine, events, model, pipe)
        engine.close(30)
