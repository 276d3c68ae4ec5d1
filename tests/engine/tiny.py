"""Tiny models with random weights, written as diffusers folders: every family that the tests paint with.

The networks are those of the real models, a few thousand weights each. A fresh network hardly listens to its prompt and
paints nearly the same picture for each, so the weights are scaled until prompts, seeds and steps are plainly seen.
"""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn

#: Pixels; the autoencoder makes 16² latents of them.
SIDE = 32
WIDTH = 32  # channels, of everything that has channels


def write_all(weights: Path, builders: Mapping[str, Callable[[], Any]] | None = None) -> None:
    """Writes one folder for each entry of `BUILDERS`, or of others."""
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    for name, build in (builders or BUILDERS).items():
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice on how to build real models
            torch.manual_seed(0)
            pipe = build()
        for part in pipe.components.values():
            if isinstance(part, nn.Module):
                part.eval().requires_grad_(False)
        pipe.save_pretrained(weights / name, safe_serialization=True)


def _sd15() -> Any:
    scheduler = diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1, **BETAS)
    return _sd(scheduler, use_linear_projection=False)


def _sd21() -> Any:
    scheduler = diffusers.DDIMScheduler(
        prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False, steps_offset=1, **BETAS
    )
    return _sd(scheduler, use_linear_projection=True)


def _sd(scheduler: Any, use_linear_projection: bool) -> Any:
    return diffusers.StableDiffusionPipeline(
        unet=_unet(use_linear_projection=use_linear_projection),
        vae=_autoencoder(),
        text_encoder=_clip(transformers.CLIPTextModel),
        tokenizer=_clip_tokenizer(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl() -> Any:
    unet = _unet(
        use_linear_projection=True,
        cross_attention_dim=2 * WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
    )
    return diffusers.StableDiffusionXLPipeline(
        unet=unet,
        vae=_autoencoder(),
        text_encoder=_clip(transformers.CLIPTextModel),
        text_encoder_2=_clip(transformers.CLIPTextModelWithProjection),
        tokenizer=_clip_tokenizer(),
        tokenizer_2=_clip_tokenizer(),
        scheduler=diffusers.EulerDiscreteScheduler(steps_offset=1, timestep_spacing="leading", **BETAS),
    )


def _flux() -> Any:
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    )
    return diffusers.FluxPipeline(
        transformer=_loud(transformer),
        vae=_autoencoder(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.0),
        text_encoder=_clip(transformers.CLIPTextModel),
        tokenizer=_clip_tokenizer(),
        text_encoder_2=_t5(transformers.T5EncoderModel),
        tokenizer_2=_t5_tokenizer(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )


def _sd3() -> Any:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=16,
    )
    return diffusers.StableDiffusion3Pipeline(
        # No norms before its attention: louder, the softmax is a switch, and rounding becomes thousandths of a picture.
        transformer=_loud(transformer, embedders=None),
        vae=_autoencoder(latent_channels=16, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.0),
        text_encoder=_clip(transformers.CLIPTextModelWithProjection),
        tokenizer=_clip_tokenizer(),
        text_encoder_2=_clip(transformers.CLIPTextModelWithProjection),
        tokenizer_2=_clip_tokenizer(),
        text_encoder_3=_t5(transformers.T5EncoderModel, 2 * WIDTH),
        tokenizer_3=_t5_tokenizer(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def _auraflow() -> Any:
    """A class that Daguerre's table of denoisers does not name."""
    transformer = diffusers.AuraFlowTransformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        caption_projection_dim=WIDTH,
        pos_embed_max_size=256,
    )
    return diffusers.AuraFlowPipeline(
        transformer=_loud(transformer, gain=3.0),  # of its 256 tokens of text, a short prompt fills ten
        vae=_autoencoder(),
        text_encoder=_t5(transformers.UMT5EncoderModel),
        tokenizer=_t5_tokenizer(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=1.73),
    )


def write_prior(folder: Path) -> None:
    """A pipeline whose denoiser is called ``prior``, where Daguerre does not look for one."""
    prior = diffusers.StableCascadeUNet(
        conditioning_dim=WIDTH,
        block_out_channels=(WIDTH, WIDTH),
        num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        down_blocks_repeat_mappers=(1, 1),
        up_blocks_repeat_mappers=(1, 1),
        block_types_per_layer=(("SDCascadeResBlock",),) * 2,
        clip_image_in_channels=WIDTH,
        clip_text_in_channels=WIDTH,
        clip_text_pooled_in_channels=WIDTH,
        switch_level=(False,),
        dropout=(0.0, 0.0),
    )
    pipe = diffusers.StableCascadePriorPipeline(
        tokenizer=_clip_tokenizer(),
        text_encoder=_clip(transformers.CLIPTextModelWithProjection),
        prior=prior,
        scheduler=diffusers.DDPMWuerstchenScheduler(),
    )
    pipe.save_pretrained(folder, safe_serialization=True)


#: By folder name.
BUILDERS: dict[str, Callable[[], Any]] = {
    "sd15": _sd15,
    "sd21": _sd21,
    "sdxl": _sdxl,
    "flux": _flux,
    "sd3": _sd3,
    "auraflow": _auraflow,
}

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def _unet(**options: Any) -> nn.Module:
    unet = diffusers.UNet2DConditionModel(
        **{
            "sample_size": 16,
            "block_out_channels": (WIDTH // 2, WIDTH),
            "layers_per_block": 1,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": 2,
            "norm_num_groups": 2,
            "cross_attention_dim": WIDTH,
        }
        | options
    )
    return _loud(unet)


def _autoencoder(**options: Any) -> nn.Module:
    return diffusers.AutoencoderKL(
        **{
            "block_out_channels": (8, 16),
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "latent_channels": 4,
            "norm_num_groups": 2,
            "sample_size": SIDE,
            "scaling_factor": 0.5,
        }
        | options
    )


def _clip(kind: Any) -> nn.Module:
    config = transformers.CLIPTextConfig(
        vocab_size=len(_CLIP_VOCABULARY),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=2,
        bos_token_id=_CLIP_VOCABULARY[_START],
        eos_token_id=_CLIP_VOCABULARY[_END],
        pad_token_id=_CLIP_VOCABULARY[_END],
    )
    return _loud(kind(config))


def _t5(kind: Any, width: int = WIDTH) -> nn.Module:
    config_class = transformers.UMT5Config if kind is transformers.UMT5EncoderModel else transformers.T5Config
    config = config_class(vocab_size=len(_T5_VOCABULARY), d_model=width, d_kv=16, d_ff=width, num_layers=1, num_heads=2)
    return _loud(kind(config))


_START, _END = "<|startoftext|>", "<|endoftext|>"
_BYTES = sorted(ByteLevel.alphabet())
_CLIP_VOCABULARY = {token: i for i, token in enumerate([*_BYTES, *(byte + "</w>" for byte in _BYTES), _START, _END])}
_T5_VOCABULARY = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)] + [
    (chr(code), -3.0) for code in range(33, 127)
]


def _clip_tokenizer() -> Any:
    """Every letter is a token, so a prompt of a line already fills the 77."""
    return transformers.CLIPTokenizer(vocab=dict(_CLIP_VOCABULARY), merges=[], model_max_length=77)


def _t5_tokenizer() -> Any:
    return transformers.T5TokenizerFast(vocab=list(_T5_VOCABULARY), extra_ids=0, model_max_length=512)


def _loud(module: nn.Module, gain: float = 1.0, embedders: float | None = 1.0) -> nn.Module:
    """Weights of a size that lets every input be heard at the output: norms stay, zeroed layers wake up."""
    for name, weight in module.named_parameters():
        if weight.ndim >= 2:
            is_apart = embedders is not None and "embed" in name
            nn.init.normal_(weight, std=embedders if is_apart else gain * weight[0].numel() ** -0.5)
    return module
