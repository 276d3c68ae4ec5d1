"""Checkpoints of Stable Diffusion 3 and FLUX.1 in one file: what a pipeline's tensors are called by their makers.

Written from the module names of Stability AI's and Black Forest Labs' own code: queries, keys and values are one
matrix, and the last modulation of a network holds shift before scale.
"""

from pathlib import Path
from typing import Any

import diffusers
import original
import tiny
import torch
import transformers
from original import Tensors
from safetensors.torch import save_file

FLUX = {"img_in": "x_embedder", "txt_in": "context_embedder", "final_layer.linear": "proj_out"}
FLUX |= {
    f"{theirs}.{layer}_layer": f"time_text_embed.{ours}_embedder.linear_{number}"
    for theirs, ours in (("time_in", "timestep"), ("vector_in", "text"), ("guidance_in", "guidance"))
    for layer, number in (("in", 1), ("out", 2))
}
FLUX_DOUBLE = {"img_mod.lin": "norm1.linear", "txt_mod.lin": "norm1_context.linear"}
FLUX_DOUBLE |= {"img_attn.qkv": "attn.to_q attn.to_k attn.to_v", "img_attn.proj": "attn.to_out.0"}
FLUX_DOUBLE |= {"txt_attn.qkv": "attn.add_q_proj attn.add_k_proj attn.add_v_proj", "txt_attn.proj": "attn.to_add_out"}
FLUX_DOUBLE |= {"img_mlp.0": "ff.net.0.proj", "img_mlp.2": "ff.net.2"}
FLUX_DOUBLE |= {"txt_mlp.0": "ff_context.net.0.proj", "txt_mlp.2": "ff_context.net.2"}
FLUX_SINGLE = {
    "linear1": "attn.to_q attn.to_k attn.to_v proj_mlp",
    "linear2": "proj_out",
    "modulation.lin": "norm.linear",
}
FLUX_NORMS = {"img_attn.norm.query_norm": "attn.norm_q", "img_attn.norm.key_norm": "attn.norm_k"}
FLUX_NORMS |= {"txt_attn.norm.query_norm": "attn.norm_added_q", "txt_attn.norm.key_norm": "attn.norm_added_k"}
FLUX_SINGLE_NORMS = {"norm.query_norm": "attn.norm_q", "norm.key_norm": "attn.norm_k"}

SD3 = {"x_embedder.proj": "pos_embed.proj", "context_embedder": "context_embedder", "final_layer.linear": "proj_out"}
SD3 |= {
    f"{theirs}.mlp.{place}": f"time_text_embed.{ours}_embedder.linear_{number}"
    for theirs, ours in (("t_embedder", "timestep"), ("y_embedder", "text"))
    for place, number in ((0, 1), (2, 2))
}
SD3_BLOCK = {"x_block.adaLN_modulation.1": "norm1.linear", "context_block.adaLN_modulation.1": "norm1_context.linear"}
SD3_BLOCK |= {"x_block.attn.qkv": "attn.to_q attn.to_k attn.to_v", "x_block.attn.proj": "attn.to_out.0"}
SD3_BLOCK |= {"context_block.attn.qkv": "attn.add_q_proj attn.add_k_proj attn.add_v_proj"}
SD3_BLOCK |= {"context_block.attn.proj": "attn.to_add_out"}
SD3_BLOCK |= {"x_block.attn2.qkv": "attn2.to_q attn2.to_k attn2.to_v", "x_block.attn2.proj": "attn2.to_out.0"}
SD3_BLOCK |= {"x_block.mlp.fc1": "ff.net.0.proj", "x_block.mlp.fc2": "ff.net.2"}
SD3_BLOCK |= {"context_block.mlp.fc1": "ff_context.net.0.proj", "context_block.mlp.fc2": "ff_context.net.2"}
SD3_BLOCK |= {"x_block.attn.ln_q": "attn.norm_q", "x_block.attn.ln_k": "attn.norm_k"}
SD3_BLOCK |= {"context_block.attn.ln_q": "attn.norm_added_q", "context_block.attn.ln_k": "attn.norm_added_k"}
SD3_BLOCK |= {"x_block.attn2.ln_q": "attn2.norm_q", "x_block.attn2.ln_k": "attn2.norm_k"}


def write_checkpoint(pipe: Any, path: Path) -> None:
    """Writes a pipeline's weights as one file, and its tokenizers where they are looked for."""
    pipe.tokenizer.save_pretrained(path.parent / "tokenizers" / "clip")
    t5 = pipe.tokenizer_2 if type(pipe).__name__ == "FluxPipeline" else pipe.tokenizer_3
    if t5 is not None:
        t5.save_pretrained(path.parent / "tokenizers" / "t5")
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors_of(pipe).items()}, path)


def tensors_of(pipe: Any) -> Tensors:
    """The pipeline's tensors under their original names."""
    is_flux = type(pipe).__name__ == "FluxPipeline"
    transformer = _flux(pipe.transformer) if is_flux else _sd3(pipe.transformer)
    tensors = original._prefixed("model.diffusion_model.", transformer)
    tensors |= original._prefixed("vae." if is_flux else "first_stage_model.", original._vae(pipe.vae))
    clip = {n: t for n, t in original._clip(pipe.text_encoder).items() if not n.endswith("text_projection.weight")}
    tensors |= original._prefixed("text_encoders.clip_l.transformer.", clip)
    if not is_flux:
        tensors |= original._prefixed("text_encoders.clip_g.transformer.", pipe.text_encoder_2.state_dict())
    t5 = pipe.text_encoder_2 if is_flux else pipe.text_encoder_3
    if t5 is not None:
        once = {name: tensor for name, tensor in t5.state_dict().items() if name != "encoder.embed_tokens.weight"}
        tensors |= original._prefixed("text_encoders.t5xxl.transformer.", once)
    return tensors


def _taken(ours: Tensors, layer: str, paths: str, prefix: str = "") -> Tensors:
    """A layer of theirs from those of ours that it is made of, where they are there."""
    found: Tensors = {}
    for kind in ("weight", "bias"):
        names = [f"{prefix}{path}.{kind}" for path in paths.split()]
        if all(name in ours for name in names):
            found[f"{layer}.{kind}"] = torch.cat([ours.pop(name) for name in names])
    return found


def _swapped(ours: Tensors, layer: str, path: str) -> Tensors:
    return {f"{layer}.{kind}": torch.cat(ours.pop(f"{path}.{kind}").chunk(2)[::-1]) for kind in ("weight", "bias")}


def _flux(transformer: Any) -> Tensors:
    ours = dict(transformer.state_dict())
    theirs = _swapped(ours, "final_layer.adaLN_modulation.1", "norm_out.linear")
    for i in range(transformer.config.num_layers):
        for layer, paths in FLUX_DOUBLE.items():
            theirs |= _taken(ours, f"double_blocks.{i}.{layer}", paths, f"transformer_blocks.{i}.")
        for layer, path in FLUX_NORMS.items():
            theirs[f"double_blocks.{i}.{layer}.scale"] = ours.pop(f"transformer_blocks.{i}.{path}.weight")
    for i in range(transformer.config.num_single_layers):
        for layer, paths in FLUX_SINGLE.items():
            theirs |= _taken(ours, f"single_blocks.{i}.{layer}", paths, f"single_transformer_blocks.{i}.")
        for layer, path in FLUX_SINGLE_NORMS.items():
            theirs[f"single_blocks.{i}.{layer}.scale"] = ours.pop(f"single_transformer_blocks.{i}.{path}.weight")
    for layer, path in FLUX.items():
        theirs |= _taken(ours, layer, path)
    assert not ours, ours.keys()
    return theirs


def _sd3(transformer: Any) -> Tensors:
    ours = dict(transformer.state_dict())
    theirs = _swapped(ours, "final_layer.adaLN_modulation.1", "norm_out.linear")
    theirs["pos_embed"] = ours.pop("pos_embed.pos_embed")
    last = transformer.config.num_layers - 1
    path = f"transformer_blocks.{last}.norm1_context.linear"
    theirs |= _swapped(ours, f"joint_blocks.{last}.context_block.adaLN_modulation.1", path)
    for i in range(last + 1):
        for layer, paths in SD3_BLOCK.items():
            theirs |= _taken(ours, f"joint_blocks.{i}.{layer}", paths, f"transformer_blocks.{i}.")
    for layer, path in SD3.items():
        theirs |= _taken(ours, layer, path)
    assert not ours, ours.keys()
    return theirs


def _t5(width: int) -> Any:
    """T5 1.1, as both families have it."""
    config = transformers.T5Config(
        vocab_size=len(tiny._T5_VOCABULARY),
        d_model=width,
        d_kv=16,
        d_ff=48,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    return tiny._loud(transformers.T5EncoderModel(config))


def _vae(**factors: float) -> Any:
    size = {"block_out_channels": (32, 64), "norm_num_groups": 32, "layers_per_block": 2}
    return tiny._autoencoder(**size, latent_channels=16, use_quant_conv=False, use_post_quant_conv=False, **factors)


def build_flux() -> Any:
    """A tiny FLUX whose shapes tell as much as a real one's."""
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=64,
        guidance_embeds=True,
        axes_dims_rope=(4, 14, 14),
    )
    return diffusers.FluxPipeline(
        transformer=tiny._loud(transformer),
        vae=_vae(scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=original.clip(transformers.CLIPTextModel, 64, "quick_gelu"),
        tokenizer=tiny._clip_tokenizer(),
        text_encoder_2=_t5(32),
        tokenizer_2=tiny._t5_tokenizer(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    )


def build_sd3(has_t5: bool = True) -> Any:
    """A tiny Stable Diffusion 3.5 [medium], whose first block attends twice; with or without T5."""
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=128,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=3,
        attention_head_dim=64,
        num_attention_heads=1,
        joint_attention_dim=256,
        caption_projection_dim=64,
        pooled_projection_dim=192,
        pos_embed_max_size=32,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    small = original.clip(transformers.CLIPTextModelWithProjection, 64, "quick_gelu")
    with torch.no_grad():
        small.text_projection.weight.copy_(torch.eye(64))  # which the files leave out
    second = tiny._clip_tokenizer()
    second.pad_token = "!"  # noqa: S105
    return diffusers.StableDiffusion3Pipeline(
        transformer=tiny._loud(transformer),
        vae=_vae(scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=small,
        tokenizer=tiny._clip_tokenizer(),
        text_encoder_2=original.clip(transformers.CLIPTextModelWithProjection, 128, "gelu"),
        tokenizer_2=second,
        text_encoder_3=_t5(256) if has_t5 else None,
        tokenizer_3=tiny._t5_tokenizer() if has_t5 else None,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
