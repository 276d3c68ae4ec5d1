"""Owns IP-Adapters in place: on a pipeline's denoiser while pictures with references are computed, off it for others.

A denoiser without one on is just what it was: the same attention processors, in the same forward. Putting one on or
off exchanges references to modules, and copies nothing. For the engine thread only.
"""

import copy
import dataclasses
from collections import OrderedDict
from collections.abc import Collection, Hashable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from daguerre.engine.weights import Weights
from daguerre.errors import FieldError, InvalidRecipe

if TYPE_CHECKING:
    from daguerre.engine.ip_adapters import HostedIpAdapter
    from daguerre.engine.submission import Reference

#: Pictures whose embeddings are kept; the largest, of a plus adapter for SDXL, is 1.3 MB with its negative.
CACHED = 64

#: What a picture looks like to a denoiser with guidance: [1, 1, …] without it, and with it.
Embedded = tuple[torch.Tensor, torch.Tensor]


class Attached:
    """An IP-Adapter as one pipeline has it: modules of its own, whose tensors are the hosted ones until they move."""

    def __init__(self, hosted: "HostedIpAdapter", device: torch.device) -> None:
        self.key = hosted.key
        self.is_plus = hosted.file.kind == "plus"
        self.is_flux = hosted.file.is_flux
        parts = nn.ModuleList([*hosted.processors, *hosted.projections, hosted.encoder])
        tensors = (*parts.parameters(), *parts.buffers())
        # A copy of all but the tensors' contents: what a device gets is this pipeline's own.
        own = copy.deepcopy(parts, {id(tensor): _twin(tensor) for tensor in tensors})
        count = len(hosted.processors)
        self.processors = list(own[:count])
        self.projections = list(own[count:-1])
        self.encoder: Any = own[-1]
        self._weights = Weights([own], device)
        self._weights.to(device)
        self.bytes = self._weights.bytes
        self._seen: OrderedDict[str, Embedded] = OrderedDict()

    def embedded(self, reference: "Reference") -> Embedded:
        """What the image encoder makes of a picture, and of none."""
        if reference.digest not in self._seen:
            self._seen[reference.digest] = self._embed(reference)
        self._seen.move_to_end(reference.digest)
        if len(self._seen) > CACHED:
            self._seen.popitem(last=False)
        return self._seen[reference.digest]

    def _embed(self, reference: "Reference") -> Embedded:
        """As diffusers' ``encode_image`` and ``prepare_ip_adapter_image_embeds`` do it."""
        pixels = self._pixels(reference.picture)
        if self.is_plus:
            seen, none = (
                self.encoder(values, output_hidden_states=True).hidden_states[-2]
                for values in (pixels, torch.zeros_like(pixels))
            )
        else:
            seen = self.encoder(pixels).image_embeds
            none = torch.zeros_like(seen)
        return seen[None], none[None]

    def _pixels(self, picture: Any) -> torch.Tensor:
        """[1, 3, side, side], as CLIP was trained on."""
        side = self.encoder.config.image_size
        see = CLIPImageProcessorPil(size=side, crop_size=side)
        made = see(Image.fromarray(picture), return_tensors="pt").pixel_values
        pixels: torch.Tensor = made.to(self.encoder.device, self.encoder.dtype)
        return pixels


class References:
    """The IP-Adapters of one pipeline."""

    def __init__(self, denoiser: Any) -> None:
        self._denoiser = denoiser
        self._attached: dict[tuple[Any, ...], Attached] = {}
        self._worn: Attached | None = None
        self._own: dict[str, Any] = {}  # the denoiser's attention processors without any

    @property
    def bytes(self) -> int:
        """Of all that are attached."""
        return sum(attached.bytes for attached in self._attached.values())

    def has(self, hosted: "HostedIpAdapter") -> bool:
        """Whether it can be worn."""
        return hosted.key in self._attached

    def attach(self, hosted: "HostedIpAdapter", device: torch.device) -> None:
        """Makes it ready to be worn.

        Raises:
            InvalidRecipe: it does not fit this pipeline's denoiser.
        """
        names = self._places(is_flux=hosted.file.is_flux)
        attentions = [self._denoiser.get_submodule(name.removesuffix(".processor")) for name in names]
        widths = tuple(attention.to_k.weight.shape[0] for attention in attentions)
        if widths != hosted.file.widths or self._context(attentions) != hosted.file.context:
            message = f"IP-Adapter {hosted.adapter.name!r} does not fit this model's attentions"
            raise InvalidRecipe([FieldError("ip_adapter", message)])
        self._attached[hosted.key] = Attached(hosted, device)

    def detach(self, keep: Collection[Hashable]) -> None:
        """Gives back the memory of all but these."""
        for key in [key for key in self._attached if key not in keep]:
            if self._worn is self._attached[key]:
                self._take_off()
            del self._attached[key]

    def wear(self, hosted: "HostedIpAdapter | None", scales: Sequence[float]) -> None:
        """Before a forward, or a run's prologue: on, each picture at its scale; or off, if there are no pictures."""
        if hosted is None or not scales:
            self._take_off()
            return
        attached = self._attached[hosted.key]
        if self._worn is not attached:
            self._put_on(attached)
        elif attached.processors[0].scale == list(scales):
            return
        self._denoiser.encoder_hid_proj = attached.projections[len(scales) - 1]
        for processor in attached.processors:
            processor.scale = list(scales)

    def arguments(self, references: "Sequence[Reference]", *, is_guided: bool) -> dict[str, Any]:
        """What the pipeline is called with, by the IP-Adapter that is on."""
        if self._worn is None:
            return {}
        worn = self._worn
        pairs = [worn.embedded(reference) for reference in references]
        if worn.is_flux:
            black = worn.embedded(_blackened(references[0]))[0]
            embeds, negative = [seen for seen, _ in pairs], [black] * len(pairs)
            return {"ip_adapter_image_embeds": embeds, "negative_ip_adapter_image_embeds": negative}
        is_guided = is_guided and self._denoiser.config.time_cond_proj_dim is None
        return {"ip_adapter_image_embeds": [torch.cat([none, seen]) if is_guided else seen for seen, none in pairs]}

    def _places(self, *, is_flux: bool) -> list[str]:
        """The names of the processors that an IP-Adapter replaces, in its order."""
        names = [name for name in self._denoiser.attn_processors if not name.startswith("single_transformer_blocks")]
        return names if is_flux else [name for name in names if name.endswith("attn2.processor")]

    def _context(self, attentions: Sequence[Any]) -> int | None:
        config = self._denoiser.config
        return config.get("joint_attention_dim") or (attentions[0].to_k.weight.shape[1] if attentions else None)

    def _put_on(self, attached: Attached) -> None:
        self._take_off()
        self._own = self._own or dict(self._denoiser.attn_processors)
        names = self._places(is_flux=attached.is_flux)
        self._denoiser.set_attn_processor(self._own | dict(zip(names, attached.processors, strict=True)))
        self._denoiser.config.encoder_hid_dim_type = "ip_image_proj"
        self._worn = attached

    def _take_off(self) -> None:
        if self._worn is None:
            return
        self._denoiser.encoder_hid_proj = None  # first: a plus adapter's has attentions of its own
        self._denoiser.set_attn_processor(dict(self._own))
        self._denoiser.config.encoder_hid_dim_type = None
        self._worn = None


def _twin(tensor: torch.Tensor) -> torch.Tensor:
    """Another parameter or buffer with the same contents at the same place."""
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(tensor.data, requires_grad=False)
    return tensor.data


def _blackened(reference: "Reference") -> "Reference":
    """What FluxPipeline takes for no picture."""
    return dataclasses.replace(reference, picture=np.zeros_like(reference.picture), digest="black")
