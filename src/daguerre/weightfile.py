"""Owns weight files before anybody loads them: a safetensors file's header, and whether a model's folder is only data.

The format is https://github.com/huggingface/safetensors#format: eight bytes of length, a JSON header, then the tensors.
Nothing in here reads a tensor, and no message names a path.
"""

import functools
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from daguerre import editions
from daguerre.errors import CatalogError

#: Larger ones are no model's: FLUX needs 150 kB, SDXL in one file 350 kB.
MAX_HEADER = 8 * 1024 * 1024
MAX_TENSORS = 20_000

#: Bytes of an element.
DTYPES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip

#: What weights may be; whole numbers are of quantised ones, which need more than they say of themselves.
FLOATS = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})

#: Keys of a configuration by which the libraries would fetch or run code.
_CODE_KEYS = frozenset(
    {"auto_map", "custom_pipeline", "custom_pipelines", "kernels"}
    | {"_attn_implementation_internal", "_experts_implementation_internal"}
    # It sends transformers to another file, which nobody has looked at.
    | {"configuration_files"}
)
#: Keys whose values may name code of the library's own, as "sdpa", or a repository of kernels, as "somebody/kernel".
_KERNEL_KEYS = tuple(f"{start}{what}_implementation" for start in ("", "_") for what in ("attn", "experts"))
#: Libraries of parts; stable_diffusion is where diffusers keeps the safety checker.
_LIBRARIES = ("diffusers", "transformers", "stable_diffusion")
#: Parts without weights, by how their classes' names end.
_WEIGHTLESS = ("Scheduler", "Tokenizer", "TokenizerFast", "Processor", "ProcessorFast", "Extractor")
#: A part that is never loaded: it blackens pictures, and needs 1.2 GB for it.
SAFETY_CHECKER = "safety_checker"


class Header(msgspec.Struct, frozen=True):
    """What a safetensors file says of itself."""

    shapes: Mapping[str, tuple[int, ...]]  # by tensor
    metadata: Mapping[str, str]
    elements: int  # of all tensors together
    dtypes: Mapping[str, str] = {}  # by tensor


def read_header(path: Path) -> Header:
    """The file's header, held against the file's size; files that did not change are not read again.

    Raises:
        CatalogError: it is no whole safetensors file.
        OSError: nobody can look now.
    """
    try:
        stat = path.stat()
        return _read_header(path, stat.st_mtime_ns, stat.st_ino, stat.st_size)
    except OSError as error:
        if editions.is_exhausted(error):
            raise
        raise CatalogError(f"{path.name} cannot be read: {error.strerror}") from None


def vet_weights(path: Path) -> Header:
    """The header of a file of a model's weights.

    Raises:
        CatalogError: it is no whole safetensors file, or its weights are no floating-point numbers.
    """
    header = read_header(path)
    for name, dtype in header.dtypes.items():
        if name.endswith((".weight", ".bias")) and dtype not in FLOATS:
            raise CatalogError(
                f"{path.name} holds {name[:80]!r} as {dtype}; weights are served as floating-point numbers"
            )
    return header


@functools.lru_cache(maxsize=512)
def _read_header(path: Path, _modified: int, _inode: int, size: int) -> Header:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER) or length < 2:
            raise CatalogError(f"{path.name} is no safetensors file, or cut off: its header would be {length} bytes")
        text = file.read(length)
    try:
        fields = json.loads(text, object_pairs_hook=_once)
        return _checked(fields, size - 8 - length)
    except _Wrong as error:
        raise CatalogError(f"{path.name} has a broken header: {error}") from None
    except (ValueError, RecursionError):
        raise CatalogError(f"{path.name} has a broken header: it is no JSON") from None


class _Wrong(Exception):
    """What is wrong with a header."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise _Wrong("a name stands in it twice")
    return fields


def _checked(fields: Any, data: int) -> Header:
    """Tensors must follow one another from the first byte to the last, each as long as its shape says."""
    if not isinstance(fields, dict):
        raise _Wrong("it is no object")
    metadata = fields.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _Wrong("its metadata is no map of texts")
    if not fields:
        raise _Wrong("it names no tensor")
    if len(fields) > MAX_TENSORS:
        raise _Wrong(f"it names more than {MAX_TENSORS} tensors")
    extents = sorted(_extent(name[:80], tensor) for name, tensor in fields.items())
    end = 0
    for begin, after, name in extents:
        if begin != end:
            raise _Wrong(f"tensor {name!r} does not begin where the one before it ends")
        end = after
    if end != data:
        raise _Wrong(f"its tensors take {end} bytes, but {data} follow")
    shapes = {name: tuple(tensor["shape"]) for name, tensor in fields.items()}
    dtypes = {name: tensor["dtype"] for name, tensor in fields.items()}
    return Header(shapes, metadata, sum(math.prod(shape) for shape in shapes.values()), dtypes)


def _extent(name: str, tensor: Any) -> tuple[int, int, str]:
    """Where a tensor begins and ends, in bytes after the header."""
    if not isinstance(tensor, dict) or tensor.keys() != {"dtype", "shape", "data_offsets"}:
        raise _Wrong(f"tensor {name!r} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = tensor["dtype"], tensor["shape"], tensor["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise _Wrong(f"tensor {name!r} has an unknown dtype")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise _Wrong(f"tensor {name!r} has a shape or offsets that are no whole numbers")
    if offsets[1] - offsets[0] != math.prod(shape) * DTYPES[dtype]:
        raise _Wrong(f"tensor {name!r} is not as long as its shape")
    return offsets[0], offsets[1], name


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**60 for item in value)


def vet_folder(folder: Path) -> int:
    """Holds a diffusers folder to be data and whole, before any library looks at it; gives the elements of its weights.

    Raises:
        CatalogError: it asks for code, holds weights in another format than safetensors only, or is broken.
    """
    index = refuse_code(folder)
    return sum(_vet_component(folder, name, has_weights) for name, has_weights in _components(index))


def refuse_code(folder: Path) -> dict[str, Any]:
    """Looks at all of a diffusers folder but its weights; gives its model_index.json.

    Raises:
        CatalogError: it asks for code, or is no diffusers folder.
    """
    for path in sorted(folder.rglob("*.py")):
        raise CatalogError(f"it holds code ({path.name}), which is never run; models are data here")
    index = read_json(folder / "model_index.json")
    if not isinstance(index.get("_class_name"), str):
        raise CatalogError("model_index.json names no diffusers pipeline")
    for config in sorted(folder.rglob("*.json")):
        if config.name.endswith("config.json") or config.name == "model_index.json":
            _refuse_code(config)
    list(_components(index))
    return index


def vet_component(folder: Path) -> int:
    """The same for one part by itself: a VAE, an image encoder, a safety checker."""
    for config in sorted(folder.rglob("*config.json")):
        _refuse_code(config)
    return _vet_component(folder.parent, folder.name, has_weights=True)


def _components(index: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    """The parts that are to be loaded, and whether each has weights."""
    for name, value in index.items():
        if not isinstance(value, list):
            continue
        if Path(name).name != name or len(value) != 2 or not isinstance(value[1], str | None):
            raise CatalogError("model_index.json names a part that cannot be")
        if value[0] is None or name == SAFETY_CHECKER:
            continue
        if value[0] not in _LIBRARIES:
            raise CatalogError(f"its part {name!r} asks for code of its own, which is never run")
        yield name, not str(value[1]).endswith(_WEIGHTLESS)


def _vet_component(folder: Path, name: str, has_weights: bool) -> int:
    """Elements of a part's weights; where variants lie beside each other, of the largest."""
    part = folder / name
    if not part.is_dir():
        raise CatalogError(f"its part {name!r} is not there")
    shards = [_shards(index) for index in sorted(part.glob("*.safetensors.index*.json"))]
    files = sorted(part.glob("*.safetensors"))
    if has_weights and not files:
        raise CatalogError(f"its part {name!r} has no weights in safetensors; other formats are never opened")
    sizes = {path.name: vet_weights(path).elements for path in files}
    sets = [*shards, *([file] for file in sizes.keys() - {shard for names in shards for shard in names})]
    return max((sum(sizes[file] for file in names) for names in sets), default=0)


def _shards(index: Path) -> list[str]:
    """The files that an index of shards names: beside it, and nowhere else."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise CatalogError(f"{index.name} maps no weights to files")
    for name in set(names.values()):
        if "/" in name or "\\" in name or not name.endswith(".safetensors"):
            raise CatalogError(f"{index.name} names a file outside its folder, or one that is no safetensors")
        if not (index.parent / name).is_file():
            raise CatalogError(f"{index.name} names {name[:80]!r}, which is not there")
    return sorted(set(names.values()))


def _refuse_code(config: Path) -> None:
    if any(
        key in _CODE_KEYS or (key in _KERNEL_KEYS and "/" in json.dumps(value))
        for key, value in _pairs(read_json(config))
    ):
        raise CatalogError(f"{config.parent.name}/{config.name} asks for code of its own, which is never run")


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key with its value, however deep it lies."""
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _pairs(item)
    if isinstance(value, dict):
        yield from value.items()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; an absent file is an empty one.

    Raises:
        CatalogError: it is something else.
        OSError: nobody can look now.
    """
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, OSError) and editions.is_exhausted(error):
            raise
        raise CatalogError(f"{path.parent.name}/{path.name} is not readable JSON") from None
    if not isinstance(value, dict):
        raise CatalogError(f"{path.parent.name}/{path.name} is not a JSON object")
    return value
