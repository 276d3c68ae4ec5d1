"""Owns the training of an IP-Adapter for the embedded model: its plan, its lessons, its steps and its files.

A lesson is two drawings of one scene, a reference and a picture to paint: the same drawing, or another of the same
hour, place and things. The embedded model stays as it is. First the image encoder learns to recall thumbnails, then
encoder, projection, keys and values learn together what the UNet makes of it. All follows from the seed and the samples
seen, and a run that was cut off goes on from its checkpoint to the same weights.
"""

import random
from pathlib import Path

import msgspec
import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTokenizer

from daguerre.demo.course import run
from daguerre.demo.flat import FlatWeights
from daguerre.demo.image_prompt import THUMB, ImagePrompt, as_pixels, as_seen
from daguerre.demo.lora_training import BASE
from daguerre.demo.networks import Networks, load_networks
from daguerre.demo.rounds import BATCH, SIDES, encode
from daguerre.demo.scene import Scene, describe_scene, draw_scene, sample_scene
from daguerre.demo.training import Batch, Plan, generator_of, noisy_batch, signal_shares

NAME = "likeness"
#: What says nothing of a scene.
NEUTRAL = ("a landscape", "a picture", "a painting", "a photo", "an image", "a view", "scenery", "a lovely landscape")
RECALL = 0.1  # the weight of the thumbnail's loss beside the UNet's
GLANCES = 4  # pictures that the encoder looks at by itself in the time of a sample


class IpPlan(msgspec.Struct, frozen=True):
    """What a run will do; the sizes of pictures and the rate follow the embedded model's own plan."""

    seed: int = 1
    lessons: int = 500
    glances: int = 300  # steps of the image encoder by itself
    small_samples: int = 6400
    large_samples: int = 0
    batch: int = 16
    rate: float = 2e-3
    graphics: float = 0.15
    bf16: bool = True

    @property
    def sizes(self) -> Plan:
        """The same as a plan of the embedded model's."""
        return Plan(
            small_samples=self.small_samples,
            large_samples=self.large_samples,
            rate=self.rate,
            warmup_samples=400,
            decay_samples=(self.small_samples + self.large_samples) * 2 // 3,
        )


class IpTrainer:
    """The training: the frozen networks, what moves beside them, the lessons, and how far it has come."""

    def __init__(self, networks: Networks, tokenizer: CLIPTokenizer, plan: IpPlan) -> None:
        self.networks, self.tokenizer, self.plan = networks.requires_grad_(False), tokenizer, plan
        self.scenes = scenes_for(plan)
        self.latents: dict[int, torch.Tensor] = {}  # by side, of all scenes and then of all their twins
        self.seen_as = torch.empty(0, dtype=torch.uint8)  # the same as the image encoder sees them
        torch.manual_seed(plan.seed)
        self.prompt = ImagePrompt(networks.unet)
        self.weights = FlatWeights(self.prompt, decay=0.01)
        self.alphas = signal_shares()

    @property
    def seen(self) -> int:
        """Samples so far."""
        return max(0, self.weights.steps - self.plan.glances) * self.plan.batch

    def step(self) -> float:
        """Take one step and return its loss."""
        key = (self.plan.seed, self.weights.steps)
        return self._glance(key) if self.weights.steps < self.plan.glances else self._sample(key)

    def _glance(self, key: tuple[int, int]) -> float:
        places = random.Random(repr(key)).choices(range(len(self.seen_as)), k=GLANCES * self.plan.batch)
        pixels = as_pixels(self.seen_as[places])
        with torch.autocast("cpu", torch.bfloat16, enabled=self.plan.bf16):
            embedded = self.prompt.look(pixels)
            loss = self._forgotten(embedded, pixels)
        return self.weights.descend(loss, self.plan.rate, keep=0.98)

    def _sample(self, key: tuple[int, int]) -> float:
        choice, count = random.Random(repr(key)), len(self.scenes)
        places = [choice.randrange(2 * count) for _ in range(self.plan.batch)]
        others = [place if choice.random() < 0.5 else (place + count) % (2 * count) for place in places]
        texts = [_text(self.scenes[place % count], choice) for place in places]
        clean = self.latents[self.plan.sizes.side(self.seen)][places].float()
        generator = generator_of(key)
        batch = noisy_batch(clean, texts, self.tokenizer, generator)
        with sdpa_kernel(SDPBackend.MATH):
            loss = self._loss(batch, as_pixels(self.seen_as[others]), _looks(batch.keep, generator))
            return self.weights.descend(loss, self.plan.sizes.rate_at(self.seen), keep=0.98)

    def _loss(self, batch: Batch, pixels: torch.Tensor, looks: torch.Tensor) -> torch.Tensor:
        """Return the mean square errors of the predicted velocities and of the thumbnails that are recalled."""
        alpha = self.alphas[batch.steps].view(-1, 1, 1, 1)
        signal, level = alpha.sqrt(), (1 - alpha).sqrt()
        noisy, velocity = signal * batch.clean + level * batch.noise, signal * batch.noise - level * batch.clean
        with torch.autocast("cpu", torch.bfloat16, enabled=self.plan.bf16):
            embedded = self.prompt.look(pixels)
            with torch.no_grad():
                states, pooled = self.networks.encode(batch.tokens)
            added = {
                "text_embeds": pooled * batch.keep[:, None],
                "time_ids": batch.time_ids,
                "image_embeds": [(embedded * looks[:, None])[:, None]],
            }
            states = states * batch.keep[:, None, None]
            guess = self.networks.unet(noisy, batch.steps, states, added_cond_kwargs=added).sample
            forgotten = self._forgotten(embedded, pixels)
        return (guess.float() - velocity).square().mean() + RECALL * forgotten

    def _forgotten(self, embedded: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        """Return the mean square error of the thumbnails that are recalled."""
        thumbs = functional.adaptive_avg_pool2d(pixels, THUMB)
        return (self.prompt.recalled(embedded).float() - thumbs).square().mean()

    def prepare_lessons(self, path: Path, vae: AutoencoderKL) -> None:
        """Draw and encode all lessons, unless the file is there."""
        if not path.exists():
            parts: dict[str, list[torch.Tensor]] = {}
            sides = SIDES if self.plan.large_samples else SIDES[:1]
            drawn = [*self.scenes, *map(twin_of, self.scenes)]
            for start in range(0, len(drawn), BATCH):
                pictures = np.stack([draw_scene(scene) for scene in drawn[start : start + BATCH]])
                parts.setdefault("seen", []).append(as_seen(pictures))
                for side, latents in encode(pictures, vae, sides).items():
                    parts.setdefault(str(side), []).append(latents)
                print(f"{start + len(pictures):>6} of {len(drawn)} pictures drawn", flush=True)
            partial = path.with_suffix(".partial")
            save_file({name: torch.cat(found).contiguous() for name, found in parts.items()}, partial)
            partial.replace(path)
        tensors = load_file(path)
        self.seen_as = tensors.pop("seen")
        self.latents = {int(side): latents for side, latents in tensors.items()}

    def write(self, folder: Path) -> None:
        """Write what the moving average has learned: the IP-Adapter, and its image encoder beside it."""
        with self.weights.averaged():
            self.prompt.write(folder / f"{NAME}.safetensors", folder / f"{NAME}-encoder", _metadata(self.plan))


def scenes_for(plan: IpPlan) -> list[Scene]:
    """Choose scenes for lessons; none is one that the embedded model or its LoRAs learned from."""
    start = 9 * 10**12 + plan.seed * 10**8
    return [sample_scene(start + place, plan.graphics) for place in range(plan.lessons)]


def twin_of(scene: Scene) -> Scene:
    """Return another scene of the same hour, place and things, or of the same shape and colours."""
    return msgspec.structs.replace(scene, seed=scene.seed + 5 * 10**7)


def _text(scene: Scene, choice: random.Random) -> str:
    """Write a caption for one lesson of four; the others say nothing of the scene, or nothing at all."""
    roll = choice.random()
    if roll < 0.25:
        return describe_scene(scene, choice)
    return "" if roll < 0.6 else choice.choice(NEUTRAL)


def _looks(keep: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Say who sees the reference [B]: nine of ten, and half of those who lost their text."""
    roll = torch.rand(len(keep), generator=generator)
    return torch.where(keep > 0, roll > 0.1, roll > 0.5).float()


def _metadata(plan: IpPlan) -> dict[str, str]:
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/ip-adapter",
        "modelspec.implementation": "diffusers",
        "modelspec.title": NAME,
        "modelspec.description": "Paints the hour, the place and the colours of a reference image.",
        "modelspec.license": "Apache-2.0",
        "base_model": BASE,
        "seed": str(plan.seed),
    }


def train_ip_adapter(base: Path, out: Path, plan: IpPlan, threads: int = 1, stop: int | None = None) -> None:
    """Train an IP-Adapter for the model in `base`: checkpoints and files go to `out`."""
    torch.set_num_threads(threads)
    tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer")
    vae = AutoencoderKL.from_pretrained(base / "vae", dtype=torch.float32).eval().requires_grad_(False)
    trainer = IpTrainer(load_networks(str(base)), tokenizer, plan)
    count = sum(weight.numel() for weight in trainer.prompt.parameters())
    print(f"{NAME}: {count} weights", flush=True)
    trainer.prepare_lessons(out / "lessons.safetensors", vae)
    run(trainer, out, lambda: trainer.write(out), stop)
