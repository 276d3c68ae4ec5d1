"""Owns the names of layers: what each layer of a model is called in the files of those who train adapters for it.

One layer has many names: diffusers' own (``unet.down_blocks.0…to_q``, also with ``processor`` and ``_lora`` from before
PEFT), kohya's (``lora_unet_down_blocks_0_…_to_q``), and in AUTOMATIC1111's way the one that it has in the original
checkpoint (``lora_unet_input_blocks_1_1_…``, ``diffusion_model.double_blocks.0.img_attn.qkv``). All of them are told
apart without their dots, which kohya's names do not have. Nothing in here reads a tensor.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from daguerre.weightfile import read_header

#: Shapes of the weights of layers, by ``part.path``: ``unet.down_blocks.0.…``, ``text_encoder.encoder.layers.0.…``.
Layers = Mapping[str, tuple[int, ...]]

DENOISERS = ("unet", "transformer")
ENCODERS = {"text_encoder": "te1_", "text_encoder_2": "te2_", "text_encoder_3": "te3_"}

_EMBEDDINGS = ("token_embedding", "position_embedding", "shared", "embed_tokens", "relative_attention_bias")

#: What the names in files begin with, and the part that is meant; the first that leads to a layer counts.
_PREFIXES = (
    *(("lora_te1_", "te1_"), ("lora_te2_", "te2_"), ("lora_te3_", "te3_"), ("lora_te_", "te1_")),
    *(("text_encoder_2_", "te2_"), ("text_encoder_3_", "te3_"), ("text_encoder_", "te1_")),
    *((prefix, "denoiser_") for prefix in ("lora_unet_", "lora_transformer_", "lycoris_", "model_diffusion_model_")),
    *((prefix, "denoiser_") for prefix in ("diffusion_model_", "unet_", "transformer_", "")),
)

#: FLUX: the original's layers, and those of diffusers whose outputs, one after the other, are theirs.
_FLUX = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in_in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in_out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in_in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in_out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in_in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in_out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer_linear": "proj_out",
}
_FLUX_DOUBLE = {
    "img_attn_qkv": "attn.to_q attn.to_k attn.to_v",
    "txt_attn_qkv": "attn.add_q_proj attn.add_k_proj attn.add_v_proj",
    "img_attn_proj": "attn.to_out.0",
    "txt_attn_proj": "attn.to_add_out",
    "img_mlp_0": "ff.net.0.proj",
    "img_mlp_2": "ff.net.2",
    "txt_mlp_0": "ff_context.net.0.proj",
    "txt_mlp_2": "ff_context.net.2",
    "img_mod_lin": "norm1.linear",
    "txt_mod_lin": "norm1_context.linear",
}
_FLUX_SINGLE = {
    "linear1": "attn.to_q attn.to_k attn.to_v proj_mlp",
    "linear2": "proj_out",
    "modulation_lin": "norm.linear",
}

#: Stable Diffusion 3: the same.
_SD3 = {
    "x_block_attn_qkv": "attn.to_q attn.to_k attn.to_v",
    "context_block_attn_qkv": "attn.add_q_proj attn.add_k_proj attn.add_v_proj",
    "x_block_attn_proj": "attn.to_out.0",
    "context_block_attn_proj": "attn.to_add_out",
    "x_block_mlp_fc1": "ff.net.0.proj",
    "x_block_mlp_fc2": "ff.net.2",
    "context_block_mlp_fc1": "ff_context.net.0.proj",
    "context_block_mlp_fc2": "ff_context.net.2",
    "x_block_adaLN_modulation_1": "norm1.linear",
}

_ORIGINAL_RESNET = {
    "conv1": "in_layers_2",
    "conv2": "out_layers_3",
    "time_emb_proj": "emb_layers_1",
    "conv_shortcut": "skip_connection",
}
_ORIGINAL_UNET = {
    "conv_in": "input_blocks_0_0",
    "conv_out": "out_2",
    "time_embedding_linear_1": "time_embed_0",
    "time_embedding_linear_2": "time_embed_2",
    "add_embedding_linear_1": "label_emb_0_0",
    "add_embedding_linear_2": "label_emb_0_2",
}


def of_folder(folder: Path) -> dict[str, tuple[int, ...]]:
    """The layers of a diffusers folder, from the headers of its files.

    Raises:
        CatalogError: a file is broken.
    """
    layers: dict[str, tuple[int, ...]] = {}
    for part in (*DENOISERS, *ENCODERS):
        for path in sorted((folder / part).glob("*.safetensors")):
            for name, shape in read_header(path).shapes.items():
                layer, _, kind = name.rpartition(".")
                if kind == "weight" and len(shape) in (2, 4) and layer.rpartition(".")[2] not in _EMBEDDINGS:
                    layers[f"{part}.{layer}"] = shape
    return layers


def names(layers: Layers) -> dict[str, tuple[str, ...]]:
    """Every name that a file may have for a layer, without dots; several layers where they were one in the original."""
    found: dict[str, tuple[str, ...]] = {}
    resnets = {match[1] for name in layers if (match := re.match(r"unet\.down_blocks\.0\.resnets\.(\d+)\.", name))}
    for layer in layers:
        part, _, path = layer.partition(".")
        flat = path.replace(".", "_")
        if part in ENCODERS:
            for name in _encoder_names(flat.removeprefix("text_model_")):
                found[ENCODERS[part] + name] = (layer,)
        else:
            found["denoiser_" + flat] = (layer,)
            found["denoiser_" + re.sub(r"_to_out_0$", "_to_out", flat)] = (layer,)
            original = _original(flat, len(resnets), layers) if part == "unet" else None
            if original is not None:
                found["denoiser_" + original] = (layer,)
    return found | dict(_transformer(layers))


def find(name: str, known: Mapping[str, tuple[str, ...]]) -> tuple[str, ...] | None:
    """The layers that a file's name means, if there are any."""
    flat = name.removeprefix("base_model.model.").replace(".", "_").replace("_processor_", "_")
    for prefix, part in _PREFIXES:
        if flat.startswith(prefix):
            path = flat.removeprefix(prefix)
            layers = known.get(part + (path if part == "denoiser_" else path.removeprefix("text_model_")))
            if layers is not None:
                return layers
    return None


def _encoder_names(flat: str) -> Iterator[str]:
    """The name, and the one that diffusers gave to CLIP's projections before PEFT."""
    yield flat
    old = re.sub(r"_self_attn_(q|k|v|out)_proj$", r"_self_attn_to_\1", flat)
    if old != flat:
        yield old


def _original(flat: str, per_level: int, layers: Layers) -> str | None:
    """The UNet's layer in the original checkpoint, where blocks are counted through (Rombach et al. 2022)."""
    if flat in _ORIGINAL_UNET:
        return _ORIGINAL_UNET[flat]
    match = re.match(r"(down|up)_blocks_(\d+)_(resnets|attentions|downsamplers|upsamplers)_(\d+)_(.+)", flat)
    if match is None:
        return _original_middle(flat)
    side, level, kind, place, inner = match[1], int(match[2]), match[3], int(match[4]), match[5]
    first = 1 + level * (per_level + 1) if side == "down" else level * (per_level + 1)
    if kind == "downsamplers":
        return f"input_blocks_{first + per_level}_0_op"
    if kind == "upsamplers":
        has_attention = any(name.startswith(f"unet.up_blocks.{level}.attentions.") for name in layers)
        return f"output_blocks_{first + per_level}_{2 if has_attention else 1}_conv"
    block = f"{'input' if side == 'down' else 'output'}_blocks_{first + place}"
    return f"{block}_1_{inner}" if kind == "attentions" else f"{block}_0_{_ORIGINAL_RESNET.get(inner, inner)}"


def _original_middle(flat: str) -> str | None:
    match = re.match(r"mid_block_(resnets|attentions)_(\d+)_(.+)", flat)
    if match is None:
        return None
    if match[1] == "attentions":
        return f"middle_block_1_{match[3]}"
    return f"middle_block_{2 * int(match[2])}_{_ORIGINAL_RESNET.get(match[3], match[3])}"


def _transformer(layers: Layers) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The names that FLUX and Stable Diffusion 3 have from their makers."""
    wanted = dict(_FLUX)
    for original, block, table in (
        ("double_blocks", "transformer_blocks", _FLUX_DOUBLE),
        ("single_blocks", "single_transformer_blocks", _FLUX_SINGLE),
        ("joint_blocks", "transformer_blocks", _SD3),
    ):
        found = {match[1] for name in layers if (match := re.match(rf"transformer\.{block}\.(\d+)\.", name))}
        for i in found:
            for name, paths in table.items():
                wanted[f"{original}_{i}_{name}"] = " ".join(f"{block}.{i}.{path}" for path in paths.split())
    for name, paths in wanted.items():
        targets = tuple(f"transformer.{path}" for path in paths.split())
        if all(target in layers for target in targets):
            yield f"denoiser_{name}", targets
