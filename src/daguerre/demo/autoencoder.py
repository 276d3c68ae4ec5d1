"""Owns the autoencoder: its architecture, near-identity first weights, training and whitened latents.

It starts as a box filter down and a tent filter up with a contrast as fourth channel, so training only has to sharpen.
"""

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL
from torch import nn

from daguerre.demo.flat import FlatWeights
from daguerre.demo.scene import draw_scene, sample_scene

SCALING = 0.13025  # SDXL's: latents are whitened to this factor's inverse, so that any SDXL pipeline may assume it
CROP = 64
LINEAR = 2.0  # a bias so large that SiLU is nearly the identity around it
RATE = 2e-3


def build_autoencoder() -> AutoencoderKL:
    """Build the autoencoder, 8 pixels to a latent of 4 channels, with near-identity first weights."""
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=1,  # one group: groups of few channels wipe out flat colour
        mid_block_add_attention=False,
        sample_size=256,
        scaling_factor=SCALING,
    )
    with torch.no_grad():
        for name, module in vae.named_modules():
            _start_module(name, module)
        _start_encoder(vae)
        _start_decoder(vae)
    return vae


def _start_module(name: str, module: nn.Module) -> None:
    """Let residual branches start small and resampling start as plain filters on the first channels."""
    if name.endswith("conv2"):
        module.weight.mul_(0.15)
    elif name.endswith("conv_shortcut"):
        _pass_through(module, min(module.weight.shape[:2]), torch.ones(1, 1))
    elif "downsamplers" in name and name.endswith("conv"):
        box = torch.zeros(3, 3)
        box[:2, :2] = 0.25
        _pass_through(module, 8, box)
    elif "upsamplers" in name and name.endswith("conv"):
        tent = torch.tensor([1.0, 2.0, 1.0])
        _pass_through(module, 8, tent[:, None] * tent[None] / 16)


def _pass_through(module: nn.Module, channels: int, kernel: torch.Tensor) -> None:
    """Let the first channels pass through a kernel, and the others mix a little."""
    module.weight.mul_(0.3)
    module.bias.zero_()
    for channel in range(channels):
        module.weight[channel] = 0
        module.weight[channel, channel] = kernel


def _centre(value: float = 1.0) -> torch.Tensor:
    kernel = torch.zeros(3, 3)
    kernel[1, 1] = value
    return kernel


def _start_encoder(vae: AutoencoderKL) -> None:
    encoder = vae.encoder
    encoder.conv_in.weight[:8] = 0
    for channel in range(3):
        encoder.conv_in.weight[channel, channel] = _centre()
    encoder.conv_in.weight[3, :] = (_centre() - _centre().roll(1, dims=1)) / 3  # brightness against its right neighbour
    encoder.conv_in.bias.zero_()
    _anchor(encoder.conv_in.bias)
    encoder.conv_norm_out.bias[:4] = LINEAR
    encoder.conv_out.weight[:4].mul_(0.1)
    for channel in range(4):
        encoder.conv_out.weight[channel, channel] += _centre()
    encoder.conv_out.bias[:4] = -1.9  # takes LINEAR, after SiLU, away again
    vae.quant_conv.weight.mul_(0.1)
    for channel in range(8):
        vae.quant_conv.weight[channel, channel] = 1


def _start_decoder(vae: AutoencoderKL) -> None:
    decoder = vae.decoder
    vae.post_quant_conv.weight.mul_(0.1)
    for channel in range(4):
        vae.post_quant_conv.weight[channel, channel] = 1
    decoder.conv_in.weight[:8] = 0
    decoder.conv_in.bias.zero_()
    _anchor(decoder.conv_in.bias)
    for channel in range(4):
        decoder.conv_in.weight[channel, channel] = _centre()
    decoder.conv_norm_out.bias[:4] = LINEAR
    decoder.conv_out.weight.mul_(0.1)
    for channel in range(3):
        decoder.conv_out.weight[channel, channel] += _centre(0.42)
    decoder.conv_out.bias.fill_(-0.8)


def _anchor(bias: torch.Tensor) -> None:
    """Set two constant channels, so that a group norm over all channels keeps the level of a flat picture."""
    bias[4], bias[5] = 2.0, -2.0


def train_autoencoder(
    folder: Path, seed: int, steps: int, rank: int = 0, world: int = 1, measured: int = 200
) -> AutoencoderKL:
    """Train from nothing, or on from the folder's checkpoint; return the moving average, whitened over some scenes."""
    torch.manual_seed(seed)
    vae = build_autoencoder().train()
    weights = FlatWeights(vae, decay=1e-4, world=world)
    checkpoint = folder / "autoencoder.safetensors"
    if checkpoint.exists():
        weights.load(checkpoint)
    for step in range(weights.steps, steps):
        share = step / steps
        rate = RATE * min(1, (step + 1) / 60) * (0.5 + 0.5 * math.cos(math.pi * share)) + 1e-5
        rng = np.random.default_rng((seed, step, rank))
        torch.manual_seed(int(rng.integers(2**31)))
        loss = weights.descend(loss_of(vae, draw_crops(rng, 6 if share < 0.5 else 10)), rate, keep=0.997)
        if rank == 0 and (step + 1) % 100 == 0:
            print(f"autoencoder {step + 1} of {steps}  loss {loss:.4f}", flush=True)
            weights.save(checkpoint, {})
    with weights.averaged():
        trained = build_autoencoder()
        trained.load_state_dict(vae.state_dict())
    whiten(trained, np.stack([draw_scene(sample_scene(seed * 10**9 + place)) for place in range(measured)]))
    return trained.eval().requires_grad_(False)


def draw_crops(rng: np.random.Generator, count: int) -> torch.Tensor:
    """Draw crops [B,3,64,64] in -1..1, two from a scene, a quarter of the scenes at half size, half of them flipped."""
    crops: list[npt.NDArray[np.float32]] = []
    while len(crops) < count:
        picture = draw_scene(sample_scene(int(rng.integers(2**40)))).astype(np.float32)
        if rng.random() < 0.25:
            picture = picture.reshape(128, 2, 128, 2, 3).mean(axis=(1, 3))
        for y, x in rng.integers(0, len(picture) - CROP + 1, (2, 2)):
            crop = picture[y : y + CROP, x : x + CROP]
            crops.append(crop[:, ::-1] if rng.random() < 0.5 else crop)
    return torch.from_numpy(np.stack(crops[:count])).permute(0, 3, 1, 2) / 127.5 - 1


def loss_of(vae: AutoencoderKL, pictures: torch.Tensor) -> torch.Tensor:
    """Weigh pixels, edges and squares of the error, and keep latents small; a little noise makes them smooth."""
    mean = vae.encode(pictures).latent_dist.mean
    noisy = mean + 0.03 * mean.detach().std() * torch.randn_like(mean)
    error = vae.decode(noisy).sample - pictures
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + 0.7 * edges + 0.5 * error.square().mean() + 0.5e-5 * mean.square().mean()


@torch.no_grad()
def whiten(vae: AutoencoderKL, pictures: npt.NDArray[np.uint8]) -> None:
    """Fold each channel's mean and deviation into the 1×1 convolutions: latents × SCALING are then white."""
    parts = [
        vae.encode(torch.from_numpy(some).permute(0, 3, 1, 2).float() / 127.5 - 1).latent_dist.mode()
        for some in np.array_split(pictures, max(1, len(pictures) // 20))
    ]
    latents = torch.cat(parts)
    mean, gain = latents.mean((0, 2, 3)), 1 / (latents.std((0, 2, 3)) * SCALING)
    into, out_of = vae.quant_conv, vae.post_quant_conv
    out_of.bias.add_((out_of.weight[:, :, 0, 0] * mean).sum(1))
    out_of.weight.div_(gain[None, :, None, None])
    into.weight[:4].mul_(gain[:, None, None, None])
    into.bias[:4] = (into.bias[:4] - mean) * gain
    into.bias[4:].add_(2 * gain.log())  # the log variances of the same latents
