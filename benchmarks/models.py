"""Owns the models that benchmarks need: real architectures with random, finite weights, as diffusers folders."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
)

ROOT = Path(__file__).parent.parent
TOKENIZER = ROOT / "weights" / "demo-xl" / "tokenizer"

#: Writes a model into a folder of weights and gives its own folder.
Writer = Callable[[Path], Path]

SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "skip_prk_steps": True,
    "steps_offset": 1,
}


def write_sd(weights: Path) -> Path:
    """Stable Diffusion 1.5's architecture with few channels, for latents of 8²."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64, 64, 64),
        attention_head_dim=8,
        cross_attention_dim=64,
        norm_num_groups=8,
    )
    return _save(_sd(_clip(64, 3, 4), unet, _vae((16, 16, 16, 16), 4, 1)), weights / "sd-tiny")


def write_sd15(weights: Path) -> Path:
    """Stable Diffusion 1.5 at its size: a UNet of 860 million parameters."""
    with _large():
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        return _save(_sd(_clip(768, 12, 12), unet, _vae((128, 256, 512, 512), 32, 2)), weights / "sd-1-5")


def write_sdxl(weights: Path) -> Path:
    """SDXL at its size: a UNet of 2.6 billion parameters."""
    with _large():
        pipe = StableDiffusionXLPipeline(
            vae=_vae((128, 256, 512, 512), 32, 2, scaling_factor=0.13025, force_upcast=False),
            text_encoder=_clip(768, 12, 12),
            text_encoder_2=_clip(1280, 32, 20, kind=CLIPTextModelWithProjection, projection_dim=1280),
            tokenizer=_tokenizer(),
            tokenizer_2=_tokenizer(),
            unet=sdxl_unet(),
            scheduler=PNDMScheduler(**SCHEDULE),
            add_watermarker=False,
        )
        return _save(pipe, weights / "sdxl")


def sdxl_unet() -> UNet2DConditionModel:
    """SDXL's UNet, as its published configuration has it."""
    return UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(5, 10, 20),
        transformer_layers_per_block=(1, 2, 10),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )


def write_flux(weights: Path) -> Path:
    """FLUX.1-dev's transformer at its size, 12 billion parameters; its T5 encoder has but two layers."""
    with _large():
        t5 = T5Config(vocab_size=2048, d_model=4096, d_kv=64, d_ff=10240, num_layers=2, num_heads=64)
        pipe = FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
            vae=_vae((128, 256, 512, 512), 32, 2, latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159),
            text_encoder=_clip(768, 12, 12),
            tokenizer=_tokenizer(),
            text_encoder_2=T5EncoderModel(t5),
            tokenizer_2=_tokenizer(),
            transformer=FluxTransformer2DModel(guidance_embeds=True),
        )
        return _save(pipe, weights / "flux")


@contextlib.contextmanager
def _large() -> Iterator[None]:
    """Builds in half precision, on the GPU if there is one: filling billions of weights is slow elsewhere."""
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            yield
    finally:
        torch.set_default_dtype(default)


def _sd(encoder: Any, unet: UNet2DConditionModel, vae: AutoencoderKL) -> Any:
    scheduler = PNDMScheduler(**SCHEDULE)
    return StableDiffusionPipeline(
        vae, encoder, _tokenizer(), unet, scheduler, None, None, requires_safety_checker=False
    )


def _tokenizer() -> Any:
    return CLIPTokenizer.from_pretrained(TOKENIZER)


def _clip(width: int, layers: int, heads: int, kind: Any = CLIPTextModel, **options: int) -> Any:
    tokenizer = _tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width * 4,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **options,
    )
    return kind(config)


def _vae(channels: tuple[int, ...], groups: int, layers: int, **options: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=groups,
        layers_per_block=layers,
        **options,
    )


def _save(pipe: Any, folder: Path) -> Path:
    """Writes a pipeline as safetensors, anew."""
    shutil.rmtree(folder, ignore_errors=True)
    pipe.save_pretrained(folder, safe_serialization=True)
    return folder
