"""Owns configurations read off tensors: what CLIP, T5 and the autoencoder are, by the shapes of their weights."""

import re
from collections.abc import Mapping
from typing import Any

Config = dict[str, Any]
Shapes = Mapping[str, tuple[int, ...]]

HEAD_WIDTH = 64  # of SDXL's UNet and of every CLIP text encoder


def under(shapes: Shapes, prefix: str) -> dict[str, tuple[int, ...]]:
    """The tensors whose names begin so, without that."""
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}


def count(shapes: Shapes, pattern: str) -> int:
    """How many numbers a pattern's group takes, from 0 on."""
    found = {int(match[1]) for name in shapes if (match := re.match(pattern, name))}
    return max(found, default=-1) + 1


def autoencoder(shapes: Shapes) -> Config:
    """The autoencoder of Rombach et al. 2022 under its original names."""
    levels = count(shapes, r"encoder\.down\.(\d+)\.")
    has_quantisers = "quant_conv.weight" in shapes
    return {
        "block_out_channels": [shapes[f"encoder.down.{i}.block.0.conv1.weight"][0] for i in range(levels)],
        "layers_per_block": count(shapes, r"encoder\.down\.0\.block\.(\d+)\."),
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "use_quant_conv": has_quantisers,
        "use_post_quant_conv": has_quantisers,
    }


def clip(shapes: Shapes, activation: str = "quick_gelu") -> Config:
    """A text encoder by transformers' names, as OpenAI's is kept; without a projection it has one that does nothing."""
    inner = under(shapes, "text_model.")
    vocabulary, width = inner["embeddings.token_embedding.weight"]
    layers = count(inner, r"encoder\.layers\.(\d+)\.")
    hidden = inner["encoder.layers.0.mlp.fc1.weight"][0]
    projected = shapes.get("text_projection.weight", (width, width))[0]
    return _text_config(vocabulary, width, layers, hidden) | {"hidden_act": activation, "projection_dim": projected}


def open_clip(shapes: Shapes) -> Config:
    """OpenCLIP's text encoder, with the projection of the pooled text where there is one."""
    vocabulary, width = shapes["token_embedding.weight"]
    layers = count(shapes, r"transformer\.resblocks\.(\d+)\.")
    hidden = shapes["transformer.resblocks.0.mlp.c_fc.weight"][0]
    projected = shapes.get("text_projection", (width, width))[1]
    return _text_config(vocabulary, width, layers, hidden) | {"hidden_act": "gelu", "projection_dim": projected}


def _text_config(vocabulary: int, width: int, layers: int, hidden: int) -> Config:
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "intermediate_size": hidden,
        "num_attention_heads": max(1, width // HEAD_WIDTH),
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
    }


def t5(shapes: Shapes) -> Config:
    """The encoder of T5 1.0 or 1.1, by transformers' names."""
    vocabulary, width = shapes["shared.weight"]
    buckets, heads = shapes["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    is_gated = "encoder.block.0.layer.1.DenseReluDense.wi_0.weight" in shapes
    dense = "encoder.block.0.layer.1.DenseReluDense.wi" + ("_0.weight" if is_gated else ".weight")
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": shapes["encoder.block.0.layer.0.SelfAttention.q.weight"][0] // heads,
        "d_ff": shapes[dense][0],
        "num_layers": count(shapes, r"encoder\.block\.(\d+)\."),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "feed_forward_proj": "gated-gelu" if is_gated else "relu",
        "tie_word_embeddings": False,
    }
