"""Owns the LoRAs as clients see them: where each one's weights are, and reading them ahead or letting go of them."""

from dataclasses import dataclass

from daguerre.engine import AdapterAbsent, AdapterPlaced, Engine, Event
from daguerre.engine.events import Place
from daguerre.errors import DaguerreError, ModelBusy
from daguerre.jobs.service import JobService
from daguerre.loras import Lora


@dataclass(slots=True)
class LoraStatus:
    """What is known of a LoRA: where it is, and how the last attempt to read it failed."""

    place: Place = "disk"
    error: DaguerreError | None = None


class LoraShelf:
    """Between the routes and the engine. Used on the event loop only."""

    def __init__(self, engine: Engine, service: JobService) -> None:
        self._engine = engine
        self._service = service
        self._statuses: dict[str, LoraStatus] = {}

    def receive(self, event: Event) -> None:
        """One event of the engine."""
        match event:
            case AdapterPlaced(name, place):
                self._statuses[name] = LoraStatus(place)
            case AdapterAbsent(name, error):
                self._statuses[name] = LoraStatus(error=error)

    @property
    def loras(self) -> list[Lora]:
        """All that can be used."""
        return self._service.loras.loras

    def status(self, lora: Lora) -> LoraStatus:
        """What is known of it now."""
        return self._statuses.get(lora.name, LoraStatus())

    def load(self, name: str) -> tuple[Lora, bool]:
        """Begins to read a LoRA into host memory; says whether it is there already.

        Raises:
            LoraNotFound, LoraIncompatible: there is no such LoRA, or it fits no model.
        """
        lora = self._service.loras.find(name)
        self._service.loras.check_some(lora, self._service.catalog.models)
        is_there = self.status(lora).place != "disk"
        self._engine.load_adapter(lora.adapter)
        return lora, is_there

    def unload(self, name: str) -> Lora:
        """Lets go of a LoRA's weights.

        Raises:
            LoraNotFound, LoraIncompatible: there is no such LoRA.
            ModelBusy: jobs wait for it, or are painted with it.
        """
        lora = self._service.loras.find(name)
        if any(use.name == name for job in self._service.unfinished for use in job.recipe.loras):
            raise ModelBusy("jobs are waiting for the LoRA, or are painted with it")
        self._engine.unload_adapter(name)
        self._statuses[name] = LoraStatus()
        return lora
