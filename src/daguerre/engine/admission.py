"""Owns admission: the pictures that wait to begin, and whether all that they are painted with is at hand."""

from collections.abc import Callable, Collection, Iterable

from daguerre.catalog import Model
from daguerre.engine.adapter_cache import AdapterCache, Hosted
from daguerre.engine.ip_adapters import HostedIpAdapter
from daguerre.engine.painting import Painting
from daguerre.engine.pipelines import Pipeline
from daguerre.engine.residency import Residency
from daguerre.errors import DaguerreError
from daguerre.loras import Adapter
from daguerre.references import IpAdapter
from daguerre.telemetry.counters import Counters


class Admission:
    """Used by the engine thread only. ``fail`` ends a job whose weights cannot be used, and calls `drop`."""

    def __init__(
        self,
        residency: Residency,
        adapters: AdapterCache[Adapter, Hosted],
        ip_adapters: AdapterCache[IpAdapter, HostedIpAdapter],
        counters: Counters,
        fail: Callable[[str, DaguerreError], None],
    ) -> None:
        self.waiting: list[Painting] = []
        self._residency = residency
        self._adapters = adapters
        self._ip_adapters = ip_adapters
        self._counters = counters
        self._fail = fail
        self._preloads: list[Model] = []

    def preload(self, model: Model) -> None:
        """The model is to be on the device, though nobody has asked for a picture of it."""
        self._preloads.append(model)

    def drop(self, job_id: str) -> None:
        """None of a job's pictures waits any more."""
        self.waiting = [painting for painting in self.waiting if painting.job_id != job_id]

    def ready(self, running: Collection[Painting]) -> dict[Painting, Pipeline]:
        """The waiting pictures that can begin beside those that are running; what the others need is asked for.

        Who came first has the say: a model makes room only when no picture under way needs it, and none that came
        earlier. So that two models do not take turns with every picture, all who wait for the present ones go on until
        their turn is over.
        """
        in_use = {painting.model.name for painting in running}
        if self._residency.is_turn:
            wanted = (painting.model for painting in self.waiting)
            in_use |= {model.name for model in wanted if not self._residency.is_outdated(model)}
        dressed = {painting for painting in list(self.waiting) if self._is_dressed(painting)}
        self._adapters.settle()
        self._ip_adapters.settle()
        ready = self._placed(dressed, in_use, running)
        self._place_preloads(in_use)
        self._residency.forget_failures()
        return ready

    def _placed(
        self, dressed: Collection[Painting], in_use: set[str], running: Iterable[Painting]
    ) -> dict[Painting, Pipeline]:
        """Those whose models are on the device, with what they wear; their models are in use from now on."""
        ready: dict[Painting, Pipeline] = {}
        failed: dict[str, DaguerreError] = {}
        crowded_out: str | None = None
        for painting in list(self.waiting):
            model = painting.model
            if crowded_out not in (None, model.name):
                continue  # else the models in use would stay so for ever
            try:
                pipeline = self._residency.find(model, in_use)
            except DaguerreError as error:
                failed[model.name] = error
                continue
            if pipeline is not None:
                in_use.add(model.name)
                has_room = painting not in dressed or self._is_furnished(painting, pipeline, in_use, running)
                if painting in dressed and has_room and painting in self.waiting:
                    ready[painting] = pipeline
                elif not has_room:
                    crowded_out = model.name
            elif self._residency.is_crowded_out(model) and not self._residency.is_turn:
                crowded_out = model.name
        for painting in [painting for painting in self.waiting if painting.model.name in failed]:
            self._fail(painting.job_id, failed[painting.model.name])
        return ready

    def _is_dressed(self, painting: Painting) -> bool:
        """Whether its adapters are in host memory; those that are not are asked for."""
        try:
            hosted = self._adapters.find([adapter for adapter, _ in painting.submission.adapters])
        except DaguerreError as error:
            self._fail(painting.job_id, error)
            return False
        painting.hosted = hosted or []
        if not painting.is_counted and painting.submission.adapters:
            painting.is_counted = True
            self._counters.adapter_hits += hosted is not None
            self._counters.adapter_misses += hosted is None
        return hosted is not None and self._has_eyes(painting)

    def _has_eyes(self, painting: Painting) -> bool:
        """Whether its IP-Adapter is in host memory, if it has references."""
        wanted = painting.submission.ip_adapter
        if wanted is None or not painting.scales:
            return True
        try:
            found = self._ip_adapters.find([wanted])
        except DaguerreError as error:
            self._fail(painting.job_id, error)
            return False
        painting.ip_adapter = None if found is None else found[0]
        return found is not None

    def _is_furnished(
        self, painting: Painting, pipeline: Pipeline, in_use: set[str], running: Iterable[Painting]
    ) -> bool:
        """Whether what it needs of adapters is on the device, or there is room for it: then it is there now."""
        alive = (*self.waiting, *running)
        keep = {other.ip_adapter.key for other in alive if other.ip_adapter is not None}
        try:
            if painting.worn and not self._residency.dress(pipeline, painting.worn, in_use):
                return False
            if painting.ip_adapter is None:
                return True
            return self._residency.furnish(pipeline, painting.ip_adapter, keep, in_use)
        except DaguerreError as error:
            self._fail(painting.job_id, error)
            return True

    def _place_preloads(self, in_use: Collection[str]) -> None:
        for model in list(self._preloads):
            try:
                is_done = self._residency.find(model, in_use) is not None
            except DaguerreError:  # its event has told
                is_done = True
            if is_done:
                self._preloads.remove(model)
