"""The autoencoder starts as a filter down and up, learns from there, and whitens its latents without moving a pixel."""

from pathlib import Path

import numpy as np
import pytest
import torch

from daguerre.demo.autoencoder import SCALING, build_autoencoder, train_autoencoder, whiten
from daguerre.demo.scene import draw_scene, sample_scene


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    """Eight pictures, cut to their middle."""
    return np.stack([draw_scene(sample_scene(seed))[64:192, 64:192] for seed in range(8)])


def as_input(pictures: np.ndarray) -> torch.Tensor:
    """Bytes as the autoencoder takes them."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def test_it_starts_near_the_identity(pictures: np.ndarray) -> None:
    """Before any training the picture comes through, softened."""
    torch.manual_seed(0)
    inputs, vae = as_input(pictures), build_autoencoder().eval()
    with torch.inference_mode():
        latents = vae.encode(inputs).latent_dist.mode()
        outputs = vae.decode(latents).sample
    assert latents.shape == (8, 4, 16, 16)
    assert np.corrcoef(inputs.flatten(), outputs.flatten())[0, 1] > 0.8


def test_whitening_changes_latents_but_no_picture(pictures: np.ndarray) -> None:
    """White latents decode to the same picture as before."""
    torch.manual_seed(0)
    inputs, vae = as_input(pictures), build_autoencoder().eval()
    with torch.inference_mode():
        before = vae.decode(vae.encode(inputs).latent_dist.mode()).sample
    whiten(vae, pictures)
    with torch.inference_mode():
        latents = vae.encode(inputs).latent_dist.mode()
        after = vae.decode(latents).sample
    white = latents * SCALING
    assert white.mean((0, 2, 3)).abs().max() < 1e-3
    assert (white.std((0, 2, 3)) - 1).abs().max() < 1e-3
    assert (after - before).abs().max() < 1e-3


def test_training_repeats_itself(tmp_path: Path) -> None:
    """Same seed, same weights to the bit."""
    weights = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        vae = train_autoencoder(tmp_path / name, seed=4, steps=2, measured=4)
        weights.append(torch.cat([weight.flatten() for weight in vae.parameters()]))
    assert torch.equal(*weights)
