"""Owns reading IP-Adapters: their keys and values, their projection and their image encoder, as modules in host memory.

The modules are diffusers' own, and so is the reading of a projection's layout (`UNet2DConditionModel` and
`FluxTransformer2DModel` do it when an adapter is loaded by hand). Built on the thread of the cache that asks for them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import safetensors.torch
import torch
from diffusers.loaders.transformer_flux import FluxTransformer2DLoadersMixin
from diffusers.loaders.unet import UNet2DConditionLoadersMixin
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from diffusers.models.embeddings import MultiIPAdapterImageProjection
from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor
from torch import nn
from transformers import CLIPVisionModelWithProjection

from daguerre import editions, ipadapterfile, weightfile
from daguerre.engine.adapter_cache import CHANGED
from daguerre.engine.loading import BUILDING
from daguerre.engine.weights import hosted_for
from daguerre.errors import CatalogError
from daguerre.ipadapterfile import IpAdapterFile
from daguerre.recipe import MAX_REFERENCES
from daguerre.references import IpAdapter

#: Bytes of host memory that IP-Adapters may take: SDXL's with the larger image encoder, in bfloat16, and one beside it.
BUDGET = 6 << 30


@dataclass(slots=True, eq=False)
class HostedIpAdapter:
    """An IP-Adapter in host memory: a processor for each of a denoiser's cross-attentions, and what feeds them."""

    adapter: IpAdapter
    file: IpAdapterFile
    processors: list[Any]
    projections: list[Any]  # for one picture, for two, … : the same layers
    encoder: Any
    bytes: int
    is_kept: bool = True

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells it from every other, and from what its files held before."""
        return self.adapter.key


def read(adapter: IpAdapter, dtype: torch.dtype, device: torch.device | None = None) -> HostedIpAdapter:
    """Reads an IP-Adapter and its image encoder into host memory, from where the device is to take them.

    Raises:
        CatalogError: they are none, cannot be read, or hold numbers that are not finite.
    """
    try:
        file = ipadapterfile.read(adapter.path)
        weightfile.vet_component(adapter.encoder)
        # Read as a whole, not mapped: a file that is overwritten meanwhile must not end the process.
        tensors = safetensors.torch.load(adapter.path.read_bytes())
    except OSError:
        raise CatalogError("its file cannot be read") from None
    except safetensors.SafetensorError:
        raise CatalogError(CHANGED) from None
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise CatalogError(f"tensor {name[:120]!r} holds numbers that are not finite in {str(dtype)[6:]}")
    with BUILDING:  # others' low-memory paths change what a new module is
        processors = [_processor(file, layer, tensors) for layer in file.attention]
        projection = _projection(file, tensors)
        encoder, told = CLIPVisionModelWithProjection.from_pretrained(
            adapter.encoder, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    if told["missing_keys"] or told["mismatched_keys"]:
        raise CatalogError("its image encoder is not whole: tensors are missing")
    if not all(bool(tensor.isfinite().all()) for tensor in encoder.parameters()):
        raise CatalogError("its image encoder holds numbers that are not finite")
    projections = [MultiIPAdapterImageProjection([projection] * (n + 1)) for n in range(MAX_REFERENCES)]
    parts = [*processors, projection, encoder]
    for part in parts:
        part.to(dtype).eval().requires_grad_(False)
    held = {id(tensor): tensor for part in parts for tensor in (*part.parameters(), *part.buffers())}
    for tensor in held.values():
        tensor.data = hosted_for(device or torch.device("cpu"), tensor.data)
    if editions.take([adapter.path, adapter.encoder]) != adapter.edition:
        raise CatalogError(CHANGED)
    size = sum(tensor.nbytes for tensor in held.values())
    return HostedIpAdapter(adapter, file, processors, projections, encoder, size)


def _processor(file: IpAdapterFile, layer: Mapping[str, str], tensors: Mapping[str, torch.Tensor]) -> Any:
    """One attention's keys and values. For several pictures they serve several times, each time at another scale."""
    width, context = tensors[layer["k.weight"]].shape
    kind = FluxIPAdapterAttnProcessor if file.is_flux else IPAdapterAttnProcessor2_0
    processor = kind(hidden_size=width, cross_attention_dim=context, num_tokens=[0])
    for part, lists in (("k", processor.to_k_ip), ("v", processor.to_v_ip)):
        for kind_of, name in (("weight", f"{part}.weight"), ("bias", f"{part}.bias")):
            if name in layer:
                getattr(lists[0], kind_of).data = tensors[layer[name]]
    processor.to_k_ip = nn.ModuleList([processor.to_k_ip[0]] * MAX_REFERENCES)
    processor.to_v_ip = nn.ModuleList([processor.to_v_ip[0]] * MAX_REFERENCES)
    return processor


def _projection(file: IpAdapterFile, tensors: Mapping[str, torch.Tensor]) -> Any:
    """What makes tokens of what the image encoder gives, by diffusers' reading of its layout."""
    mixin = FluxTransformer2DLoadersMixin if file.is_flux else UNet2DConditionLoadersMixin
    state = {part: tensors[name] for part, name in file.projection.items()}
    try:
        return mixin._convert_ip_adapter_image_proj_to_diffusers(SimpleNamespace(), state, low_cpu_mem_usage=False)
    except (KeyError, RuntimeError, ValueError, IndexError, ZeroDivisionError):
        raise CatalogError("its projection of pictures is of a kind that is not served") from None
