"""Owns what is told of the machine beside every figure: its kind and versions, never its name or paths."""

import importlib.metadata
import os
import platform
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODEL = Path("weights", "demo-xl")  # from ROOT

LIBRARIES = ("torch", "diffusers", "transformers", "compel", "pillow", "isal", "starlette", "uvicorn")


def device() -> str:
    """Where pictures are painted: the server and the bare pipeline read the same setting."""
    return os.environ.get("DAGUERRE_DEVICE", "cpu")


def use(name: str) -> None:
    """Paints on this device from now on, in every process that is started."""
    os.environ["DAGUERRE_DEVICE"] = name


def describe() -> dict[str, object]:
    """CPU, memory, load and versions; the device's name if pictures are painted on one."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3, 1),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
        "device": _device_name(),
    }


def has_gpu() -> bool:
    """Whether torch sees a GPU here."""
    import torch

    return bool(torch.cuda.is_available())


def _device_name() -> str:
    if device() == "cpu":
        return "cpu"
    import torch

    return str(torch.cuda.get_device_name(device()))


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
