"""Runs benchmarks by name, prints their goals and what was seen, and writes the figures to a file for each."""

import argparse
import importlib
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.goals import judge, table

NAMES = (
    "png",
    "overhead",
    "start",
    "picture",
    "throughput",
    "mixed",
    "busy",
    "invariance",
    "loop",
    "simulate",
    "lora_switch",
    "load",
    "slow",
    "cancel",
    "prompt_cache",
    "moderation",
    "model_switch",
)
#: Those that say something on a GPU.
ON_GPU = (
    "real",
    "overhead",
    "start",
    "mixed",
    "busy",
    "invariance",
    "loop",
    "lora_switch",
    "prompt_cache",
    "model_switch",
    "memory",
)
RESULTS = Path("benchmarks", "results")


def main() -> int:
    """The command; 2 for wrong use."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)}; with --gpu {', '.join(ON_GPU)}; all by default"
    )
    parser.add_argument("--gpu", action="store_true", help="paint on the GPU instead of the CPU")
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"folder for the figures (default: {RESULTS})")
    given = parser.parse_args()
    known = ON_GPU if given.gpu else NAMES
    unknown = [name for name in given.names if name not in known]
    if unknown:
        parser.error(f"no benchmark {unknown[0]!r} here; there are {', '.join(known)}")
    if given.gpu and not machine.has_gpu():
        print("benchmarks: no GPU here", file=sys.stderr)
        return 2
    machine.use("cuda" if given.gpu else "cpu")
    for name in given.names or known:
        _run(name, given.out, is_on_gpu=given.gpu)
    return 0


def _run(name: str, folder: Path, *, is_on_gpu: bool) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    summary = (module.__doc__ or "").splitlines()[0]
    print(f"{name}: {summary}", flush=True)
    about = machine.describe()
    figures: dict[str, Any] = module.run()
    rows = [judge(goal, figures) for goal in module.GOALS]
    print(table(rows) + "\n", flush=True)
    result = {
        "benchmark": name,
        "command": f"python -m benchmarks {name}{' --gpu' if is_on_gpu else ''}",
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "machine": about,
        "goals": [row._asdict() for row in rows],
        "figures": figures,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}{'-gpu' if is_on_gpu else ''}.json"
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
