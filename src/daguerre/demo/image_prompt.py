"""Owns the IP-Adapter's networks: an image encoder, its projection, and keys and values beside the UNet's own.

IP-Adapter after Ye et al. (2023), in the layout that diffusers' `load_ip_adapter` reads; the image encoder is CLIP's
vision tower (Radford et al., 2021) in miniature.
"""

import copy
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from daguerre.demo.networks import start_encoder

SIDE, WIDTH, LAYERS, PATCH = 64, 128, 3, 16  # of the image encoder: pixels, channels
TOKENS = 4  # that the UNet is given for a picture
THUMB = 8  # pixels of the side of what the encoder must be able to recall


class ImagePrompt(nn.Module):
    """All that moves in an IP-Adapter's training, at work in a UNet from the moment that it is made.

    The values begin as nothing, so that the UNet begins unchanged; the keys begin as the text's. `recall` draws a
    thumbnail from the embedding; it teaches the encoder early what to look at, and is no part of what is written.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        context = unet.config.cross_attention_dim
        self.encoder = CLIPVisionModelWithProjection(_config())
        start_encoder(self.encoder)
        self.projection = ImageProjection(WIDTH, context, TOKENS)
        self.recall = nn.Linear(WIDTH, 3 * THUMB * THUMB)
        own = dict(unet.attn_processors)
        names = [name for name in own if name.endswith("attn2.processor")]
        made = [_processor(unet.get_submodule(name.removesuffix(".processor")), context) for name in names]
        self.processors = nn.ModuleList(made)
        unet.set_attn_processor(own | dict(zip(names, made, strict=True)))
        unet.encoder_hid_proj = MultiIPAdapterImageProjection([self.projection])
        unet.config.encoder_hid_dim_type = "ip_image_proj"

    def look(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embed pictures [B,3,64,64] as CLIP's image processor gives them: [B,128]."""
        embedded: torch.Tensor = self.encoder(pixels).image_embeds
        return embedded

    def recalled(self, embedded: torch.Tensor) -> torch.Tensor:
        """Draw thumbnails [B,3,8,8] from embeddings, in the same units as the pixels."""
        return torch.Tensor(self.recall(embedded)).unflatten(1, (3, THUMB, THUMB))

    def write(self, path: Path, encoder: Path, metadata: Mapping[str, str]) -> None:
        """Write the IP-Adapter's file and the image encoder's folder, in float16."""
        tensors = {
            "image_proj.proj.weight": self.projection.image_embeds.weight,
            "image_proj.proj.bias": self.projection.image_embeds.bias,
            "image_proj.norm.weight": self.projection.norm.weight,
            "image_proj.norm.bias": self.projection.norm.bias,
        }
        for place, processor in enumerate(self.processors):
            tensors[f"ip_adapter.{2 * place + 1}.to_k_ip.weight"] = processor.to_k_ip[0].weight
            tensors[f"ip_adapter.{2 * place + 1}.to_v_ip.weight"] = processor.to_v_ip[0].weight
        partial = path.with_suffix(".partial")
        halved = {name: tensor.detach().half().contiguous() for name, tensor in tensors.items()}
        save_file(halved, partial, metadata=dict(metadata))
        partial.replace(path)
        copy.deepcopy(self.encoder).half().save_pretrained(encoder)
        notes = json.loads((encoder / "config.json").read_text())
        (encoder / "config.json").write_text(json.dumps(notes, indent=2, sort_keys=True) + "\n")


def as_seen(pictures: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Scale 8-bit pictures [B,h,w,3] to what an image encoder is shown, in 8 bits: [B,3,64,64]."""
    see = CLIPImageProcessorPil(size=SIDE, crop_size=SIDE, do_rescale=False, do_normalize=False)
    seen = see([Image.fromarray(picture) for picture in pictures], return_tensors="pt").pixel_values
    return torch.Tensor(seen).round().clamp(0, 255).to(torch.uint8)


def as_pixels(seen: torch.Tensor) -> torch.Tensor:
    """Give 8-bit pictures [B,3,h,w] the mean and spread that CLIP's encoders are used to."""
    mean, spread = (torch.tensor(three).view(1, 3, 1, 1) for three in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return (seen.float() / 255 - mean) / spread


def _config() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=WIDTH // 32,
        image_size=SIDE,
        patch_size=PATCH,
        hidden_act="gelu",
    )


def _processor(attention: nn.Module, context: int) -> IPAdapterAttnProcessor2_0:
    made = IPAdapterAttnProcessor2_0(attention.to_k.weight.shape[0], context, num_tokens=[TOKENS], scale=[1.0])
    with torch.no_grad():
        made.to_k_ip[0].weight.copy_(attention.to_k.weight)
        made.to_v_ip[0].weight.zero_()
    return made
