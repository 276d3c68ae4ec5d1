"""Owns the engine's counters: plain numbers that its thread adds to and that are read when somebody asks for metrics.

An event for each would wake the event loop at every forward; a number costs nothing.
"""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a device with memory of its own: in tensors, in torch's hands, and in all."""

    allocated: int = 0
    reserved: int = 0
    total: int = 0


@dataclass(slots=True)
class Counters:
    """Written by the engine thread alone. They only grow, but for ``memory``."""

    forwards: Counter[int] = field(default_factory=Counter)  # by their rows, without padding
    forward_seconds: float = 0.0  # on the device
    preemptions: int = 0
    out_of_memory: int = 0
    lora_switches: int = 0
    adapter_hits: int = 0  # of pictures that begin to wait: their adapters are in host memory already, or are not
    adapter_misses: int = 0
    memory: Memory = Memory()
