"""Tiny models of the families whose prompts are read by a language model: FLUX.2 [klein], Qwen-Image and Z-Image."""

from collections.abc import Callable
from typing import Any

import diffusers
import tiny
import transformers
from tiny import WIDTH
from tokenizers.pre_tokenizers import ByteLevel

_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_VOCABULARY = {token: i for i, token in enumerate([*_SPECIAL, *sorted(ByteLevel.alphabet())])}
_CHAT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def _flux2() -> Any:
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * WIDTH,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=tiny.SIDE,
    )
    return diffusers.Flux2KleinPipeline(
        transformer=tiny._loud(transformer, gain=2.0),  # of its 512 tokens of text, a short prompt fills fifty
        vae=vae,
        text_encoder=_qwen3(transformers.Qwen3ForCausalLM, layers=27),  # the pipeline takes the outputs of 9, 18 and 27
        tokenizer=_tokenizer(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )


def _qwen_image() -> Any:
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
    )
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    text = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"num_key_value_heads": 1, "vocab_size": len(_VOCABULARY), "bos_token_id": 0, "eos_token_id": 0}
    config = transformers.Qwen2_5_VLConfig(
        text_config=text | {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]}},
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": WIDTH,
            "fullatt_block_indexes": [0],
        },
    )
    return diffusers.QwenImagePipeline(
        transformer=tiny._loud(transformer),
        vae=vae,
        text_encoder=tiny._loud(transformers.Qwen2_5_VLForConditionalGeneration(config)),
        tokenizer=_tokenizer(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )


def _z_image() -> Any:
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=WIDTH,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[4, 4, 8],
        axes_lens=[512, 64, 64],
    )
    return diffusers.ZImagePipeline(
        transformer=tiny._loud(transformer),
        vae=tiny._autoencoder(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.0),
        text_encoder=_qwen3(transformers.Qwen3Model, layers=2),
        tokenizer=_tokenizer(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def _qwen3(kind: Any, layers: int) -> Any:
    config = transformers.Qwen3Config(
        vocab_size=len(_VOCABULARY),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
    )
    return tiny._loud(kind(config))


def _tokenizer() -> Any:
    """Every byte is a token."""
    tokenizer = transformers.Qwen2Tokenizer(vocab=dict(_VOCABULARY), merges=[], extra_special_tokens=list(_SPECIAL[1:]))
    tokenizer.chat_template = _CHAT
    return tokenizer


#: By folder name.
BUILDERS: dict[str, Callable[[], Any]] = {"flux2": _flux2, "qwen": _qwen_image, "z-image": _z_image}
