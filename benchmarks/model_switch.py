"""Measures changing from one model to another, both in host memory: ours against moving them with ``.to()``.

Both models have Stable Diffusion 1.5's real size, a billion weights in bfloat16. Ours parks one and places the other.
On a GPU the other side calls ``pipe.to("cpu")`` for the one and ``pipe.to("cuda")`` for the other. A CPU has no wires
to send weights over: there the other side copies the weights of both within host memory, and what it takes to read one
from the disk's cache is told beside. Each change is timed until the device has done it.
"""

import gc
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.goals import Goal

ROUNDS = 6

GOALS = (
    Goal("times as fast as .to()", ("times_as_fast",), 10.0, is_least=True),
    Goal("share of host tensors that stayed where they were", ("stayed",), 1.0, is_least=True),
)


def run() -> dict[str, Any]:
    """Milliseconds of both sides, their ratio, and what became of the tensors."""
    from benchmarks.models import write_sd15
    from daguerre.engine.pipelines import quiet

    quiet()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_sd15(Path(folder))
        gc.collect()
        return _compare(Path(folder))


def _compare(weights: Path) -> dict[str, Any]:
    import torch

    torch.set_grad_enabled(False)
    own = _ours(weights)
    gc.collect()
    theirs = _theirs(weights / "sd-1-5")
    return own | theirs | {"times_as_fast": round(theirs["theirs_ms"] / own["ours_ms"], 1)}


def _ours(weights: Path) -> dict[str, Any]:
    import torch

    from daguerre import catalog
    from daguerre.engine import pipelines

    model, device = catalog.read(weights, "sd-1-5").model(), torch.device(machine.device())
    first, second = (pipelines.load(model, torch.bfloat16, pipelines.Room(device)) for _ in range(2))
    before = [*_places(first.denoiser), *_places(second.denoiser)]
    first.to_device()

    def switch() -> None:
        nonlocal first, second
        first.leave_device()
        second.to_device()
        first, second = second, first

    times = [_seconds(switch) for _ in range(2 * ROUNDS)]  # an even number: each is where it was
    first.leave_device()
    after = [*_places(first.denoiser), *_places(second.denoiser)]
    stayed = sum(one == other for one, other in zip(before, after, strict=True)) / len(before)
    return {"bytes": first.bytes, "ours_ms": round(1000 * statistics.median(times), 3), "stayed": round(stayed, 4)}


def _places(module: Any) -> list[int]:
    """Where its tensors lie in memory."""
    return [tensor.data_ptr() for tensor in module.state_dict().values()]


def _theirs(folder: Path) -> dict[str, Any]:
    import torch
    from diffusers import DiffusionPipeline

    def read() -> Any:
        return DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16)

    pipes = [read()]
    reading = _seconds(lambda: pipes.append(read()))
    move = _copy if machine.device() == "cpu" else _move
    times = [_seconds(lambda: move(pipes[turn % 2], pipes[(turn + 1) % 2])) for turn in range(ROUNDS)]  # noqa: B023
    return {"theirs_ms": round(1000 * statistics.median(times), 1), "theirs_reading_ms": round(1000 * reading, 1)}


def _move(out: Any, into: Any) -> None:
    out.to("cpu")
    into.to(machine.device())


def _copy(*pipes: Any) -> None:
    """The bytes that ``.to()`` moves, within host memory."""
    import torch

    for pipe in pipes:
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part._apply(torch.clone)


def _seconds(act: Callable[[], object]) -> float:
    """Until the device has done it."""
    import torch

    start = time.perf_counter()
    act()
    if machine.device() != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start
