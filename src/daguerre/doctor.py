"""Owns the doctor: what is here, what would be slow or refused, and the remedy for each."""

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec

from daguerre import catalog
from daguerre.embeddings import Embeddings
from daguerre.errors import DaguerreError
from daguerre.references import References
from daguerre.settings import Settings
from daguerre.version import __version__

LIBRARIES = ("torch", "diffusers", "transformers", "compel", "starlette", "uvicorn", "pillow")
LOW_DISK = 2 * 1024**3
LOW_MEMORY = 4 * 1024**3


class Finding(msgspec.Struct, frozen=True):
    """One line of the report; ``is_bad`` if Daguerre would not serve like this."""

    subject: str
    detail: str
    remedy: str = ""
    is_bad: bool = False

    def __str__(self) -> str:
        mark = "BAD " if self.is_bad else "slow" if self.remedy else "ok  "
        return f"{mark} {self.subject}: {self.detail}" + (f"\n     → {self.remedy}" if self.remedy else "")


def examine(settings: Settings) -> list[Finding]:
    """Looks at everything that a start would need, without starting."""
    return [*_versions(), *_device(settings), *_memory(), *_folders(settings), *_models(settings), *_exposure(settings)]


def _versions() -> Iterator[Finding]:
    yield Finding("daguerre", f"{__version__} on Python {platform.python_version()}, {platform.machine()}")
    found = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES)
    yield Finding("libraries", found)


def _device(settings: Settings) -> Iterator[Finding]:
    from daguerre.engine.pipelines import choose_device, choose_dtype, describe_device

    try:
        device = choose_device(settings.device)
        dtype = str(choose_dtype(settings.dtype, device)).removeprefix("torch.")
        yield Finding("device", f"{describe_device(device)}, {dtype}", _remedy_for(device.type))
    except (RuntimeError, AssertionError):
        yield Finding(
            "device", f"{settings.device} cannot be used here", "set device to auto, or mend its driver", True
        )


def _remedy_for(device: str) -> str:
    if device != "cpu":
        return ""
    has_driver = Path("/proc/driver/nvidia/version").exists()
    if has_driver:
        return "there is an NVIDIA driver, but torch is a CPU build: remove .venv and run make setup again"
    return "no GPU: the embedded model takes a second or two, SDXL would take minutes"


def _memory() -> Iterator[Finding]:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    remedy = "large models will not fit" if total < LOW_MEMORY else ""
    yield Finding("host", f"{total / 1024**3:.1f} GiB of memory, {cores} cores", remedy)


def _folders(settings: Settings) -> Iterator[Finding]:
    for name, folder in (("weights", settings.weights), ("outputs", settings.outputs)):
        existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
        free = shutil.disk_usage(existing).free
        if name == "outputs" and not os.access(existing, os.W_OK):
            yield Finding(name, f"{folder} cannot be written", "give this user the right, or set outputs", True)
        else:
            remedy = "make room: pictures and models need some" if free < LOW_DISK else ""
            yield Finding(name, f"{folder}, {free / 1024**3:.1f} GiB free", remedy)


def _models(settings: Settings) -> Iterator[Finding]:
    try:
        found = catalog.read(settings.weights, settings.default_model)
        here = [f"{model.name} ({model.family})" for model in found.models if model.is_here]
        yield Finding("models", ", ".join(here) or "none")
        for problem in found.problems:
            yield Finding("catalogue", problem, "mend it, or take it out of the weights folder")
        for problem in (*References(settings.weights).problems, *Embeddings(settings.weights).problems):
            yield Finding("catalogue", problem, "mend it, or take it out of the weights folder")
        found.model()
    except DaguerreError as error:
        yield Finding("models", str(error), "put the model's folder under weights, or set default_model", True)


def _exposure(settings: Settings) -> Iterator[Finding]:
    if settings.is_loopback:
        yield Finding("exposure", f"{settings.host} is reached from this machine only")
    elif settings.auth == "none":
        yield Finding(
            "exposure",
            f"{settings.host} is open to others, and nobody has to authenticate",
            "serve will refuse; listen on 127.0.0.1, or say --insecure behind something that authenticates",
            is_bad=True,
        )
