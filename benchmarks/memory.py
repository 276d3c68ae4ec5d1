"""Measures the device memory of SDXL at 1024² with two LoRAs and an IP-Adapter: ours, and the pipeline as it comes.

Real sizes, random weights, in the dtype that ``auto`` means. Ours is told that it has 9 GB for everything and makes its
own plan; the other side puts the whole pipeline on the device, with the same LoRAs and the same IP-Adapter. The peak is
what PyTorch's allocator gave out at once while a picture was painted, the weights included.
"""

import gc
import hashlib
import tempfile
import warnings
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

from benchmarks import machine, models
from benchmarks.goals import Goal
from benchmarks.lora_switch import write as write_lora

#: Bytes of which ours may give out no more.
ALLOWED = 9 * 10**9
STEPS, SCALE = 8, 0.6

GOALS = (
    Goal("GB that ours gave out at most", ("ours_gb",), 9.0),
    Goal("share of what the pipeline alone took", ("share",), 0.75),
)


class Size(NamedTuple):
    """How large everything is."""

    write: models.Writer
    side: int  # of the picture, in pixels
    vision: dict[str, int]  # the image encoder's configuration


REAL = Size(
    models.write_sdxl,
    1024,
    {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "projection_dim": 1024,
        "patch_size": 14,
        "image_size": 224,
    },
)


def run(size: Size = REAL) -> dict[str, Any]:
    """Gigabytes of both."""
    import torch

    torch.set_grad_enabled(False)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        weights = Path(folder)
        name = _write(weights, size)
        ours = _ours(weights, name, size.side)
        _forget()
        theirs = _theirs(weights, name, size.side)
    return {
        "ours_gb": round(ours / 1e9, 2),
        "pipeline_gb": round(theirs / 1e9, 2),
        "share": round(ours / theirs, 3) if theirs else None,
    }


def _write(weights: Path, size: Size) -> str:
    """The model, two LoRAs of rank 16 and an IP-Adapter with its image encoder; gives the model's name."""
    import torch
    from diffusers import UNet2DConditionModel
    from safetensors.torch import save_file
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    path = size.write(weights)
    unet = UNet2DConditionModel.from_pretrained(path / "unet", torch_dtype=torch.bfloat16)
    for folder in ("loras", "ip-adapters"):
        (weights / folder).mkdir()
    for seed, name in enumerate(("one", "two")):
        write_lora(weights / "loras" / f"{name}.safetensors", unet, seed)
    save_file(_ip_adapter(unet, size.vision["projection_dim"]), weights / "ip-adapters" / "ip.safetensors")
    encoder = CLIPVisionModelWithProjection(CLIPVisionConfig(**size.vision)).to(torch.bfloat16)
    encoder.save_pretrained(weights / "ip-adapters" / "image_encoder")
    return path.name


def _ip_adapter(unet: Any, projected: int) -> dict[str, Any]:
    """Its tensors, by the names of the published files: four tokens of one embedding."""
    import torch

    context = unet.config.cross_attention_dim
    tensors = {
        "image_proj.proj.weight": torch.randn(4 * context, projected) * projected**-0.5,
        "image_proj.proj.bias": torch.zeros(4 * context),
        "image_proj.norm.weight": torch.ones(context),
        "image_proj.norm.bias": torch.zeros(context),
    }
    for place, name in enumerate(name for name in unet.attn_processors if "attn2" in name):
        width = unet.get_submodule(name.removesuffix(".processor")).to_k.weight.shape[0]
        for part in "kv":
            key = f"ip_adapter.{2 * place + 1}.to_{part}_ip.weight"
            tensors[key] = torch.randn(width, context) * context**-0.5
    return {key: tensor.to(torch.bfloat16).contiguous() for key, tensor in tensors.items()}


def _ours(weights: Path, name: str, side: int) -> int:
    """The peak of a picture in the engine."""
    from daguerre import catalog
    from daguerre.engine import Budgets, Engine, Event, Options, Painted, Reference, RunEnded, Submission
    from daguerre.loras import Loras
    from daguerre.recipe import Draft, LoraWish, resolve
    from daguerre.references import References

    model, loras = catalog.read(weights, name).model(), Loras(weights)
    wishes = (LoraWish(name="one", weight=0.8), LoraWish(name="two", weight=0.5))
    draft = Draft(prompt="a lake", width=side, height=side, steps=STEPS, seed=0, loras=wishes)
    recipe = resolve(draft, model, 0, {}, loras=loras.chosen(draft, model))
    pixels = _reference()
    submission = Submission(
        "one",
        recipe,
        model,
        adapters=loras.adapters(recipe.loras),
        ip_adapter=References(weights).adapter("ip", model),
        references=(Reference(pixels, SCALE, hashlib.sha256(pixels.tobytes()).hexdigest()),),
    )
    events: SimpleQueue[Event] = SimpleQueue()
    engine = Engine(events.put, Options(machine.device(), budgets=Budgets(device=ALLOWED)))
    _forget()
    engine.start(model)
    engine.submit(submission)
    while not isinstance(event := events.get(), Painted):
        if isinstance(event, RunEnded):
            raise event.error
    event.pixels.array()
    peak = _peak()
    engine.close(30)
    return peak


def _theirs(weights: Path, name: str, side: int) -> int:
    """The peak of the same picture by diffusers alone, everything on the device."""
    from diffusers import DiffusionPipeline
    from PIL import Image

    from daguerre.engine import pipelines

    device = pipelines.choose_device(machine.device())
    pipe = DiffusionPipeline.from_pretrained(weights / name, torch_dtype=pipelines.choose_dtype("auto", device))
    for adapter in ("one", "two"):
        pipe.load_lora_weights(weights / "loras", weight_name=f"{adapter}.safetensors", adapter_name=adapter)
    pipe.set_adapters(["one", "two"], [0.8, 0.5])
    pipe.load_ip_adapter(
        str(weights), subfolder="ip-adapters", weight_name="ip.safetensors", image_encoder_folder="image_encoder"
    )
    pipe.set_ip_adapter_scale(SCALE)
    pipe.to(device)
    pipe("a lake", width=side, height=side, num_inference_steps=STEPS, ip_adapter_image=Image.fromarray(_reference()))
    return _peak()


def _reference() -> Any:
    """A reference image, [512, 512, 3]."""
    import numpy as np

    tiles = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    return tiles.repeat(32, 0).repeat(32, 1)


def _peak() -> int:
    import torch

    return int(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else 0


def _forget() -> None:
    """Begins the peak anew, with nothing left on the device."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
