"""Owns adapters in host memory: reading them from their files on a thread of its own, and keeping those used lately."""

import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from daguerre import adapterfile, editions
from daguerre.engine.events import AdapterAbsent, AdapterPlaced, Event
from daguerre.errors import CatalogError, DaguerreError, FieldError, InvalidRecipe
from daguerre.loras import Adapter

if TYPE_CHECKING:
    import torch

    from daguerre.engine.factors import Change

log = logging.getLogger(__name__)

#: Bytes of host memory that adapters may take: two dozen of rank 16 on all of SDXL.
BUDGET = 2 << 30
#: Of a file that is another one by now than the one that was asked for: whoever asks again is given that.
CHANGED = "its file changed while it was read; ask again"


@dataclass(slots=True, eq=False)
class Hosted:
    """An adapter in host memory: the changes of the layers that its file names, in the engine's dtype."""

    adapter: Adapter
    file: adapterfile.AdapterFile
    changes: "Mapping[str, Change]"
    bytes: int  # in host memory
    is_kept: bool = True  # by the cache; else by pictures under way at most

    @property
    def name(self) -> str:
        """Its name in the catalogue."""
        return self.adapter.name

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells it from every other, and from what its file held before."""
        return self.adapter.key


class Named(Protocol):
    """What a cache knows of the adapters that it is asked for."""

    @property
    def name(self) -> str:
        """In the catalogue."""
        ...


class Held(Protocol):
    """What a cache knows of the adapters that it holds."""

    is_kept: bool

    @property
    def bytes(self) -> int:
        """In host memory."""
        ...


A = TypeVar("A", bound=Named)  # 3.11 has no type parameters yet
H = TypeVar("H", bound=Held)


@dataclass(frozen=True, slots=True)
class AdapterRead:
    """The reader's answer to a wish: an adapter in host memory, or why there is none."""

    adapter: Any
    outcome: Any  # or a DaguerreError


class AdapterCache(Generic[A, H]):
    """The adapters in host memory, least recently used first. Used by the engine thread; its reader only reads.

    ``read`` is called on the reader's thread; ``field`` is the one that is wrong when an adapter cannot be used.
    """

    def __init__(
        self,
        read: Callable[[A], H],
        field: str,
        emit: Callable[[Event], None],
        inbox: Callable[[AdapterRead], None],
        budget: int = BUDGET,
    ) -> None:
        self._from_disk = read
        self._field = field
        self._emit = emit
        self._inbox = inbox
        self._budget = budget
        self._hosted: OrderedDict[A, H] = OrderedDict()
        self._failed: dict[A, DaguerreError] = {}
        self._reading: set[A] = set()
        self._wanted: set[A] = set()
        self._wishes: SimpleQueue[A | None] = SimpleQueue()
        threading.Thread(target=self._read_for_ever, name=f"daguerre-{field}-reader", daemon=True).start()

    def find(self, adapters: Sequence[A]) -> list[H] | None:
        """All of these, if they are here; else those that are not are asked for.

        Raises:
            DaguerreError: one was asked for and could not be read; after `settle`, the next call asks again.
        """
        for adapter in adapters:
            if adapter in self._failed:
                raise self._failed[adapter]
            self._wanted.add(adapter)
            self.ask(adapter)
        if any(adapter not in self._hosted for adapter in adapters):
            return None
        return [self._hosted[adapter] for adapter in adapters]

    def ask(self, adapter: A) -> None:
        """Wants it to be here soon, and to stay for a while."""
        if adapter in self._hosted:
            self._hosted.move_to_end(adapter)
        elif adapter not in self._reading:
            self._reading.add(adapter)
            self._wishes.put(adapter)

    def settle(self) -> None:
        """All who wait have been seen to: what none of them wants makes room, and failures have been told."""
        idle = [adapter for adapter in self._hosted if adapter not in self._wanted]
        while idle and sum(hosted.bytes for hosted in self._hosted.values()) > self._budget:
            self._drop(idle.pop(0))
        self._wanted.clear()
        self._failed.clear()

    def take(self, read: AdapterRead) -> None:
        """Takes in what the reader brought."""
        self._reading.discard(read.adapter)
        if isinstance(read.outcome, DaguerreError):
            self._failed[read.adapter] = read.outcome
            self._emit(AdapterAbsent(read.adapter.name, read.outcome))
        else:
            self._hosted[read.adapter] = read.outcome
            self._emit(AdapterPlaced(read.adapter.name, "host"))

    def drop(self, name: str) -> None:
        """Lets go of all that has this name."""
        for adapter in [adapter for adapter in self._hosted if adapter.name == name]:
            self._drop(adapter)
        self._emit(AdapterPlaced(name, "disk"))

    def _drop(self, adapter: A) -> None:
        self._hosted.pop(adapter).is_kept = False
        if all(other.name != adapter.name for other in self._hosted):
            self._emit(AdapterPlaced(adapter.name, "disk"))

    def close(self) -> None:
        """Ends the reader."""
        self._wishes.put(None)
        self._hosted.clear()

    def _read_for_ever(self) -> None:
        while (adapter := self._wishes.get()) is not None:
            self._inbox(AdapterRead(adapter, self._read(adapter)))

    def _read(self, adapter: A) -> H | DaguerreError:
        try:
            return self._from_disk(adapter)
        except CatalogError as error:
            return InvalidRecipe([FieldError(self._field, f"{adapter.name!r} cannot be used: {error}")])
        except Exception:  # libraries fail on files in many ways
            log.exception("adapter %s could not be read", adapter.name)
            return CatalogError(f"adapter {adapter.name!r} could not be read; the server's log says why")


def read(adapter: Adapter, dtype: "torch.dtype", is_pinned: bool = False) -> Hosted:
    """Reads an adapter's file into host memory, page-locked if a device is to fetch it from there.

    Raises:
        CatalogError: the file is no adapter, cannot be read, or holds numbers that are not finite.
    """
    import safetensors.torch

    from daguerre.engine import factors

    try:
        file = adapterfile.read(adapter.path)
        # Read as a whole, not mapped: a file that is overwritten meanwhile must not end the process.
        tensors = safetensors.torch.load(adapter.path.read_bytes())
        if editions.mark(adapter.path.stat()) != adapter.mark:
            raise CatalogError(CHANGED)
        named = {name: {part: tensors[of] for part, of in layer.tensors.items()} for name, layer in file.layers.items()}
    except OSError:
        raise CatalogError("its file cannot be read") from None
    except (safetensors.SafetensorError, KeyError, ValueError):
        raise CatalogError(CHANGED) from None
    told = _told_alphas(file.metadata)
    changes: dict[str, Change] = {}
    for name, layer in file.layers.items():
        parts = named[name]
        alpha = parts.pop("alpha", None)
        made = factors.change(layer, parts, told(name, layer.rank) if alpha is None else float(alpha), dtype)
        if not all(_is_finite(tensor) for tensor in made.tensors):
            raise CatalogError(f"layer {name[:120]!r} holds numbers that are not finite in {str(dtype)[6:]}")
        changes[name] = type(made)(*map(_pinned, made.tensors)) if is_pinned else made
    held = sum(tensor.nbytes for made in changes.values() for tensor in made.tensors)
    return Hosted(adapter, file, changes, held)


def _pinned(tensor: "torch.Tensor") -> "torch.Tensor":
    try:
        return tensor.pin_memory()
    except RuntimeError:  # the system grants no more locked memory: copying is slower, nothing else
        return tensor


def _is_finite(tensor: "torch.Tensor") -> bool:
    """In one pass: a number that is none makes both ends none."""
    return all(bool(end.isfinite()) for end in tensor.aminmax())


def _told_alphas(metadata: Mapping[str, str]) -> Callable[[str, int], float | None]:
    """What diffusers writes of alpha beside the tensors: for each part, and for the layers that have another."""
    try:
        told = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except ValueError:
        raise CatalogError("its lora_adapter_metadata is no JSON") from None

    def alpha(name: str, rank: int) -> float | None:
        part, _, path = name.partition(".")
        patterns = told.get(f"{part}.alpha_pattern")
        own = patterns.get(path) if isinstance(patterns, dict) else None
        found = told.get(f"{part}.lora_alpha") if own is None else own
        if not isinstance(found, int | float):
            return None
        return float(found) * (rank**0.5 if told.get(f"{part}.use_rslora") else 1.0)

    return alpha if isinstance(told, dict) else lambda _name, _rank: None
