"""Owns the doctor: what is here, what would be slow or refused, and the remedy for each."""

import importlib.metadata
import os
import platform
import re
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from daguerre import catalog
from daguerre.embeddings import Embeddings
from daguerre.errors import CatalogError, DaguerreError
from daguerre.imaging import encode_png
from daguerre.loras import Loras
from daguerre.references import References
from daguerre.safety_checkers import SafetyCheckers, vet
from daguerre.settings import Settings
from daguerre.version import __version__

LIBRARIES = ("torch", "diffusers", "transformers", "compel", "starlette", "uvicorn", "pillow")
LOW_DISK = 2 * 1024**3
LOW_MEMORY = 4 * 1024**3
SLOW_ENCODING = 0.25  # seconds
#: From here on two connections may fold the log into the database at once. Daguerre does so with one.
SOUND_SQLITE = (3, 51, 3)
#: The oldest NVIDIA driver that programs built for a CUDA of this first number run with.
LEAST_DRIVERS = {11: 450, 12: 525, 13: 580}
#: What weights come in that Daguerre does not read: most of these run code when they are loaded.
OTHER_FORMATS = frozenset({".ckpt", ".pt", ".pth", ".bin", ".pkl", ".gguf"})
#: File systems on which processes of two machines would not see each other's locks.
REMOTE = frozenset({"nfs", "nfs4", "cifs", "smb3", "fuse.sshfs"})


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
    return [
        *_versions(),
        *_device(settings),
        *_memory(),
        *_encoding(),
        *_folders(settings),
        *_models(settings),
        *_safety(settings),
        *_exposure(settings),
    ]


def _versions() -> Iterator[Finding]:
    yield Finding("daguerre", f"{__version__} on Python {platform.python_version()}, {platform.machine()}")
    found = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES)
    yield Finding("libraries", found)
    is_sound = sqlite3.sqlite_version_info >= SOUND_SQLITE
    alone = "" if is_sound else "; before 3.51.3 let no other program write to the database: two at once can damage it"
    yield Finding("sqlite", f"{sqlite3.sqlite_version}{alone}")


def _device(settings: Settings) -> Iterator[Finding]:
    from daguerre.engine.pipelines import choose_device, choose_dtype, cuda_build, describe_device

    try:
        device = choose_device(settings.device)
        dtype = str(choose_dtype(settings.dtype, device)).removeprefix("torch.")
        remedy = why_no_gpu(_driver(), cuda_build()) if device.type == "cpu" else ""
        yield Finding("device", f"{describe_device(device)}, {dtype}", remedy)
    except (RuntimeError, AssertionError):
        yield Finding("device", f"{settings.device} cannot be used here", why_no_gpu(_driver(), cuda_build()), True)


def _driver() -> int | None:
    """The first number of the NVIDIA driver's version, if there is one."""
    try:
        found = re.search(r"\s(\d{3,})\.\d+", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        return None
    return int(found[1]) if found else None


def why_no_gpu(driver: int | None, cuda: str | None) -> str:
    """What stands between torch and a card: of the driver's version, and of the CUDA that torch was built for."""
    if driver is None:
        return "no NVIDIA driver here: the embedded model takes a second or two, SDXL would take minutes"
    if cuda is None:
        return "there is an NVIDIA driver, but torch is a CPU build: remove .venv and run make setup again"
    least = LEAST_DRIVERS.get(int(cuda.partition(".")[0]), 0)
    if driver < least:
        return f"the NVIDIA driver is of version {driver}; torch's CUDA {cuda} needs {least} or a newer one"
    return "no card is seen: give the container its GPUs, or look at CUDA_VISIBLE_DEVICES"


def _memory() -> Iterator[Finding]:
    total = min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), _container_memory())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    remedy = "large models will not fit" if total < LOW_MEMORY else ""
    yield Finding("host", f"{total / 1024**3:.1f} GiB of memory, {cores} cores", remedy)


def _container_memory() -> float:
    """Bytes that the control group may take."""
    try:
        return float(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):  # there is none, or "max"
        return float("inf")


def _encoding() -> Iterator[Finding]:
    pixels = np.linspace(0, 255, 1024 * 1024 * 3).astype(np.uint8).reshape(1024, 1024, 3)
    began = time.perf_counter()
    encode_png(pixels, {})
    took = time.perf_counter() - began
    remedy = "" if took < SLOW_ENCODING else "isal finds no vector instructions here, or the machine is busy"
    yield Finding("encoding", f"a PNG of 1024x1024 takes {1000 * took:.0f} ms", remedy)


def _folders(settings: Settings) -> Iterator[Finding]:
    for name, folder in (("weights", settings.weights), ("outputs", settings.outputs), ("data", settings.data)):
        existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
        free = shutil.disk_usage(existing).free
        if name != "weights" and not _is_writable(existing):
            yield Finding(name, f"{folder} cannot be written", f"give this user the right, or set {name}", True)
        elif name == "data" and (kind := _file_system(existing)) in REMOTE:
            yield Finding(
                name, f"{folder} lies on {kind}", "SQLite needs a local disk: set data to another folder", True
            )
        else:
            remedy = "make room: pictures and models need some" if free < LOW_DISK else ""
            yield Finding(name, f"{folder}, {free / 1024**3:.1f} GiB free", remedy)


def _is_writable(folder: Path) -> bool:
    """Whether a file can really be made there: rights tell nothing of a disk that is mounted read-only."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _file_system(folder: Path) -> str:
    """Its type, as Linux tells of it."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return "unknown"
    inside = [(len(place), kind) for place, kind in mounts if folder.resolve().is_relative_to(place)]
    return max(inside, default=(0, "unknown"))[1]


def _models(settings: Settings) -> Iterator[Finding]:
    try:
        found = catalog.read(settings.weights, settings.default_model)
        here = [f"{model.name} ({model.family})" for model in found.models if model.is_here]
        yield Finding("models", ", ".join(here) or "none")
        for problem in found.problems:
            yield Finding("catalogue", problem, "mend it, or take it out of the weights folder")
        for shelf in (Loras, References, Embeddings):
            for problem in shelf(settings.weights).problems:
                yield Finding("catalogue", problem, "mend it, or take it out of the weights folder")
        yield from _unread(settings.weights)
        found.model()
    except DaguerreError as error:
        yield Finding("models", str(error), "put the model's folder under weights, or set default_model", True)


def _unread(weights: Path) -> Iterator[Finding]:
    """Files that people know from elsewhere, and that would be passed over without a word."""
    for folder in (".", "loras", "embeddings", "ip-adapters"):
        for path in sorted((weights / folder).glob("*")):
            if path.suffix.lower() in OTHER_FORMATS and path.is_file():
                name = path.relative_to(weights)
                yield Finding("catalogue", f"{name} is not read: only safetensors is", "take its .safetensors instead")


def _safety(settings: Settings) -> Iterator[Finding]:
    """The safety checker that is set, and what is wrong with others."""
    try:
        checkers = SafetyCheckers(settings.weights)
        for problem in checkers.problems:
            yield Finding("catalogue", problem, "mend it, or take it out of the weights folder")
        if not settings.safety_checker:
            return
        checker = checkers.find(settings.safety_checker)
        if checker.is_here:
            vet(checker.path)
            then = f"then {settings.safety_checker_action}; fails {settings.safety_checker_fails}"
            yield Finding("safety checker", f"{checker.name} looks at every picture, on the CPU; {then}")
        else:
            yield Finding("safety checker", f"{checker.name} is not here", f"daguerre pull {checker.name}", True)
    except CatalogError as error:
        yield Finding("safety checker", str(error), "mend it, or set safety_checker to another", True)


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
    if not settings.is_loopback and settings.allowed_hosts == Settings().allowed_hosts:
        yield Finding(
            "hosts",
            "requests may name this server by its address and as localhost only",
            "set allowed_hosts to the names that clients use",
        )
