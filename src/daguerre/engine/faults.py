"""Owns faults: what an exception of a run means, and what may be told of it."""

import gc
import logging

import torch

from daguerre.engine.rendezvous import Run
from daguerre.errors import DaguerreError, JobFailed, OutOfMemory

log = logging.getLogger(__name__)


def is_out_of_memory(error: Exception) -> bool:
    """Whether the device had no room; what was computed before is as it was."""
    return isinstance(error, torch.OutOfMemoryError)


def is_device_fault(error: Exception) -> bool:
    """Whether the device's context is lost: after an illegal access every later call fails, so a retry cannot help."""
    return isinstance(error, torch.AcceleratorError) or (isinstance(error, RuntimeError) and "CUDA error" in str(error))


def free_memory() -> None:
    """Gives back what a failed computation held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def as_failure(error: Exception, job_id: str) -> DaguerreError:
    """What a client may know of an exception; the log has all of it."""
    if isinstance(error, DaguerreError):
        return error
    log.error("job %s failed", job_id, exc_info=error)
    return OutOfMemory() if is_out_of_memory(error) else JobFailed()


def without_frames(error: DaguerreError) -> DaguerreError:
    """Its frames, and those of what caused it, hold the pipeline's tensors; who is told of it has no use for them."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def unwind(run: Run, error: DaguerreError) -> None:
    """Throws the error into a run; a pipeline that goes on all the same is thrown at again until it ends."""
    while not run.dead:
        try:
            run.fail(error)
        except Exception as raised:
            if raised is not error:
                log.warning("a run that was ended raised %s", type(raised).__name__)
            return
