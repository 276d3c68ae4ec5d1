"""Owns where weights are: on the device, in host memory or on disk; and the loader thread that reads them from disk."""

import gc
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING

from daguerre import garbage
from daguerre.catalog import Model
from daguerre.engine.events import Event, ModelAbsent, ModelLoading, ModelPlaced, ModelReady, Place
from daguerre.engine.tuning import Tuning
from daguerre.errors import CatalogError, DaguerreError, OutOfMemory

if TYPE_CHECKING:
    import torch

    from daguerre.engine.adapters import Worn
    from daguerre.engine.ip_adapters import HostedIpAdapter
    from daguerre.engine.offload import Offload
    from daguerre.engine.pipelines import Pipeline


log = logging.getLogger(__name__)

#: Of the memory that is there, how much weights may take where no setting says: the rest is for computing.
DEVICE_SHARE, HOST_SHARE = 0.8, 0.7
#: Times that a model is read whose files change meanwhile.
ATTEMPTS = 3
#: Seconds for which those who want the present models go first after a change, and how many times its own length.
TURN, TURN_COST = 5.0, 4.0


@dataclass(frozen=True, slots=True)
class Loaded:
    """The loader's answer to a wish: a pipeline in host memory, or why there is none."""

    model: Model
    outcome: "Pipeline | DaguerreError"
    asked_at: float  # monotonic seconds


@dataclass(frozen=True, slots=True)
class Budgets:
    """Bytes that weights may take, 0: as much as the machine has to give; the models that stay once loaded; and what
    is done with a model that the device has no room for as a whole.
    """

    device: int = 0
    host: int = 0
    pinned: Collection[str] = ()
    offload: "Offload" = "auto"


class Residency:
    """The models that are loaded, least recently used first.

    Host copies stay when a model goes to the device and serve again when it leaves: weights do not change, so nothing
    is ever copied back. Used by the engine thread only; the loader thread never touches the device.
    """

    def __init__(
        self,
        device: str,
        dtype: str,
        emit: Callable[[Event], None],
        inbox: Callable[[Loaded], None],
        budgets: Budgets,
        tuning: Tuning,
        warm: "Callable[[Pipeline], None]",
    ) -> None:
        from daguerre.engine import pipelines

        self.device = pipelines.choose_device(device)
        self.dtype = pipelines.choose_dtype(dtype, self.device)
        self._limits: dict[Place, int] = {
            "device": budgets.device or _device_limit(self.device),
            "host": budgets.host or int(HOST_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        }
        self._pinned = budgets.pinned
        self._room = pipelines.Room(self.device, self._limits["device"], budgets.offload)
        self._emit = emit
        self._inbox = inbox
        self._tuning = tuning
        self._warm = warm
        self._resident: OrderedDict[str, Pipeline] = OrderedDict()
        self._warmed: set[str] = set()
        self._failed: dict[str, DaguerreError] = {}
        self._loading: dict[str, int] = {}  # bytes that are expected
        self._turn_ends = 0.0
        self._wishes: SimpleQueue[tuple[Model, float] | None] = SimpleQueue()
        threading.Thread(target=self._load_for_ever, name="daguerre-loader", daemon=True).start()

    @property
    def is_turn(self) -> bool:
        """Whether the models that came in last are still to be used before they make room for others."""
        return time.monotonic() < self._turn_ends

    def find(self, model: Model, in_use: Collection[str]) -> "Pipeline | None":
        """The model's pipeline if it is on the device, or can be at once; else what it needs is begun.

        Models that are ``in_use`` make no room; while they leave none, this gives None. So it does while one of them is
        painted with as its files were before others took their place.

        Raises:
            DaguerreError: the model was asked for and could not be loaded; the next call asks again.
        """
        name = model.name
        if name in self._failed:
            raise self._failed.pop(name)
        found = self._resident.get(name)
        if self.is_outdated(model):
            if name in in_use:
                return None
            self.drop(name)
            found = None
        if found is None:
            self._ask(model, in_use)
            return None
        if found.place != "device" and not self._bring_in(found, in_use):
            return None
        self._resident.move_to_end(name)
        return found

    def is_outdated(self, model: Model) -> bool:
        """Whether it is here, made of files in whose place others have been put since."""
        found = self._resident.get(model.name)
        return found is not None and found.is_outdated_by(model)

    def _ask(self, model: Model, in_use: Collection[str]) -> None:
        expected = model.elements * self.dtype.itemsize
        if model.name in self._loading or not self._make_room("host", expected, in_use):
            return
        self._loading[model.name] = expected
        self._emit(ModelLoading(model.name, "reading weights"))
        self._wishes.put((model, time.monotonic()))

    def _bring_in(self, pipeline: "Pipeline", in_use: Collection[str]) -> bool:
        began = time.monotonic()
        if not self._make_room("device", pipeline.device_bytes, in_use):
            return False
        return self._place(pipeline, began)

    def _place(self, pipeline: "Pipeline", began: float) -> bool:
        """Moves a model to the device; the first time it is warmed up there."""
        name = pipeline.model.name
        try:
            pipeline.to_device()
            if name not in self._warmed:
                self._warm(pipeline)
                self._warmed.add(name)
        except Exception:
            log.exception("model %s could not be placed on %s", name, self.device)
            self.drop(name)
            error = CatalogError(f"{name!r} could not be placed on the device; the server's log says why")
            self._failed[name] = error
            self._emit(ModelAbsent(name, error))
            return False
        self._tell_ready(pipeline, began)
        return True

    def dress(self, pipeline: "Pipeline", worn: "Worn", in_use: Collection[str]) -> bool:
        """Gives the slots of a model on the device what these adapters need, if there is room.

        Raises:
            InvalidRecipe: one does not fit the model.
            OutOfMemory: there was less room than was thought.
        """
        needed = pipeline.adapters.lacks(worn)
        if not needed:
            return True
        if not self._make_room("device", needed, in_use, guest_of=pipeline.model.name):
            return False
        try:
            pipeline.adapters.grow(worn)
        except RuntimeError:
            log.exception("the slots of %s could not grow on %s", pipeline.model.name, self.device)
            raise OutOfMemory from None
        return True

    def furnish(
        self, pipeline: "Pipeline", hosted: "HostedIpAdapter", keep: Collection[Hashable], in_use: Collection[str]
    ) -> bool:
        """Attaches an IP-Adapter to a model on the device, if there is room; all but those in ``keep`` are let go of.

        Raises:
            InvalidRecipe: it does not fit the model.
            OutOfMemory: there was less room than was thought.
        """
        if pipeline.references.has(hosted):
            return True
        pipeline.references.detach(keep)
        if not self._make_room("device", hosted.bytes, in_use, guest_of=pipeline.model.name):
            return False
        try:
            pipeline.references.attach(hosted, self.device)
        except RuntimeError:
            log.exception("IP-Adapter %s could not be placed on %s", hosted.adapter.name, self.device)
            raise OutOfMemory from None
        return True

    def _tell_ready(self, pipeline: "Pipeline", began: float) -> None:
        now = time.monotonic()
        self._turn_ends = now + max(TURN, TURN_COST * (now - began))
        dtype = str(self.dtype).removeprefix("torch.")
        self._emit(ModelReady(pipeline.model.name, str(self.device), dtype, now - began))

    def _used(self, place: Place) -> int:
        """Bytes of weights; each model on the device has its host copy too."""
        resident = self._resident.values()
        if place == "host":
            return sum(pipeline.bytes for pipeline in resident) + sum(self._loading.values())
        return sum(pipeline.device_bytes for pipeline in resident if pipeline.place == "device")

    def _make_room(self, place: Place, needed: int, in_use: Collection[str], guest_of: str = "") -> bool:
        """Sends the least recently used away until there is room; says whether there is.

        What is a guest of a model needs that model to stay. One that does not fit although nothing else is left comes
        in all the same: the operator asked for it.
        """
        while self._used(place) + needed > self._limits[place]:
            others = [
                name
                for name, pipeline in self._resident.items()
                if place in ("host", pipeline.place) and name != guest_of
            ]
            idle = [name for name in others if name not in in_use and name not in self._pinned]
            if not idle:
                return not any(name in in_use for name in others) and not (place == "host" and self._loading)
            if place == "host":
                self.drop(idle[0])
            else:
                self._park(idle[0])
        return True

    def _park(self, name: str) -> None:
        self._resident[name].leave_device()
        self._emit(ModelPlaced(name, "host"))

    def drop(self, name: str) -> None:
        """Lets go of a model's weights; they are read again when it is next asked for."""
        self._warmed.discard(name)
        if self._resident.pop(name, None) is not None:
            _collect()
        self._emit(ModelPlaced(name, "disk"))

    def take(self, loaded: Loaded, in_use: Collection[str]) -> None:
        """Takes in what the loader brought, on the engine thread; to the device only where there is room."""
        from daguerre.engine.rendezvous import Meeting

        name, outcome = loaded.model.name, loaded.outcome
        del self._loading[name]
        if isinstance(outcome, DaguerreError):
            self._failed[name] = outcome
            self._emit(ModelAbsent(name, outcome))
            return
        self._resident[name] = outcome
        Meeting(outcome.denoiser)
        if self._used("device") + outcome.device_bytes <= self._limits["device"] or self._make_room(
            "device", outcome.device_bytes, {*in_use, name}
        ):
            self._place(outcome, loaded.asked_at)
        else:
            self._emit(ModelPlaced(name, "host"))

    def is_crowded_out(self, model: Model) -> bool:
        """Whether a model that could not be found waits for others to make room, and not for the disk."""
        return not self._loading and model.name not in self._failed

    def forget_failures(self) -> None:
        """All who waited have been told; whoever asks next asks anew."""
        self._failed.clear()

    def close(self) -> None:
        """Ends the loader thread after the load that it is at, and lets go of the weights."""
        self._wishes.put(None)
        self._resident.clear()

    def _load_for_ever(self) -> None:
        _import()
        while (wish := self._wishes.get()) is not None:
            model, asked_at = wish
            # Not kept in a name of this frame: it would outlive the model's stay.
            self._inbox(Loaded(model, self._load(model), asked_at))

    def _load(self, model: Model) -> "Pipeline | DaguerreError":
        """Reads one model; once more if others were put in its files' place meanwhile: it may be of some of each."""
        for _ in range(ATTEMPTS):
            model = model.as_now()
            outcome = self._read(model)
            if model.as_now() == model:
                return outcome
            log.info("the files of model %s have changed while they were read", model.name)
        return CatalogError(f"model {model.name!r} cannot be used: its files change while they are read")

    def _read(self, model: Model) -> "Pipeline | DaguerreError":
        """A folder may hold anything, and libraries fail on it in as many ways."""
        from daguerre.engine import pipelines

        try:
            return pipelines.load(model, self.dtype, self._room, self._tuning)
        except CatalogError as error:
            return CatalogError(f"model {model.name!r} cannot be used: {error}")
        except Exception:
            log.exception("model %s could not be loaded", model.name)
            return CatalogError(f"{model.name!r} could not be loaded; the server's log says why")


def _device_limit(device: "torch.device") -> int:
    """A device without memory of its own has no limit of its own: the host's holds."""
    if device.type != "cuda":
        return 2**63
    import torch

    return int(DEVICE_SHARE * torch.cuda.get_device_properties(device).total_memory)


def _import() -> None:
    """Imports torch and diffusers ahead of the first model, whose objects may have to go again."""
    from daguerre.engine import pipelines  # noqa: F401

    garbage.spare()


def _collect() -> None:
    """Frees what only cycles hold, and gives it back to the device."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
