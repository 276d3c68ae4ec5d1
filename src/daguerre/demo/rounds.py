"""Owns the rounds of latents: scenes drawn, encoded at two sizes and kept in the work folder as float16.

Round k holds the scenes of consecutive seeds. Each process draws its share and reads the others', so all hold the same.
"""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from daguerre.demo.scene import Scene, draw_scene, sample_scene

SIDES = (128, 256)
BATCH = 20


class Round(msgspec.Struct, frozen=True):
    """Scenes and, by side in pixels, their latents [N,4,side/8,side/8] in float16, scaled as the UNet sees them."""

    scenes: list[Scene]
    latents: dict[int, torch.Tensor]


def scenes_of(seed: int, index: int, count: int, graphics: float) -> list[Scene]:
    """Choose a round's scenes; no two rounds share a scene's seed."""
    start = (seed * 100_000 + index) * 100_000
    return [sample_scene(start + place, graphics) for place in range(count)]


def draw_share(path: Path, scenes: list[Scene], vae: AutoencoderKL) -> None:
    """Draw and encode scenes into one file, unless it is there already."""
    if path.exists():
        return
    parts: dict[int, list[torch.Tensor]] = {side: [] for side in SIDES}
    for start in range(0, len(scenes), BATCH):
        pictures = np.stack([draw_scene(scene) for scene in scenes[start : start + BATCH]])
        for side, latents in encode(pictures, vae).items():
            parts[side].append(latents)
    partial = path.with_suffix(".partial")
    save_file({str(side): torch.cat(latents).contiguous() for side, latents in parts.items()}, partial)
    partial.replace(path)


@torch.inference_mode()
def encode(
    pictures: npt.NDArray[np.uint8], vae: AutoencoderKL, sides: Sequence[int] = SIDES
) -> dict[int, torch.Tensor]:
    """Encode 8-bit pictures [B,256,256,3] at some of SIDES: latents [B,4,side/8,side/8], float16."""
    full = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    sized = {128: torch.nn.functional.avg_pool2d(full, 2), 256: full}
    return {side: (vae.encode(sized[side]).latent_dist.mode() * vae.config.scaling_factor).half() for side in sides}


def load_round(paths: list[Path], scenes: list[Scene]) -> Round:
    """Join the shares of a round; share r of n holds scenes r, r+n, r+2n …"""
    shares = [load_file(path) for path in paths]
    order = torch.cat([torch.arange(rank, len(scenes), len(paths)) for rank in range(len(paths))]).argsort()
    latents = {side: torch.cat([share[str(side)] for share in shares])[order] for side in SIDES}
    return Round(scenes, latents)
