"""Owns painting in this process, without a server: the engine, the catalogue and the outputs folder joined."""

import random
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Self

import msgspec

from daguerre import catalog as catalogs
from daguerre import recipe
from daguerre.embeddings import Embeddings
from daguerre.engine import Engine, EngineDied, Event, ModelLoading, Options, Painted, RunEnded, Stepped, Submission
from daguerre.job import new_id
from daguerre.jobs import pictures
from daguerre.jobs.inputs import read
from daguerre.jobs.sources import Sources
from daguerre.loras import Loras
from daguerre.recipe import Draft, Recipe
from daguerre.references import References
from daguerre.settings import Settings
from daguerre.store.files import FORMATS, Files

OnProgress = Callable[[str, float], None]


class Studio:
    """An engine to call directly::

    with Studio() as studio:
        paths = studio.generate(Draft(prompt="a beautiful sunset over mountains"))
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self._settings = settings or Settings()
        self._catalog = catalogs.read(self._settings.weights, self._settings.default_model)
        self._loras = Loras(self._settings.weights)
        self._sources = Sources(References(self._settings.weights), Embeddings(self._settings.weights))
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._engine = Engine(self._events.put, Options(self._settings.device, self._settings.dtype))

    def __enter__(self) -> Self:
        self._engine.start()
        return self

    def __exit__(self, _kind: type | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        self._engine.close(timeout=10.0)

    def generate(self, draft: Draft, out: Path | None = None, on_progress: OnProgress = lambda *_: None) -> list[Path]:
        """Paints, writes and gives the files. ``out`` is a folder, or the file for a single picture.

        Raises:
            DaguerreError: the recipe cannot be painted, or painting failed.
            OSError: a file cannot be written.
        """
        model = self._catalog.model(draft.model)
        if draft.format is None and out is not None and out.suffix in FORMATS:
            draft = msgspec.structs.replace(draft, format=FORMATS[out.suffix])
        inputs = read(draft)
        size = None if inputs is None else inputs.size
        chosen = self._loras.chosen(draft, model)
        whole = recipe.resolve(draft, model, random.randrange(recipe.RANDOM_SEEDS), self._catalog.styles, size, chosen)
        whole = self._sources.completed(whole, draft, model)
        job_id = new_id()
        image, mask = (None, None) if inputs is None else inputs.fitted((whole.width, whole.height))
        adapters = self._loras.adapters(whole.loras)
        found = self._sources.find(whole, model)
        self._engine.submit(
            Submission(job_id, whole, model, image, mask, "", adapters, found.ip_adapter, *found.read(inputs))
        )
        paths: list[Path] = []
        while len(paths) < whole.count:
            match self._events.get():
                case ModelLoading(name, stage):
                    on_progress(f"{name}: {stage}" if name else stage, 0.0)
                case Stepped(_, index, step, steps):
                    on_progress(f"step {step} of {steps}", (index + step / steps) / whole.count)
                case Painted() as painted:
                    paths.append(self._keep(painted, whole, job_id, out))
                case RunEnded(_, error) | EngineDied(error):
                    raise error
        return paths

    def _keep(self, painted: Painted, whole: Recipe, job_id: str, out: Path | None) -> Path:
        pixels = painted.pixels.array()
        if out is not None and out.suffix and not out.is_dir() and whole.count == 1:
            out.write_bytes(pictures.encode(pixels, whole, whole.seed))
            return out
        folder = out or self._settings.outputs
        image, _ = pictures.keep(Files(folder), pixels, whole, job_id, painted.index)
        return folder / image.filename
