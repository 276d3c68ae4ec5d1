"""Owns IP-Adapter files as their headers tell of them: for which models, and what must look at pictures for them.

IP-Adapter (Ye et al. 2023): keys and values beside a denoiser's own in its cross-attentions, made of what an image
encoder sees. Plain ones take the encoder's one embedding, ``plus`` its last hidden states but one. The layouts are
those of the papers' authors and diffusers, and XLabs' of FLUX. Nothing in here reads a tensor.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from daguerre.adapterfile import FLOATS
from daguerre.errors import CatalogError
from daguerre.weightfile import read_header

Kind = Literal["plain", "plus"]

#: Larger files are no IP-Adapters: FLUX's has 1.4 GB.
MAX_BYTES = 6 << 30
#: Tokens that a plain one makes of a picture; the one of FLUX that makes more is told by its size, as in diffusers.
TOKENS, MANY_TOKENS, MANY_ROWS = 4, 16, 65536
#: The family by the width of the text that attention looks at.
_CONTEXTS = {768: "sd", 1024: "sd", 2048: "sdxl"}

_PROJECTION = re.compile(r"(?:image_proj|ip_adapter_proj_model)\.(.+)")
_ATTENTION = re.compile(
    r"(?:ip_adapter|double_blocks)\.(\d+)\."
    r"(?:to_|processor\.ip_adapter_double_stream_)([kv])_(?:ip|proj)\.(weight|bias)"
)


class IpAdapterFile(msgspec.Struct, frozen=True):
    """What an IP-Adapter's header tells."""

    kind: Kind
    is_flux: bool
    context: int  # channels of the tokens that it makes
    widths: tuple[int, ...]  # of the attentions that it adds to, in their order
    encoder_width: int  # of the image encoder: its projection's, for a plus one its hidden states'
    projection: Mapping[str, str]  # names of tensors, by what they are to the projection
    attention: tuple[Mapping[str, str], ...]  # by ``k.weight``, ``v.weight`` and so on, for each attention
    bytes: int

    @property
    def family(self) -> str | None:
        """The family of models that it seems to be for."""
        return "flux" if self.is_flux else _CONTEXTS.get(self.context)


def read(path: Path) -> IpAdapterFile:
    """The header of an IP-Adapter's file.

    Raises:
        CatalogError: it is no whole safetensors file, or no IP-Adapter of a kind that is served.
    """
    header = read_header(path)
    projection: dict[str, str] = {}
    attention: dict[int, dict[str, str]] = {}
    for name in header.shapes:
        if header.dtypes[name] not in FLOATS:
            raise CatalogError(f"tensor {name[:120]!r} has the type of no IP-Adapter's weight")
        if found := _PROJECTION.fullmatch(name):
            projection[found[1]] = name
        elif found := _ATTENTION.fullmatch(name):
            attention.setdefault(int(found[1]), {})[f"{found[2]}.{found[3]}"] = name
        else:
            raise CatalogError(f"tensor {name[:120]!r} belongs to no IP-Adapter of a kind that is served")
    if not projection or not attention:
        raise CatalogError("it is no IP-Adapter: it lacks the projection of pictures, or the keys and values")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise CatalogError(f"it is larger than {MAX_BYTES >> 30} GiB")
    layers = tuple(attention[number] for number in sorted(attention))
    is_flux = "k.bias" in layers[0]
    context, widths = _attended(layers, header.shapes, is_flux)
    kind, encoder_width = _projected(projection, header.shapes, context, is_flux)
    return IpAdapterFile(kind, is_flux, context, widths, encoder_width, projection, layers, size)


Shapes = Mapping[str, tuple[int, ...]]


def _attended(layers: tuple[Mapping[str, str], ...], shapes: Shapes, is_flux: bool) -> tuple[int, tuple[int, ...]]:
    """The channels of the tokens, and the width of each attention."""
    parts = {"k.weight", "v.weight", "k.bias", "v.bias"} if is_flux else {"k.weight", "v.weight"}
    contexts, widths = set(), []
    for layer in layers:
        sizes = {part: shapes[name] for part, name in layer.items()}
        weight = sizes.get("k.weight", ())
        if sizes.keys() != parts or len(weight) != 2 or sizes["v.weight"] != weight or 0 in weight:
            raise CatalogError("its keys and values do not belong together")
        if is_flux and {sizes["k.bias"], sizes["v.bias"]} != {weight[:1]}:
            raise CatalogError("its keys and values do not belong together")
        contexts.add(weight[1])
        widths.append(weight[0])
    if len(contexts) != 1:
        raise CatalogError("its keys and values look at tokens of different widths")
    return contexts.pop(), tuple(widths)


def _projected(names: Mapping[str, str], shapes: Shapes, context: int, is_flux: bool) -> tuple[Kind, int]:
    """The kind, and the width of what the image encoder has to give."""
    sizes = {part: shapes[name] for part, name in names.items()}
    rows = sizes.get("proj.weight", ())
    if len(rows) == 2:
        tokens = MANY_TOKENS if is_flux and rows[0] == MANY_ROWS else TOKENS
        if rows[0] != tokens * context or sizes.keys() != {"proj.weight", "proj.bias", "norm.weight", "norm.bias"}:
            raise CatalogError("its projection of pictures does not fit its keys")
        return "plain", rows[1]
    inner, outer = sizes.get("proj_in.weight", ()), sizes.get("proj_out.weight", ())
    if is_flux or len(sizes.get("latents", ())) != 3 or len(inner) != 2 or len(outer) != 2:
        raise CatalogError("its projection of pictures is of a kind that is not served; plain and plus ones are")
    if outer[0] != context:
        raise CatalogError("its projection of pictures does not fit its keys")
    return "plus", inner[1]
