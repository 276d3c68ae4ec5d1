"""Owns where weights are: which models are loaded, and the loader thread that reads the others from disk."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING

from daguerre.catalog import Model
from daguerre.engine.events import Event, ModelAbsent, ModelLoading, ModelReady
from daguerre.engine.scheduler import Curve
from daguerre.engine.tuning import Tuning
from daguerre.errors import CatalogError, DaguerreError

if TYPE_CHECKING:
    from daguerre.engine.pipelines import Pipeline


log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Loaded:
    """The loader's answer to a wish: a pipeline in host memory, or why there is none."""

    model: Model
    outcome: "Pipeline | DaguerreError"
    asked_at: float  # monotonic seconds


class Residency:
    """The models on the device. Used by the engine thread only; the loader thread never touches the device."""

    def __init__(self, device: str, dtype: str, emit: Callable[[Event], None], inbox: Callable[[Loaded], None]) -> None:
        from daguerre.engine import pipelines

        self.device = pipelines.choose_device(device)
        self.dtype = pipelines.choose_dtype(dtype, self.device)
        self._emit = emit
        self._inbox = inbox
        self._resident: dict[str, Pipeline | DaguerreError] = {}
        self._wanted: set[str] = set()
        self._wishes: SimpleQueue[tuple[Model, float] | None] = SimpleQueue()
        threading.Thread(target=self._load_for_ever, name="daguerre-loader", daemon=True).start()

    def find(self, model: Model) -> "Pipeline | None":
        """The model's pipeline if it is on the device; else it is asked for, once.

        Raises:
            DaguerreError: the model was asked for and could not be loaded; the next call asks again.
        """
        found = self._resident.get(model.name)
        if isinstance(found, DaguerreError):
            del self._resident[model.name]
            raise found
        if found is None and model.name not in self._wanted:
            self._wanted.add(model.name)
            self._emit(ModelLoading(model.name, "reading weights"))
            self._wishes.put((model, time.monotonic()))
        return found

    def take(self, loaded: Loaded, tuning: Tuning, curve: Curve) -> None:
        """Moves what the loader brought to the device, on the engine thread, and makes it ready there."""
        name, outcome = loaded.model.name, loaded.outcome
        self._wanted.discard(name)
        if not isinstance(outcome, DaguerreError):
            outcome = self._made_ready(outcome, tuning, curve)
        self._resident[name] = outcome
        if isinstance(outcome, DaguerreError):
            self._emit(ModelAbsent(name, outcome))
            return
        seconds = time.monotonic() - loaded.asked_at
        self._emit(ModelReady(name, str(self.device), str(self.dtype).removeprefix("torch."), seconds))

    def _made_ready(self, pipeline: "Pipeline", tuning: Tuning, curve: Curve) -> "Pipeline | DaguerreError":
        """Placed, tuned, its denoiser a meeting point, and warm."""
        from daguerre.engine.rendezvous import Meeting
        from daguerre.engine.warmup import warm_up

        name = pipeline.model.name
        try:
            pipeline.to(self.device)
            tuning.apply(pipeline.denoiser, pipeline.vae)
            Meeting(pipeline.denoiser)
            if tuning.needs_warm_up(self.device):
                self._emit(ModelLoading(name, "warming up"))
                warm_up(pipeline, curve, self.device)
        except Exception:
            log.exception("model %s could not be made ready", name)
            return CatalogError(f"{name!r} could not be made ready on {self.device}; the server's log says why")
        return pipeline

    def forget(self, model: Model) -> None:
        """Lets go of a model: runs that are under way keep it until they end, the next picture has it read anew."""
        self._resident.pop(model.name, None)

    def close(self) -> None:
        """Ends the loader thread after the load that it is at, and lets go of the weights."""
        self._wishes.put(None)
        self._resident.clear()

    def _load_for_ever(self) -> None:
        while (wish := self._wishes.get()) is not None:
            model, asked_at = wish
            self._inbox(Loaded(model, self._load(model), asked_at))

    def _load(self, model: Model) -> "Pipeline | DaguerreError":
        """Reads one model. A folder may hold anything, and libraries fail on it in as many ways."""
        from daguerre.engine import pipelines

        try:
            return pipelines.load(model, self.dtype)
        except CatalogError as error:
            return error.with_traceback(None)
        except Exception:
            log.exception("model %s could not be loaded", model.name)
            return CatalogError(f"{model.name!r} could not be loaded; the server's log says why")
