"""Owns adapter files as their headers tell of them: which layers they change, how, at which rank, for which models.

LoRA (Hu et al. 2021), LoHa (Hyeon-Woo et al. 2021) and LoKr (Yeh et al. 2023, section 3), in the layouts of diffusers,
kohya and AUTOMATIC1111. So that a request can be refused before anything is loaded; nothing in here reads a tensor.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from daguerre import layernames
from daguerre.errors import CatalogError
from daguerre.weightfile import read_header

Kind = Literal["lora", "loha", "lokr"]

#: Larger files are no adapters: one of rank 128 on all of SDXL takes 900 MB in float16.
MAX_BYTES = 4 << 30
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})

#: How the names of tensors end, the kind of adapter that has such, and what the tensor is in it.
_ENDINGS: tuple[tuple[str, Kind | None, str], ...] = (
    (r"\.lora_A(?:\.default)?\.weight|\.lora_down\.weight|[._]lora\.down\.weight", "lora", "down"),
    (r"\.lora_B(?:\.default)?\.weight|\.lora_up\.weight|[._]lora\.up\.weight", "lora", "up"),
    (r"\.lora_linear_layer\.down\.weight", "lora", "down"),
    (r"\.lora_linear_layer\.up\.weight", "lora", "up"),
    (r"\.lora_mid\.weight", "lora", "mid"),
    *((rf"\.hada_{part}", "loha", part) for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")),
    *((rf"\.lokr_{part}", "lokr", part) for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")),
    (r"\.alpha", None, "alpha"),
)
_NAME = re.compile("(.+?)(?:" + "|".join(f"(?P<p{i}>{ending})" for i, (ending, _, _) in enumerate(_ENDINGS)) + ")")

#: What files say of their base, and the family that it belongs to.
_BASES = (
    *(
        ("sdxl", "sdxl"),
        ("-xl", "sdxl"),
        ("flux", "flux"),
        ("sd3", "sd3"),
        ("diffusion-v3", "sd3"),
        ("diffusion-3", "sd3"),
    ),
    *(("sd_v", "sd"), ("diffusion-v1", "sd"), ("diffusion-v2", "sd")),
)
#: The family by the width of the text that attention looks at.
_CONTEXTS = {768: "sd", 1024: "sd", 2048: "sdxl"}


class Layer(msgspec.Struct, frozen=True):
    """One layer's change: the names of its tensors, and the weight that they make, [rows, columns]."""

    kind: Kind
    tensors: Mapping[str, str]  # by what they are in it
    rows: int
    columns: int  # of a convolution: inputs × height × width
    rank: int


class AdapterFile(msgspec.Struct, frozen=True):
    """What an adapter's header tells."""

    layers: Mapping[str, Layer]  # by the file's own names
    metadata: Mapping[str, str]
    bytes: int

    @property
    def rank(self) -> int:
        """The largest of its layers' ranks."""
        return max(layer.rank for layer in self.layers.values())

    @property
    def family(self) -> str | None:
        """The family of models that it says or seems to be for."""
        keys = ("modelspec.architecture", "ss_base_model_version", "base_model")
        told = " ".join(self.metadata.get(key, "") for key in keys).lower()
        found = next((family for mark, family in _BASES if mark in told), None)
        if found is not None:
            return found
        contexts = {layer.columns for name, layer in self.layers.items() if re.search(r"attn2[._].*to[._]k", name)}
        if len(contexts) == 1:
            return _CONTEXTS.get(contexts.pop())
        marks = ("double_blocks", "single_blocks", "single_transformer_blocks")
        return "flux" if any(mark in name for name in self.layers for mark in marks) else None

    @property
    def trigger_words(self) -> tuple[str, ...]:
        """The words that its maker says call it up."""
        told = next((self.metadata[key] for key in ("modelspec.trigger_phrase", "trigger_words", "ss_trigger_words")
                     if self.metadata.get(key)), "")  # fmt: skip
        return tuple(word.strip() for word in told.split(",") if word.strip())[:8]


def read(path: Path) -> AdapterFile:
    """The header of an adapter's file.

    Raises:
        CatalogError: it is no whole safetensors file, or no adapter of a kind that is served.
    """
    header = read_header(path)
    tensors: dict[str, dict[str, str]] = {}
    kinds: dict[str, set[Kind]] = {}
    for name, shape in header.shapes.items():
        layer, kind, part = _parsed(name)
        if part in tensors.setdefault(layer, {}):
            raise CatalogError(f"layer {layer[:120]!r} stands in it twice")
        tensors[layer][part] = name
        if kind is None and math.prod(shape) == 1:
            continue
        if kind is None or header.dtypes[name] not in FLOATS:
            raise CatalogError(f"tensor {name[:120]!r} has the type or the shape of no adapter's weight")
        kinds.setdefault(layer, set()).add(kind)
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise CatalogError(f"it is larger than {MAX_BYTES >> 30} GiB")
    layers = {name: _layer(name, kinds.get(name, set()), parts, header.shapes) for name, parts in tensors.items()}
    return AdapterFile(layers, header.metadata, size)


def _parsed(name: str) -> tuple[str, Kind | None, str]:
    match = _NAME.fullmatch(name)
    if match is None or match.lastgroup is None:
        raise CatalogError(f"tensor {name[:120]!r} belongs to no LoRA, LoHa or LoKr; other adapters are not served")
    _, kind, part = _ENDINGS[int(match.lastgroup[1:])]
    return match[1], kind, part


def _layer(name: str, kinds: set[Kind], parts: Mapping[str, str], shapes: layernames.Layers) -> Layer:
    """One layer, its tensors held against one another."""
    if len(kinds) != 1:
        raise CatalogError(f"layer {name[:120]!r} is of {'two kinds' if kinds else 'no kind'} of adapters")
    (kind,) = kinds
    sizes = {part: shapes[tensor] for part, tensor in parts.items() if part != "alpha"}
    try:
        rows, columns, rank = {"lora": _lora, "loha": _loha, "lokr": _lokr}[kind](sizes)
    except (KeyError, ValueError, IndexError):
        raise CatalogError(f"the tensors of layer {name[:120]!r} do not belong together") from None
    if min(rows, columns, rank) < 1:
        raise CatalogError(f"layer {name[:120]!r} has an empty weight")
    return Layer(kind, parts, rows, columns, rank)


Sizes = Mapping[str, tuple[int, ...]]


def _lora(sizes: Sizes) -> tuple[int, int, int]:
    """down [rank, inputs, …], up [rows, rank, 1, 1], and for a convolution in three mid [rank, rank, height, width]."""
    down, up = sizes["down"], sizes["up"]
    rank = down[0]
    _hold(len(down) in (2, 4), len(up) in (2, 4), math.prod(up[2:]) == 1, up[1] == rank)
    if "mid" not in sizes:
        return up[0], math.prod(down[1:]), rank
    mid = sizes["mid"]
    _hold(len(mid) == 4, mid[:2] == (rank, rank), math.prod(down[2:]) == 1)
    return up[0], down[1] * math.prod(mid[2:]), rank


def _loha(sizes: Sizes) -> tuple[int, int, int]:
    """Two products multiplied by element: a [rows, rank], b [rank, columns]; with a core t, a is [rank, rows]."""
    first, second = (_product(sizes, f"w{i}_a", f"w{i}_b", f"t{i}") for i in (1, 2))
    _hold(first[:2] == second[:2])
    return first


def _lokr(sizes: Sizes) -> tuple[int, int, int]:
    """The Kronecker product of two matrices; each may be a product itself."""
    first = (*sizes["w1"], 0) if "w1" in sizes else _product(sizes, "w1_a", "w1_b", "")
    whole = sizes.get("w2")
    second = (whole[0], math.prod(whole[1:]), 0) if whole is not None else _product(sizes, "w2_a", "w2_b", "t2")
    _hold(len(first) == 3, whole is None or len(whole) in (2, 4))
    return first[0] * second[0], first[1] * second[1], first[2] or second[2] or min(*first[:2], *second[:2])


def _product(sizes: Sizes, a: str, b: str, core: str) -> tuple[int, int, int]:
    left, right = sizes[a], sizes[b]
    _hold(len(left) == 2, len(right) == 2)
    if core not in sizes:
        _hold(left[1] == right[0])
        return left[0], right[1], right[0]
    middle = sizes[core]
    _hold(len(middle) == 4, middle[0] == left[0], middle[1] == right[0])
    return left[1], right[1] * math.prod(middle[2:]), right[0]


def _hold(*conditions: bool) -> None:
    if not all(conditions):
        raise ValueError


def match(file: AdapterFile, layers: layernames.Layers) -> dict[str, tuple[str, ...]]:
    """The model's layers that each of the file's changes.

    Raises:
        CatalogError: the model has no such layers, or has them in other shapes.
    """
    known = layernames.names(layers)
    found: dict[str, tuple[str, ...]] = {}
    taken: set[str] = set()
    for name, layer in file.layers.items():
        targets = layernames.find(name, known)
        if targets is None:
            raise CatalogError(f"it changes a layer {name[:120]!r}, which the model does not have")
        rows = sum(layers[target][0] for target in targets)
        columns = math.prod(layers[targets[0]][1:])
        if (layer.rows, layer.columns) != (rows, columns):
            shapes = f"{layer.rows}×{layer.columns}, where the model's is {rows}×{columns}"
            raise CatalogError(f"its layer {name[:120]!r} is {shapes}")
        if taken & set(targets):
            raise CatalogError(f"it changes the layer {targets[0]!r} twice, under two names")
        taken.update(targets)
        if layer.kind == "lokr" and len(targets) > 1:
            raise CatalogError(f"its layer {name[:120]!r} is a LoKr over {len(targets)} layers, which is not served")
        found[name] = targets
    return found
