"""Owns the rendezvous: unmodified pipelines run in greenlets of their own and meet at the denoiser.

A pipeline calls its denoiser as it always does. Inside a run, that call computes nothing: it hands a `Call` to the
engine's greenlet and waits there until the engine resumes it with the output. So the engine decides, forward by
forward, who goes on, and calls of several runs become one forward; and an exception thrown into a waiting run unwinds
the pipeline as Python does.
"""

import functools
import inspect
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import greenlet
import torch

from daguerre.engine.denoisers import DENOISERS, Arguments, batch_key, count_rows, merged, split


class Run(greenlet.greenlet):
    """One picture in the making. ``paint`` is called in the run's own greenlet; what it returns ends the run.

    Only runs of one ``kind`` meet: model and size, from which follow the position ids that calls share.
    """

    def __init__(self, paint: Callable[[], Any], kind: tuple[Hashable, ...]) -> None:
        super().__init__(paint)
        self.kind = kind

    def resume(self, value: Any = None) -> Any:
        """Goes on with its last call's output, up to the next call (a `Call`) or to its end (the result).

        Raises:
            Exception: whatever the pipeline raised; the run is over.
        """
        return self.switch(value) if self else self.switch()

    def fail(self, error: Exception) -> Any:
        """Raises an error inside the pipeline, at the call it waits in; a run that has not begun just ends."""
        if not self:  # not begun: there is nothing to unwind
            raise error
        return self.throw(error)


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """A denoiser call that a run waits in. Calls with equal keys can share a forward; None shares with none."""

    run: Run
    meeting: "Meeting"
    bound: inspect.BoundArguments
    key: tuple[Hashable, ...] | None
    rows: int


class Meeting:
    """A denoiser whose ``forward`` has become the meeting point. Called from outside a run, it computes as always."""

    def __init__(self, denoiser: torch.nn.Module) -> None:
        self._compute = denoiser.forward
        self._signature = inspect.signature(denoiser.forward)
        self._roles = DENOISERS.get(type(denoiser).__name__)
        self.denoiser = denoiser
        compute, meet = self._compute, self._meet

        @functools.wraps(compute)
        def forward(*args: Any, **kwargs: Any) -> Any:
            here = greenlet.getcurrent()
            return meet(here, args, kwargs) if isinstance(here, Run) else compute(*args, **kwargs)

        denoiser.forward = forward

    def _meet(self, run: Run, args: tuple[Any, ...], kwargs: Arguments) -> Any:
        bound = self._signature.bind(*args, **kwargs)
        if self._roles is None:
            call = Call(run, self, bound, None, 1)
        else:
            key = batch_key(self._roles, bound.arguments)
            rows = count_rows(self._roles, bound.arguments)
            call = Call(run, self, bound, None if key is None else (*run.kind, key), rows)
        assert run.parent is not None
        return run.parent.switch(call)

    def forward(self, calls: Sequence[Call], rows: int) -> list[Any]:
        """One forward for calls of equal key, padded to that many rows; their outputs in their order."""
        if self._roles is None or (len(calls) == 1 and calls[0].rows == rows):
            (call,) = calls
            return [self._compute(*call.bound.args, **call.bound.kwargs)]
        counts = [call.rows for call in calls]
        arguments = merged(self._roles, [call.bound.arguments for call in calls], padding=rows - sum(counts))
        return split(self._compute(**arguments), counts)
