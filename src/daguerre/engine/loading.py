"""Owns reading a model's files into host memory: vetted first, then given to diffusers with nothing left to fetch."""

import importlib
import threading
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from daguerre import weightfile
from daguerre.catalog import Model
from daguerre.engine import checkpoints
from daguerre.errors import CatalogError

# accelerate's low-memory path patches torch.nn.Module for the whole process while it builds: two threads must not build
# modules at the same moment (diffusers issue 14347).
BUILDING = threading.Lock()
#: T5 and its tokenizer, without which Stable Diffusion 3 paints, too.
_SPARE = ("text_encoder_3", "tokenizer_3")


def read_pipe(model: Model, dtype: torch.dtype) -> Any:
    """The diffusers pipeline of a folder or of a checkpoint in a single file.

    Raises:
        CatalogError: its files are not a pipeline that can be served.
        Exception: whatever diffusers makes of files that are broken in a way that only it sees.
    """
    kind = getattr(diffusers, model.pipeline, None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.DiffusionPipeline)):
        raise CatalogError(f"this diffusers knows no pipeline {model.pipeline!r}")
    given = {} if model.vae is None else {"vae": _vae(model.vae, dtype)}
    pipe = _from_folder(model, dtype, given) if model.path.is_dir() else _from_file(model, kind, dtype, given)
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module) and any(tensor.is_meta for tensor in part.state_dict().values()):
            raise CatalogError(f"weights of its part {name!r} are missing")
    return pipe


def _from_folder(model: Model, dtype: torch.dtype, given: dict[str, Any]) -> Any:
    weightfile.vet_folder(model.path)
    index = weightfile.read_json(model.path / "model_index.json")
    if weightfile.SAFETY_CHECKER in index:
        given |= {weightfile.SAFETY_CHECKER: None, "feature_extractor": None, "requires_safety_checker": False}
    for name, value in index.items():
        if not isinstance(value, list) or name in given:
            continue
        if value[0] is not None:
            _expect(name, value)
        elif name in _SPARE:
            given |= {name: None}
    return diffusers.DiffusionPipeline.from_pretrained(
        model.path,
        dtype=dtype,
        variant=_variant(model.path),
        use_safetensors=True,
        local_files_only=True,
        low_cpu_mem_usage=True,
        **given,
    )


def _expect(name: str, value: list[Any]) -> None:
    """A part's class must be one that its library has."""
    if value[0] == "stable_diffusion" or not isinstance(
        getattr(importlib.import_module(value[0]), str(value[1]), None), type
    ):
        raise CatalogError(f"its part {name!r} is of a class that is not known here")


def _variant(folder: Path) -> str | None:
    """fp16 where some part has its weights in no other (``model.fp16.safetensors``); plain ones are found, too."""
    parts = {path.parent for path in folder.glob("*/*.fp16*.safetensors")}
    only = [part for part in parts if all(".fp16" in path.name for path in part.glob("*.safetensors"))]
    return "fp16" if only else None


def _from_file(model: Model, kind: Any, dtype: torch.dtype, given: dict[str, Any]) -> Any:
    weightfile.read_header(model.path)
    try:
        with checkpoints.described(model.path, model.pipeline, dtype, model.prediction) as config:
            pipe = kind.from_single_file(str(model.path), dtype=dtype, local_files_only=True, **config, **given)
    except (KeyError, StopIteration) as error:
        raise CatalogError("it is no whole checkpoint: tensors are missing") from error
    for part in pipe.components.values():
        if isinstance(part, transformers.PreTrainedModel):
            # diffusers 0.42 leaves T5 as it is trained, and its table of tokens, which files hold once, half empty.
            part.eval()
            part.tie_weights()
    return pipe


def _vae(folder: Path, dtype: torch.dtype) -> Any:
    weightfile.vet_component(folder)
    name = weightfile.read_json(folder / "config.json").get("_class_name", "AutoencoderKL")
    kind: Any = getattr(diffusers, str(name), None)
    if not str(name).startswith("Autoencoder") or not hasattr(kind, "from_pretrained"):
        raise CatalogError(f"the VAE {folder.name!r} is of a class that is not known here")
    return kind.from_pretrained(folder, torch_dtype=dtype, use_safetensors=True, local_files_only=True)
