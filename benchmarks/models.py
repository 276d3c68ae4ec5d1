"""Owns the models that benchmarks need: real architectures with random, finite weights, as diffusers folders."""

import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
TOKENIZER = ROOT / "weights" / "demo-xl" / "tokenizer"


def write_sd(weights: Path, name: str = "sd-tiny", channels: tuple[int, ...] = (32, 64, 64, 64), side: int = 8) -> Path:
    """Stable Diffusion 1.5's architecture with few channels; ``side`` is the latents' native side."""
    import torch
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    width = 64
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=width * 4,
            num_hidden_layers=3,
            num_attention_heads=4,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=side,
        block_out_channels=channels,
        layers_per_block=2,
        attention_head_dim=8,
        cross_attention_dim=width,
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )
    vae = AutoencoderKL(
        block_out_channels=(16, 16, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        layers_per_block=1,
    )
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    pipe: Any = StableDiffusionPipeline(
        vae, encoder, tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    )
    return save(pipe, weights / name)


def save(pipe: Any, folder: Path) -> Path:
    """Writes a pipeline as safetensors, anew."""
    shutil.rmtree(folder, ignore_errors=True)
    pipe.save_pretrained(folder, safe_serialization=True)
    return folder
