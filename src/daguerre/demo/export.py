"""Owns the exported folder: what `StableDiffusionXLPipeline.from_pretrained` loads as it stands, in float16."""

import copy
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline
from transformers import CLIPTokenizer

from daguerre.demo.networks import Networks

# Of the encoder; diffusers cuts it there too.
LEAST_LOG_VARIANCE = -30.0

# The last five are what other schedulers made from this configuration need: DDIM clips the latents without them.
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
}


def export(folder: Path, networks: Networks, tokenizer: CLIPTokenizer, vae: AutoencoderKL) -> None:
    """Write the whole pipeline; the networks given stay as they are."""
    half = [copy.deepcopy(model).half() for model in (networks.first, networks.second, networks.unet, vae)]
    first, second, unet, small_vae = half
    _make_sure(small_vae)
    pipeline = StableDiffusionXLPipeline(
        vae=small_vae,
        text_encoder=first,
        text_encoder_2=second,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=EulerDiscreteScheduler.from_config(SCHEDULE),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder)
    for path in folder.rglob("*.json"):
        _forget_paths(path)
    schedule = folder / "scheduler" / "scheduler_config.json"
    _write(schedule, json.loads(schedule.read_text()) | SCHEDULE)


def _make_sure(vae: AutoencoderKL) -> None:
    """Make the encoder's posterior its mean: trained by the mean alone, what it says of its variance is noise.

    Pipelines that start from an image draw from the posterior, and would start from that noise.
    """
    channels = vae.config.latent_channels
    with torch.no_grad():
        vae.quant_conv.weight[channels:] = 0
        vae.quant_conv.bias[channels:] = LEAST_LOG_VARIANCE


def _forget_paths(path: Path) -> None:
    """Drop the names of folders that the weights passed through."""
    notes = json.loads(path.read_text())
    found = {"_name_or_path", "name_or_path", "is_local", "local_files_only"} & set(notes)
    if found:
        _write(path, {key: value for key, value in notes.items() if key not in found})


def _write(path: Path, notes: dict[str, object]) -> None:
    path.write_text(json.dumps(notes, indent=2, sort_keys=True) + "\n")
