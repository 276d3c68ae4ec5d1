"""Owns spilling: the denoiser outputs of pictures that take long, written to disk while they are painted.

A process that dies loses what it held in memory; the next one begins its jobs anew and answers their first denoiser
calls from what is here. Only its thread of its own ever writes: nobody waits for the disk.
"""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import safetensors.torch
import torch

from daguerre.store.spills import Spills

log = logging.getLogger(__name__)

#: What a denoiser gives to a pipeline of diffusers, which all call it with ``return_dict=False``.
Output = tuple[torch.Tensor, ...]


class Spilling:
    """All that is spilled. Used on the engine thread; pictures that are done within ``every`` seconds cost nothing.

    Without spills, or with ``every`` 0, nothing is written.
    """

    def __init__(self, spills: Spills | None, every: float) -> None:
        self._spills = spills if every else None
        self._every = every
        self._writer = ThreadPoolExecutor(1, "daguerre-spill")

    def of(self, job_id: str, index: int, made_with: Callable[[], bytes]) -> "Spill | None":
        """Where the outputs of a job's picture go; ``made_with`` tells all that they depend on beside the job."""
        if self._spills is None:
            return None
        return Spill(self._spills, self._writer, self._every, job_id, index, made_with())

    def drop(self, job_id: str) -> None:
        """The job is done: what it cost need not be known any more."""
        if self._spills is not None:
            self._writer.submit(self._spills.drop, job_id)

    def close(self) -> None:
        """Returns when all is written."""
        self._writer.shutdown()


class Spill:
    """The outputs of one picture, in their order, in as many parts as they were written in.

    A part is known by the number of its first output: one that was left behind a gap is never taken for the next.
    """

    def __init__(
        self, spills: Spills, writer: ThreadPoolExecutor, every: float, job_id: str, index: int, made_with: bytes
    ) -> None:
        self._spills = spills
        self._writer = writer
        self._every = every
        self._picture = job_id, index
        self._made_with = made_with
        self._written = 0  # outputs
        self._since = time.monotonic()

    def read(self) -> list[Output]:
        """What a process before this one left."""
        outputs: list[Output] = []
        while (part := self._spills.read(*self._picture, len(outputs), self._made_with)) is not None:
            outputs += _outputs(part)
        self._written = len(outputs)
        return outputs

    def offer(self, outputs: Sequence[Any]) -> None:
        """These are the outputs so far, in host memory; from time to time the new ones are written."""
        if time.monotonic() - self._since >= self._every:
            self.write(outputs)

    def write(self, outputs: Sequence[Any]) -> None:
        """Has those written that are new."""
        new = list(outputs[self._written :])
        if not new or not all(_is_plain(output) for output in new):
            return
        copied = torch.cuda.Event() if torch.cuda.is_initialized() else None
        if copied is not None:
            copied.record()  # they may still be on their way to host memory
        self._writer.submit(self._write, self._written, new, copied)
        self._written, self._since = len(outputs), time.monotonic()

    def _write(self, first: int, outputs: list[Output], copied: "torch.cuda.Event | None") -> None:
        if copied is not None:
            copied.synchronize()
        named = {f"{call}.{place}": tensor for call, one in enumerate(outputs) for place, tensor in enumerate(one)}
        data = safetensors.torch.save({name: tensor.contiguous() for name, tensor in named.items()})
        try:
            self._spills.write(*self._picture, first, data, self._made_with)
        except OSError as error:
            log.warning("job %s: its steps could not be kept on disk: %s", self._picture[0], error.strerror)


def _is_plain(output: Any) -> bool:
    return isinstance(output, tuple) and all(isinstance(tensor, torch.Tensor) for tensor in output)


def _outputs(part: bytes) -> list[Output]:
    tensors = safetensors.torch.load(part)
    places = sorted(tuple(map(int, name.split("."))) for name in tensors)
    return [
        tuple(tensors[f"{call}.{place}"] for one, place in places if one == call)
        for call in dict.fromkeys(call for call, _ in places)
    ]
