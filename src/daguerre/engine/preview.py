"""Owns previews: what an unfinished picture looks like, guessed from its latents by a small linear map.

The map is fitted to the model's own autoencoder, once, when somebody asks for a preview of it: so there is no table of
numbers by family, and whatever has an autoencoder can be previewed.
"""

import copy
from typing import Any

import torch
from torch.nn.functional import adaptive_avg_pool2d, interpolate

#: Side, in latent pixels, of the picture that the map is fitted to: a thousand equations for a handful of unknowns.
CELLS = 32
#: Patches of colour along that side. Fewer tell too little, more run into each other in the latents.
PATCHES = 8
#: Latents spread wider than those of that picture, this many times, are noise for the most part.
NOISY = 1.5
#: Seed of that picture, which is to be the same in every process.
SEED = 0


class Preview:
    """Latents to colours, for one autoencoder: ``rgb = weight @ latent + bias`` in every latent pixel."""

    def __init__(self, vae: Any, device: torch.device) -> None:
        picture, latents = _sample(vae, device)
        side = latents.shape[-2:]
        wanted = adaptive_avg_pool2d(picture.cpu(), side)[0].flatten(1).T  # [cells, 3]
        known = latents[0].float().cpu().flatten(1).T  # [cells, channels]
        known = torch.cat([known, torch.ones(len(known), 1)], dim=1)
        fitted = torch.linalg.lstsq(known, wanted).solution.to(latents.device)
        self.channels = latents.shape[1]
        self._weight, self._bias = fitted[:-1].T, fitted[-1][:, None, None]
        self._spread = NOISY * latents.float().std()

    def rgb(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents [1, C, h, w] as the pipeline's loop has them, to a picture [3, h, w] from 0 to 1, on their device.

        While there is much noise in them they are larger than a picture's ever are: they are brought back to its scale.
        Nothing here waits for the device.
        """
        plain = latents[0].float()
        plain = plain * (self._spread / plain.std()).clamp(max=1)
        return (torch.einsum("ic,chw->ihw", self._weight, plain) + self._bias).clamp(0, 1)


def can_preview(vae: Any) -> bool:
    """Whether a pipeline's autoencoder is of the kind that the map is made for."""
    return hasattr(vae, "encode") and hasattr(vae.config, "latent_channels")


def _sample(vae: Any, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """A picture of plain patches of colour, [1, 3, H, W] from 0 to 1, and its latents at a loop's scale."""
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    patches = torch.rand(1, 3, PATCHES, PATCHES, generator=torch.Generator().manual_seed(SEED))
    picture = interpolate(patches, size=CELLS * factor, mode="nearest")
    if vae.dtype == torch.float16 and vae.config.get("force_upcast"):
        vae = copy.deepcopy(vae).to(torch.float32)  # in half precision it gives not-a-number; the model's own stays
    encoded = vae.encode((2 * picture - 1).to(device, vae.dtype))
    return picture, _scaled(vae.config, encoded.latent_dist.mode())


def _scaled(config: Any, latents: torch.Tensor) -> torch.Tensor:
    """The encoder's latents at the scale that the denoiser works on: what the pipelines do before decoding, undone."""
    mean, std = config.get("latents_mean"), config.get("latents_std")
    scale = config.get("scaling_factor", 1.0)
    if mean is not None and std is not None:
        middle, spread = (torch.tensor(values).view(1, -1, 1, 1).to(latents) for values in (mean, std))
        return (latents - middle) * scale / spread
    return (latents - (config.get("shift_factor") or 0.0)) * scale
