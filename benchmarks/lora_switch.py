"""Measures changing from one LoRA to another on SDXL's UNet: ours against unload_lora_weights and load_lora_weights.

The UNet has its real size, 2.6 billion weights in bfloat16, and 722 layers that a LoRA of rank 16 changes. What its
weights are does not matter: nothing is computed with them. The sides take turns in going back and forth between
the same two files, which the system has in its cache. Ours has read them before, as it has when they are used again;
what reading one for the first time takes is told beside. On a GPU each change is timed until the device has done it.
"""

import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.goals import Goal

ROUNDS = 5
RANK = 16
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")

LEAST, MOST_MS = (30.0, 150.0) if machine.device() == "cpu" else (100.0, 30.0)
GOALS = (
    Goal("times as fast as unload and load", ("times_as_fast",), LEAST, is_least=True),
    Goal("milliseconds of a switch", ("ours_ms",), MOST_MS),
)

SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def unet() -> Any:
    """SDXL's UNet in bfloat16."""
    import torch
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        made = UNet2DConditionModel(**SDXL).to(torch.bfloat16)
    return made.to_empty(device=machine.device()).eval().requires_grad_(False)


def pipeline(made: Any) -> Any:
    """A pipeline of nothing but the UNet: adapters of text encoders are not measured."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    nothing = dict.fromkeys(("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    return StableDiffusionXLPipeline(**nothing, unet=made, scheduler=EulerDiscreteScheduler())


def write(path: Path, made: Any, seed: int) -> int:
    """Writes a LoRA for all targets; gives their number."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    tensors = {}
    for name, layer in made.named_modules():
        if isinstance(layer, torch.nn.Linear) and name.endswith(TARGETS):
            tensors[f"unet.{name}.lora_A.weight"] = torch.randn(RANK, layer.in_features, dtype=torch.bfloat16)
            tensors[f"unet.{name}.lora_B.weight"] = torch.randn(layer.out_features, RANK, dtype=torch.bfloat16)
    save_file(tensors, path)
    return len(tensors) // 2


def seconds(act: Callable[[], object]) -> float:
    """Until the device has done it."""
    import torch

    start = time.perf_counter()
    act()
    if machine.device() != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def run() -> dict[str, Any]:
    """Milliseconds of both, and their ratio."""
    from daguerre.engine.pipelines import quiet

    quiet()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _compare(Path(folder))


def _compare(folder: Path) -> dict[str, Any]:
    import torch

    from daguerre.editions import mark
    from daguerre.engine.adapter_cache import read
    from daguerre.engine.adapters import Adapters
    from daguerre.loras import Adapter

    torch.set_grad_enabled(False)
    paths = [folder / "one.safetensors", folder / "two.safetensors"]
    made = unet()
    targets, _ = (write(path, made, seed) for seed, path in enumerate(paths))
    records = [Adapter(path.stem, path, mark(path.stat())) for path in paths]
    is_pinned = machine.device() != "cpu"
    began = time.perf_counter()
    hosted = [read(record, torch.bfloat16, is_pinned) for record in records]
    reading = (time.perf_counter() - began) / len(hosted)
    theirs = pipeline(made)

    def reload(path: Path) -> None:
        theirs.unload_lora_weights()
        theirs.load_lora_weights(path.parent, weight_name=path.name, adapter_name="own")

    reload(paths[1])
    reloads = [seconds(lambda: reload(paths[turn % 2])) for turn in range(ROUNDS)]  # noqa: B023
    theirs.unload_lora_weights()
    ours = Adapters(theirs, theirs.device)
    first = seconds(lambda: ours.wear_on_denoiser([(hosted[1], 0.8)]))
    ours.wear_on_denoiser([(hosted[0], 0.8)])  # both have been held against the layers now
    switches = [seconds(lambda: ours.wear_on_denoiser([(hosted[(turn + 1) % 2], 0.8)])) for turn in range(4 * ROUNDS)]  # noqa: B023
    reload_ms, switch_ms = (1000 * statistics.median(times) for times in (reloads, switches))
    return {
        "targets": targets,
        "rank": RANK,
        "file_bytes": paths[0].stat().st_size,
        "theirs_ms": round(reload_ms, 1),
        "ours_ms": round(switch_ms, 2),
        "ours_first_ms": round(1000 * first, 1),
        "ours_reading_ms": round(1000 * reading, 1),
        "times_as_fast": round(reload_ms / switch_ms, 1),
    }
