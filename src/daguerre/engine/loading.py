"""Owns reading a model's files into host memory: vetted first, then given to diffusers with nothing left to fetch."""

import importlib
import re
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
#: Of weights as they are computed with.
DTYPES = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})

#: What parts are: of diffusers whatever has a configuration, of transformers models and what prepares for them.
_PARTS = (
    diffusers.ConfigMixin,
    transformers.PreTrainedModel,
    transformers.PreTrainedTokenizerBase,
    transformers.ProcessorMixin,
    transformers.FeatureExtractionMixin,
    transformers.ImageProcessingMixin,
)

_SHAPES = re.compile(r"(\S+) expected shape torch\.Size\(\[(.*?)\]\), but got torch\.Size\(\[(.*?)\]\)")


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
    try:
        pipe = _from_folder(model, dtype, given) if model.path.is_dir() else _from_file(model, kind, dtype, given)
    except ValueError as error:
        misfit = _as_misfit(error)
        if misfit is None:
            raise
        raise misfit from error
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            _hold_whole(name, part)
    return pipe


def _as_misfit(error: ValueError) -> CatalogError | None:
    """What diffusers says of a tensor of another shape than its configuration's, without its advice."""
    found = _SHAPES.search(str(error))
    return found and CatalogError(f"its tensor {found[1]!r} is [{found[3]}], where its configuration says [{found[2]}]")


def _hold_whole(name: str, part: torch.nn.Module) -> None:
    """Every weight is there, and a number: where one is none, aminmax says so in one pass over the memory."""
    for path, tensor in part.state_dict().items():
        if tensor.is_meta:
            raise CatalogError(f"weights of its part {name!r} are missing")
        if tensor.dtype in DTYPES and tensor.numel() and not all(end.isfinite() for end in tensor.aminmax()):
            raise CatalogError(f"{path[:80]!r} of its part {name!r} holds numbers that are not finite")


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
    """A part's class must be one that its library has, and of a kind that reads weights from safetensors or none.

    A pipeline in a pipeline would be read without having been vetted, and an Auto class from whatever lies there.
    """
    kind = None if value[0] == "stable_diffusion" else getattr(importlib.import_module(value[0]), str(value[1]), None)
    if not isinstance(kind, type) or not issubclass(kind, _PARTS) or issubclass(kind, diffusers.DiffusionPipeline):
        raise CatalogError(f"its part {name!r} is of a class that is not known here")


def _variant(folder: Path) -> str | None:
    """fp16 where some part has its weights in no other (``model.fp16.safetensors``); plain ones are found, too."""
    parts = {path.parent for path in folder.glob("*/*.fp16*.safetensors")}
    only = [part for part in parts if all(".fp16" in path.name for path in part.glob("*.safetensors"))]
    return "fp16" if only else None


def _from_file(model: Model, kind: Any, dtype: torch.dtype, given: dict[str, Any]) -> Any:
    weightfile.vet_weights(model.path)
    try:
        with checkpoints.described(model.path, model.pipeline, dtype, model.prediction) as config:
            pipe = kind.from_single_file(str(model.path), dtype=dtype, local_files_only=True, **config, **given)
    except (KeyError, StopIteration, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _is_of_missing_tensors(error):
            raise
        raise CatalogError("it is no whole checkpoint: tensors are missing") from error
    for part in pipe.components.values():
        if isinstance(part, transformers.PreTrainedModel):
            # diffusers 0.42 leaves T5 as it is trained, and its table of tokens, which files hold once, half empty.
            part.eval()
            part.tie_weights()
    return pipe


def _is_of_missing_tensors(error: RuntimeError) -> bool:
    """Where a tensor was looked for among the file's, or is to leave the meta device without ever having come."""
    return isinstance(error, NotImplementedError) or isinstance(error.__cause__, StopIteration)


def _vae(folder: Path, dtype: torch.dtype) -> Any:
    weightfile.vet_component(folder)
    name = weightfile.read_json(folder / "config.json").get("_class_name", "AutoencoderKL")
    kind: Any = getattr(diffusers, str(name), None)
    if not str(name).startswith("Autoencoder") or not hasattr(kind, "from_pretrained"):
        raise CatalogError(f"the VAE {folder.name!r} is of a class that is not known here")
    return kind.from_pretrained(folder, torch_dtype=dtype, use_safetensors=True, local_files_only=True)
