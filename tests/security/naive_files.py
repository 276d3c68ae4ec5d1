"""Owns naive loaders of weights: by a file's name, by a second loader when the first fails, with a model's own code."""

import contextlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch


def load(path: Path) -> Any:
    """By its suffix, as it is spelled (InvokeAI's pull request 2946)."""
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    return torch.load(path, weights_only=False)


def load_somehow(path: Path) -> Any:
    """Safely, and if that fails, not."""
    try:
        return safetensors.torch.load_file(path)
    except Exception:
        with path.open("rb") as file:
            return torch.load(file, weights_only=False)


def load_part(folder: Path) -> Any:
    """Whatever weights lie there, the safe ones first."""
    for name in ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"):
        with contextlib.suppress(Exception):
            return load(folder / name)
    return None


def load_model(folder: Path) -> None:
    """With the modules that its index names, or that lie in it: what ``trust_remote_code`` means."""
    json.loads((folder / "model_index.json").read_text())
    for path in sorted(folder.rglob("*.py")):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def shards(folder: Path, index: dict[str, Any]) -> list[bytes]:
    """The files that an index of shards names, wherever they are."""
    return [(folder / name).read_bytes() for name in index["weight_map"].values()]
