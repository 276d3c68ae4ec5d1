"""Owns the rendezvous: unmodified pipelines run in greenlets of their own and meet at the denoiser.

A pipeline calls its denoiser as it always does. Inside a run, that call computes nothing: it hands a `Call` to the
engine's greenlet and waits there until the engine resumes it with the output. So the engine decides, forward by
forward, who goes on; and an exception thrown into a waiting run unwinds the pipeline as Python does.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import greenlet
import torch


class Run(greenlet.greenlet):
    """One picture in the making. ``paint`` is called in the run's own greenlet; what it returns ends the run."""

    def __init__(self, paint: Callable[[], Any]) -> None:
        super().__init__(paint)

    def resume(self, value: Any = None) -> Any:
        """Goes on with the output of its last call, up to the next call (a `Call`) or to its end (the result).

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
    """A denoiser call that a run waits in."""

    run: Run
    compute: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def forward(self) -> Any:
        """The denoiser's output for this call alone."""
        return self.compute(*self.args, **self.kwargs)


def wrap(denoiser: torch.nn.Module) -> None:
    """Makes a denoiser's ``forward`` the meeting point. Called from outside a run, it computes as always."""
    compute = denoiser.forward

    @functools.wraps(compute)
    def forward(*args: Any, **kwargs: Any) -> Any:
        here = greenlet.getcurrent()
        if not isinstance(here, Run):
            return compute(*args, **kwargs)
        assert here.parent is not None
        return here.parent.switch(Call(here, compute, args, kwargs))

    denoiser.forward = forward
