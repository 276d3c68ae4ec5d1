"""Owns the training of text encoders and UNet: its plan, its steps and its checkpoints.

Everything depends on the seed and on the samples seen, nothing on the clock, so a run that was cut off and resumed
ends in the same weights as one that was not. Each process draws its batch from (seed, step, rank) and gradients are
averaged. v-prediction after Salimans and Ho (2022), noise schedule and conditioning after SDXL (Podell et al.,
2023).
"""

import math
import random
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import torch
import torch.distributed as dist
from diffusers import AutoencoderKL
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTokenizer

from daguerre.demo.flat import FlatWeights
from daguerre.demo.networks import Networks
from daguerre.demo.rounds import Round, draw_share, load_round, scenes_of
from daguerre.demo.scene import describe_scene

STEPS = 1000
OFFSET_NOISE = 0.1
LOWEST_RATE = 1e-5


class Plan(msgspec.Struct, frozen=True):
    """What a run will do: first pictures of 128², then of 256²; a warm-up, a flat rate, then a cosine fall."""

    seed: int = 1
    small_samples: int = 500_000
    large_samples: int = 500_000
    small_batch: int = 32  # per process
    large_batch: int = 16
    rate: float = 8e-4
    warmup_samples: int = 10_000
    decay_samples: int = 250_000
    average_samples: int = 20_000  # what the moving average looks back on
    scenes_a_round: int = 3000
    samples_a_round: int = 30_000
    rounds_kept: int = 4
    graphics: float = 0.45
    bf16: bool = True

    @property
    def total(self) -> int:
        """All samples of the run."""
        return self.small_samples + self.large_samples

    def side(self, seen: int) -> int:
        """Say how large the pictures are once so many samples were seen."""
        return 128 if seen < self.small_samples else 256

    def batch(self, seen: int) -> int:
        """Say how many samples a process takes in a step."""
        return self.small_batch if seen < self.small_samples else self.large_batch

    def rate_at(self, seen: int) -> float:
        """Return the learning rate after so many samples."""
        left = min(1.0, (self.total - seen) / max(1, self.decay_samples))
        fall = 0.5 - 0.5 * math.cos(math.pi * max(0.0, left))
        return self.rate * min(1.0, (seen + 1) / max(1, self.warmup_samples)) * fall + LOWEST_RATE

    def hurried(self, seen: int, samples: int) -> "Plan":
        """Return the plan that ends after so many more samples, its rate falling from now on."""
        small = min(self.small_samples, seen)
        return msgspec.structs.replace(
            self,
            small_samples=small,
            large_samples=seen + samples - small,
            decay_samples=samples,
            rate=self.rate_at(seen),
            warmup_samples=0,
        )


class Batch(msgspec.Struct, frozen=True):
    """One process's samples: clean latents [B,4,h,w], noise of the same shape, steps, tokens [B,77] and the rest."""

    clean: torch.Tensor
    noise: torch.Tensor
    steps: torch.Tensor
    tokens: torch.Tensor
    keep: torch.Tensor
    time_ids: torch.Tensor


class Trainer:
    """One process's part of a training: its networks, the rounds it draws batches from, and how far it has come."""

    def __init__(self, networks: Networks, tokenizer: CLIPTokenizer, plan: Plan, rank: int = 0, world: int = 1) -> None:
        self.networks, self.tokenizer, self.plan, self.rank, self.world = networks.train(), tokenizer, plan, rank, world
        self.weights = FlatWeights(networks, decay=0.01, world=world)
        self.alphas = signal_shares()
        self.seen = 0
        self.rounds: list[Round] = []
        self.newest_round = -1

    def step(self) -> float:
        """Take one step on a batch of every process and return the mean loss."""
        with sdpa_kernel(SDPBackend.MATH):  # for so few tokens the fused kernels are slower on a CPU
            step = self.plan.batch(self.seen) * self.world
            keep = 1 - step / self.plan.average_samples
            loss = self.weights.descend(self._loss(self._batch()), self.plan.rate_at(self.seen), keep)
        self.seen += step
        return loss

    def _loss(self, batch: Batch) -> torch.Tensor:
        return velocity_loss(self.networks, self.alphas, batch, self.plan.bf16)

    def _batch(self) -> Batch:
        side, size = self.plan.side(self.seen), self.plan.batch(self.seen)
        key = (self.plan.seed, self.weights.steps, self.rank)
        choice = random.Random(repr(key))
        picks = [choice.choice(self.rounds) for _ in range(size)]
        places = [choice.randrange(len(pick.scenes)) for pick in picks]
        texts = [describe_scene(pick.scenes[place], choice) for pick, place in zip(picks, places, strict=True)]
        texts = [text if choice.random() > 0.02 else "" for text in texts]
        clean = torch.stack([pick.latents[side][place] for pick, place in zip(picks, places, strict=True)]).float()
        return noisy_batch(clean, texts, self.tokenizer, generator_of(key))

    def prepare_rounds(self, folder: Path, vae: AutoencoderKL) -> None:
        """Have the rounds at hand that the samples seen so far ask for, drawing what is missing."""
        plan = self.plan
        newest = self.seen // plan.samples_a_round
        if newest == self.newest_round:
            return
        rounds = []
        for index in range(max(0, newest - plan.rounds_kept + 1), newest + 1):
            scenes = scenes_of(plan.seed, index, plan.scenes_a_round, plan.graphics)
            paths = [folder / f"round-{index:05}-{rank}-of-{self.world}.safetensors" for rank in range(self.world)]
            draw_share(paths[self.rank], scenes[self.rank :: self.world], vae)
            self.barrier()
            rounds.append(load_round(paths, scenes))
        self.rounds, self.newest_round = rounds, newest

    def barrier(self) -> None:
        """Wait for the other processes."""
        if self.world > 1:
            dist.barrier()

    def agree(self, stop: bool) -> bool:
        """Let the first process decide for all."""
        if self.world == 1:
            return stop
        flag = torch.tensor([float(stop)])
        dist.broadcast(flag, 0)
        return bool(flag.item())

    def save(self, path: Path) -> None:
        """Write a checkpoint."""
        self.weights.save(path, {"plan": msgspec.json.encode(self.plan).decode(), "seen": str(self.seen)})

    def load(self, path: Path) -> None:
        """Go on from a checkpoint: its plan and progress replace this trainer's."""
        notes = self.weights.load(path)
        self.plan, self.seen = msgspec.json.decode(notes["plan"], type=Plan), int(notes["seen"])


def signal_shares() -> torch.Tensor:
    """Return the share of the signal's variance at each timestep, [1000], of SDXL's schedule."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, STEPS) ** 2
    return torch.cumprod(1 - betas, 0)


def velocity_loss(networks: Networks, alphas: torch.Tensor, batch: Batch, bf16: bool) -> torch.Tensor:
    """Return the mean square error of the predicted velocities."""
    alpha = alphas[batch.steps].view(-1, 1, 1, 1)
    signal, level = alpha.sqrt(), (1 - alpha).sqrt()
    noisy = signal * batch.clean + level * batch.noise
    velocity = signal * batch.noise - level * batch.clean
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        guess = networks(noisy, batch.steps, batch.tokens, batch.keep, batch.time_ids)
    return (guess.float() - velocity).square().mean()


def generator_of(key: tuple[int, ...]) -> torch.Generator:
    """Return a generator that follows from a key."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))


def noisy_batch(clean: torch.Tensor, texts: list[str], tokenizer: CLIPTokenizer, generator: torch.Generator) -> Batch:
    """Give latents [B,4,h,w] their noise, timesteps and tokens; a tenth lose their text."""
    size, side = len(clean), 8 * clean.shape[-1]
    noise = torch.randn(clean.shape, generator=generator)
    noise += OFFSET_NOISE * torch.randn((size, 4, 1, 1), generator=generator)
    keep = (torch.rand(size, generator=generator) > 0.1).float()
    tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
    return Batch(clean, noise, _spread_steps(size, generator), tokens.input_ids, keep, _time_ids(size, side, generator))


def _spread_steps(size: int, generator: torch.Generator) -> torch.Tensor:
    """Draw timesteps [B], one from each of B equal strata; two thirds fall in the upper 35%, where shape is decided."""
    strata = (torch.arange(size) + torch.rand(size, generator=generator)) / size
    places = torch.where(strata < 1 / 3, strata * 1.95, 0.65 + (strata - 1 / 3) * 0.525)
    return (places * STEPS).long().clamp(0, STEPS - 1)[torch.randperm(size, generator=generator)]


def _time_ids(size: int, side: int, generator: torch.Generator) -> torch.Tensor:
    """Return SDXL's time ids [B,6]; a quarter are random, so that no client's sizes can upset the picture."""
    ids = torch.tensor([side, side, 0, 0, side, side], dtype=torch.float32).repeat(size, 1)
    strange = torch.randint(96, 640, (size, 6), generator=generator).float()
    strange[:, 2:4] = 0
    return torch.where(torch.rand((size, 1), generator=generator) < 0.25, strange, ids)


def run(
    trainer: Trainer,
    folder: Path,
    vae: AutoencoderKL,
    *,
    export: Callable[[Networks], None],
    minutes: float = math.inf,
    save_every: float = 300,
) -> bool:
    """Train to the plan's end, or until the minutes are over; say whether the plan is done.

    The clock decides only when to save and to stop, never what a step does.
    """
    began = last_save = last_print = time.monotonic()
    losses: list[float] = []
    while trainer.seen < trainer.plan.total:
        trainer.prepare_rounds(folder, vae)
        losses.append(trainer.step())
        now = time.monotonic()
        if trainer.weights.steps % 25 == 0:
            if trainer.rank == 0:
                _report(trainer, losses, now - last_print)
            losses, last_print = [], now
            if trainer.agree(now - began > minutes * 60):
                break
            if trainer.rank == 0 and now - last_save > save_every:
                keep(trainer, folder, export)
                last_save = now
    if trainer.rank == 0:
        keep(trainer, folder, export)
    trainer.barrier()
    return trainer.seen >= trainer.plan.total


def keep(trainer: Trainer, folder: Path, export: Callable[[Networks], None]) -> None:
    """Save a checkpoint and export what the moving average paints."""
    trainer.save(folder / "checkpoint.safetensors")
    with trainer.weights.averaged():
        export(trainer.networks)


def _report(trainer: Trainer, losses: list[float], seconds: float) -> None:
    plan, seen = trainer.plan, trainer.seen
    pace = seconds / (len(losses) * plan.batch(seen - 1) * trainer.world) * 1000
    share, mean = seen / plan.total, sum(losses) / len(losses)
    print(
        f"{seen:>8} of {plan.total} ({share:4.0%})  {plan.side(seen - 1)}²  rate {plan.rate_at(seen):.1e}  "
        f"loss {mean:.4f}  {pace:.1f} ms a sample",
        flush=True,
    )
