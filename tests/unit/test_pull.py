"""Which files of a repository are fetched."""

import pytest

from daguerre.catalog import Source
from daguerre.pull import RemoteFile, _wanted

#: As Stability's, Black Forest Labs' and Tongyi's repositories are laid out.
FILES = [
    ".gitattributes",
    "README.md",
    "model_index.json",
    "sd_xl_base_1.0.safetensors",
    "pipeline.py",
    "scheduler/scheduler_config.json",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "tokenizer_3/spiece.model",
    "safety_checker/config.json",
    "safety_checker/model.safetensors",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.bin",
    "unet/model.onnx",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder_3/config.json",
    "text_encoder_3/model-00001-of-00002.safetensors",
    "text_encoder_3/model-00002-of-00002.safetensors",
    "text_encoder_3/model.fp16-00001-of-00002.safetensors",
    "text_encoder_3/model.fp16-00002-of-00002.safetensors",
    "text_encoder_3/model.safetensors.index.json",
    "text_encoder_3/model.safetensors.index.fp16.json",
    "transformer/diffusion_pytorch_model-00001-of-00001.safetensors",
    "transformer/diffusion_pytorch_model.safetensors.index.json",
    "transformer/deep/er/model.safetensors",
]

TEXTS = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "tokenizer_3/spiece.model",
    "unet/config.json",
    "vae/config.json",
    "text_encoder_3/config.json",
    "vae/diffusion_pytorch_model.safetensors",
    "transformer/diffusion_pytorch_model-00001-of-00001.safetensors",
    "transformer/diffusion_pytorch_model.safetensors.index.json",
]
PLAIN = [
    "unet/diffusion_pytorch_model.safetensors",
    "text_encoder_3/model.safetensors.index.json",
    "text_encoder_3/model-00001-of-00002.safetensors",
    "text_encoder_3/model-00002-of-00002.safetensors",
]
HALF = [
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "text_encoder_3/model.safetensors.index.fp16.json",
    "text_encoder_3/model.fp16-00001-of-00002.safetensors",
    "text_encoder_3/model.fp16-00002-of-00002.safetensors",
]
ESCAPES = ["../x.json", "/etc/x.json", "a/../../x.json", "a\\x.json", ".git/x.json", "a/b/c/x.json"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (Source("a/b"), [*TEXTS, *PLAIN]),
        (Source("a/b", variant="fp16"), [*TEXTS, *HALF]),
        (Source("a/b", file="sd_xl_base_1.0.safetensors"), ["sd_xl_base_1.0.safetensors"]),
        (Source("a/b", file="../x.json"), []),
    ],
)
def test_one_variant_of_each_part_and_nothing_that_could_be_code(source: Source, expected: list[str]) -> None:
    """Configurations, tokenizers and safetensors; no path that leads elsewhere."""
    files = [RemoteFile(name, 1, None, None) for name in (*FILES, *ESCAPES)]
    assert {file.name for file in _wanted(source, files)} == set(expected)
