"""Owns the training of a LoRA for the embedded model: its plan, its lessons, its steps and its file.

The embedded model stays as it is; only low-rank layers beside its UNet's move. Everything depends on the seed and on
the samples seen, and a run that was cut off goes on from its checkpoint to the same weights.
"""

import random
from pathlib import Path

import msgspec
import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTokenizer

from daguerre.demo.course import run
from daguerre.demo.flat import FlatWeights
from daguerre.demo.low_rank import LowRankLayers
from daguerre.demo.networks import Networks, load_networks
from daguerre.demo.rounds import BATCH, encode
from daguerre.demo.subjects import SUBJECTS, Subject, scenes_for
from daguerre.demo.training import Plan, generator_of, noisy_batch, signal_shares, velocity_loss

BASE = "demo-xl"


class LoraPlan(msgspec.Struct, frozen=True):
    """What a run will do; the sizes of pictures and the rate follow the embedded model's own plan."""

    seed: int = 1
    rank: int = 4
    lessons: int = 1500
    small_samples: int = 6000
    large_samples: int = 6000
    batch: int = 8
    rate: float = 2e-3
    bf16: bool = True

    @property
    def sizes(self) -> Plan:
        """The same as a plan of the embedded model's."""
        return Plan(
            small_samples=self.small_samples,
            large_samples=self.large_samples,
            rate=self.rate,
            warmup_samples=200,
            decay_samples=(self.small_samples + self.large_samples) * 2 // 3,
        )


class LoraTrainer:
    """One LoRA's training: the frozen networks, the layers that move, and how far they have come."""

    def __init__(self, networks: Networks, tokenizer: CLIPTokenizer, subject: Subject, plan: LoraPlan) -> None:
        self.networks, self.tokenizer, self.subject, self.plan = (
            networks.requires_grad_(False),
            tokenizer,
            subject,
            plan,
        )
        self.scenes = scenes_for(plan.seed, plan.lessons)
        self.latents: dict[int, torch.Tensor] = {}
        torch.manual_seed(plan.seed)
        self.layers = LowRankLayers(networks.unet, plan.rank)
        self.weights = FlatWeights(self.layers, decay=0.01)
        self.alphas = signal_shares()

    @property
    def seen(self) -> int:
        """Samples so far."""
        return self.weights.steps * self.plan.batch

    def step(self) -> float:
        """Take one step and return its loss."""
        key = (self.plan.seed, self.weights.steps)
        choice = random.Random(repr(key))
        places = [choice.randrange(len(self.scenes)) for _ in range(self.plan.batch)]
        texts = [self.subject.describe(self.scenes[place], choice) for place in places]
        clean = self.latents[self.plan.sizes.side(self.seen)][places].float()
        batch = noisy_batch(clean, texts, self.tokenizer, generator_of(key))
        with sdpa_kernel(SDPBackend.MATH):
            loss = velocity_loss(self.networks, self.alphas, batch, self.plan.bf16)
            return self.weights.descend(loss, self.plan.sizes.rate_at(self.seen), keep=0.99)

    def prepare_lessons(self, path: Path, vae: AutoencoderKL) -> None:
        """Draw and encode all lessons, unless the file is there."""
        if not path.exists():
            parts: dict[int, list[torch.Tensor]] = {}
            for start in range(0, len(self.scenes), BATCH):
                pictures = np.stack([self.subject.draw(scene) for scene in self.scenes[start : start + BATCH]])
                for side, latents in encode(pictures, vae).items():
                    parts.setdefault(side, []).append(latents)
                print(f"{start + len(pictures):>6} of {len(self.scenes)} lessons drawn", flush=True)
            partial = path.with_suffix(".partial")
            save_file({str(side): torch.cat(latents).contiguous() for side, latents in parts.items()}, partial)
            partial.replace(path)
        self.latents = {int(side): latents for side, latents in load_file(path).items()}


def write_averaged(trainer: LoraTrainer, path: Path, name: str) -> None:
    """Write the LoRA that the moving average makes."""
    with trainer.weights.averaged():
        trainer.layers.write(path, metadata_of(name, trainer.plan))


def metadata_of(name: str, plan: LoraPlan) -> dict[str, str]:
    """Say what a file is, in the words of modelspec and kohya."""
    subject = SUBJECTS[name]
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": name,
        "modelspec.description": subject.description,
        "modelspec.license": "Apache-2.0",
        "modelspec.trigger_phrase": subject.trigger,
        "base_model": BASE,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(plan.rank),
        "ss_network_alpha": str(plan.rank),
        "ss_seed": str(plan.seed),
    }


def train_lora(
    name: str, base: Path, out: Path, write: Path, plan: LoraPlan, threads: int = 1, stop: int | None = None
) -> None:
    """Train one of SUBJECTS for the model in `base`: checkpoints go to `out`, the file to `write`."""
    torch.set_num_threads(threads)
    tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer")
    vae = AutoencoderKL.from_pretrained(base / "vae", dtype=torch.float32).eval().requires_grad_(False)
    trainer = LoraTrainer(load_networks(str(base)), tokenizer, SUBJECTS[name], plan)
    count = sum(weight.numel() for weight in trainer.layers.parameters())
    print(f"{name}: rank {plan.rank} on {len(trainer.layers.parts)} layers, {count} weights", flush=True)
    trainer.prepare_lessons(out / "lessons.safetensors", vae)
    run(trainer, out, lambda: write_averaged(trainer, write, name), stop)
