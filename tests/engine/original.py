"""Checkpoints in the original layout: what a diffusers pipeline's tensors are called in a single file.

Written from the module names of CompVis' and Stability's own code: input, middle and output blocks are numbered
through, where diffusers counts levels; OpenCLIP keeps queries, keys and values in one matrix.
"""

from pathlib import Path
from typing import Any

import diffusers
import tiny
import torch
import transformers
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]


def write_checkpoint(pipe: Any, path: Path, **extra: torch.Tensor) -> None:
    """Writes a Stable Diffusion 1.x or XL pipeline's weights as one file, and its tokenizer where it is looked for."""
    pipe.tokenizer.save_pretrained(path.parent / "tokenizers" / "clip")
    tensors = tensors_of(pipe) | extra
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def tensors_of(pipe: Any) -> Tensors:
    """The pipeline's tensors under their original names."""
    tensors = _prefixed("model.diffusion_model.", _unet(pipe.unet))
    tensors |= _prefixed("first_stage_model.", _vae(pipe.vae))
    if hasattr(pipe, "text_encoder_2"):
        tensors |= _prefixed("conditioner.embedders.0.transformer.", _clip(pipe.text_encoder))
        tensors |= _prefixed("conditioner.embedders.1.model.", _open_clip(pipe.text_encoder_2))
    elif pipe.text_encoder.config.hidden_act == "gelu":
        tensors |= _prefixed("cond_stage_model.model.", _with_a_last_layer(_open_clip(pipe.text_encoder)))
    else:
        tensors |= _prefixed("cond_stage_model.transformer.", _clip(pipe.text_encoder))
    return tensors


def _prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _renamed(tensors: Tensors, names: list[tuple[str, str]]) -> Tensors:
    """Names with every pair replaced, in order, where it is a whole part of the name."""
    renamed: Tensors = {}
    for name, tensor in tensors.items():
        whole = f".{name}."
        for ours, theirs in names:
            whole = whole.replace(f".{ours}.", f".{theirs}.")
        renamed[whole.strip(".")] = tensor
    return renamed


_RESNET = [
    ("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("time_emb_proj", "emb_layers.1"), ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"), ("conv_shortcut", "skip_connection"),
]  # fmt: skip


def _unet(unet: Any) -> Tensors:
    names = [
        ("time_embedding.linear_1", "time_embed.0"), ("time_embedding.linear_2", "time_embed.2"),
        ("add_embedding.linear_1", "label_emb.0.0"), ("add_embedding.linear_2", "label_emb.0.2"),
        ("conv_in", "input_blocks.0.0"), ("conv_norm_out", "out.0"), ("conv_out", "out.2"),
        ("mid_block.resnets.0", "middle_block.0"), ("mid_block.attentions.0", "middle_block.1"),
        ("mid_block.resnets.1", "middle_block.2"),
    ]  # fmt: skip
    number = 1
    for level, block in enumerate(unet.down_blocks):
        for i in range(len(block.resnets)):
            names.append((f"down_blocks.{level}.resnets.{i}", f"input_blocks.{number}.0"))
            names.append((f"down_blocks.{level}.attentions.{i}", f"input_blocks.{number}.1"))
            number += 1
        if block.downsamplers is not None:
            names.append((f"down_blocks.{level}.downsamplers.0.conv", f"input_blocks.{number}.0.op"))
            number += 1
    number = 0
    for level, block in enumerate(unet.up_blocks):
        for i in range(len(block.resnets)):
            names.append((f"up_blocks.{level}.resnets.{i}", f"output_blocks.{number}.0"))
            names.append((f"up_blocks.{level}.attentions.{i}", f"output_blocks.{number}.1"))
            number += 1
        if block.upsamplers is not None:
            has_attention = hasattr(block, "attentions")
            place = f"output_blocks.{number - 1}.{2 if has_attention else 1}.conv"
            names.append((f"up_blocks.{level}.upsamplers.0.conv", place))
    tensors = _renamed(unet.state_dict(), names)
    resnets = {name: tensor for name, tensor in tensors.items() if "transformer_blocks" not in name}
    return {n: t for n, t in tensors.items() if "transformer_blocks" in n} | _renamed(resnets, _RESNET)


def _vae(vae: Any) -> Tensors:
    levels = len(vae.config.block_out_channels)
    names = [("conv_norm_out", "norm_out"), ("conv_shortcut", "nin_shortcut")]
    for side in ("encoder", "decoder"):
        names += [
            (f"{side}.mid_block.resnets.0", f"{side}.mid.block_1"),
            (f"{side}.mid_block.attentions.0", f"{side}.mid.attn_1"),
            (f"{side}.mid_block.resnets.1", f"{side}.mid.block_2"),
        ]
    for level in range(levels):
        upper = levels - 1 - level
        for i in range(vae.config.layers_per_block + 1):
            names.append((f"encoder.down_blocks.{level}.resnets.{i}", f"encoder.down.{level}.block.{i}"))
            names.append((f"decoder.up_blocks.{level}.resnets.{i}", f"decoder.up.{upper}.block.{i}"))
        names.append((f"encoder.down_blocks.{level}.downsamplers.0", f"encoder.down.{level}.downsample"))
        names.append((f"decoder.up_blocks.{level}.upsamplers.0", f"decoder.up.{upper}.upsample"))
    attention = [("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")]
    tensors = _renamed(vae.state_dict(), names + attention)
    # Their attention is made of convolutions of one pixel.
    return {n: t[..., None, None] if "attn_1" in n and t.ndim == 2 else t for n, t in tensors.items()}


def _clip(encoder: Any) -> Tensors:
    """As transformers named it before version 5 took the outer part of the name away."""
    tensors = encoder.state_dict()
    return {
        n if n.startswith(("text_model.", "text_projection.")) else f"text_model.{n}": t for n, t in tensors.items()
    }


def _with_a_last_layer(tensors: Tensors) -> Tensors:
    """Stable Diffusion 2's files hold the layer that is not used."""
    layers = 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("transformer.resblocks."))
    last = f"transformer.resblocks.{layers - 1}."
    more = {
        n.replace(last, f"transformer.resblocks.{layers}."): t + 1 for n, t in tensors.items() if n.startswith(last)
    }
    return tensors | more


def _open_clip(encoder: Any) -> Tensors:
    names = [
        ("text_model.encoder.layers", "transformer.resblocks"), ("self_attn.out_proj", "attn.out_proj"),
        ("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"), ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"),
        ("text_model.final_layer_norm", "ln_final"), ("text_model.embeddings.token_embedding", "token_embedding"),
        ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ]  # fmt: skip
    tensors = _renamed(_clip(encoder), names)
    width = encoder.config.hidden_size
    projection = tensors.pop("text_projection.weight", torch.eye(width))
    for layer in range(encoder.config.num_hidden_layers):
        for kind in ("weight", "bias"):
            old = [f"transformer.resblocks.{layer}.self_attn.{part}_proj.{kind}" for part in "qkv"]
            joined = torch.cat([tensors.pop(name) for name in old])
            tensors[f"transformer.resblocks.{layer}.attn.in_proj_{kind}"] = joined
    return tensors | {"text_projection": projection.T, "logit_scale": torch.tensor(4.6)}


def clip(kind: Any, width: int, act: str, layers: int = 2) -> Any:
    """A text encoder with 64 channels a head, as real ones have."""
    config = transformers.CLIPTextConfig(
        hidden_size=width, intermediate_size=width, projection_dim=width, num_hidden_layers=layers,
        num_attention_heads=width // 64, hidden_act=act, vocab_size=len(tiny._CLIP_VOCABULARY),
        bos_token_id=tiny._CLIP_VOCABULARY[tiny._START], eos_token_id=tiny._CLIP_VOCABULARY[tiny._END],
    )  # fmt: skip
    return tiny._loud(kind(config))


SIZE = {"block_out_channels": (32, 64), "norm_num_groups": 32, "layers_per_block": 2}
NO_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def build(is_xl: bool) -> Any:
    """A tiny pipeline whose shapes tell as much as a real one's: 64 channels a head."""
    tokenizer, second = tiny._clip_tokenizer(), tiny._clip_tokenizer()
    second.pad_token = "!"  # noqa: S105
    vae = tiny._autoencoder(**SIZE, scaling_factor=0.13025 if is_xl else 0.18215)
    first = {"text_encoder": clip(transformers.CLIPTextModel, 64, "quick_gelu"), "tokenizer": tokenizer}
    if not is_xl:
        unet = tiny._unet(**SIZE, cross_attention_dim=64, attention_head_dim=8, sample_size=64)
        scheduler = diffusers.PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1, **tiny.BETAS)
        return diffusers.StableDiffusionPipeline(unet=unet, vae=vae, scheduler=scheduler, **first, **NO_CHECKER)
    unet = tiny._unet(
        **SIZE, cross_attention_dim=192, attention_head_dim=(1, 1), use_linear_projection=True,
        transformer_layers_per_block=(1, 2), addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=128 + 6 * 8, sample_size=128,
    )  # fmt: skip
    return diffusers.StableDiffusionXLPipeline(
        unet=unet,
        vae=vae,
        text_encoder_2=clip(transformers.CLIPTextModelWithProjection, 128, "gelu"),
        tokenizer_2=second,
        scheduler=diffusers.EulerDiscreteScheduler(steps_offset=1, timestep_spacing="leading", **tiny.BETAS),
        **first,
    )


def build_sd2() -> Any:
    """A tiny Stable Diffusion 2.1, which predicts v; its text encoder has a layer less than the file."""
    tokenizer = tiny._clip_tokenizer()
    tokenizer.pad_token = "!"  # noqa: S105
    return diffusers.StableDiffusionPipeline(
        unet=tiny._unet(
            **SIZE, cross_attention_dim=128, attention_head_dim=(1, 1), use_linear_projection=True, sample_size=96
        ),
        vae=tiny._autoencoder(**SIZE, scaling_factor=0.18215),
        text_encoder=clip(transformers.CLIPTextModel, 128, "gelu"),
        tokenizer=tokenizer,
        scheduler=diffusers.PNDMScheduler(
            skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1, prediction_type="v_prediction", **tiny.BETAS
        ),
        **NO_CHECKER,
    )
