"""Training repeats itself to the bit, resumes where it was cut off, and keeps to its plan."""

import itertools
import math
from pathlib import Path

import msgspec
import pytest
import torch
from transformers import CLIPTokenizer

from daguerre.demo.autoencoder import build_autoencoder
from daguerre.demo.networks import Networks, Shape, build_networks
from daguerre.demo.rounds import Round, scenes_of
from daguerre.demo.tokenizer import corpus, train_tokenizer
from daguerre.demo.training import Plan, Trainer, _spread_steps, run

TINY = Shape(first_width=32, second_width=32, text_layers=2, channels=(8, 16, 16), heads=(1, 1, 1))
PLAN = Plan(
    seed=5,
    small_samples=8,
    large_samples=4,
    small_batch=2,
    large_batch=2,
    warmup_samples=4,
    decay_samples=4,
    scenes_a_round=4,
    samples_a_round=6,
    average_samples=20,
    rounds_kept=2,
    bf16=False,
)


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    """A tokenizer learned from few captions."""
    return train_tokenizer(corpus(1, scenes=200), size=640)


def begin(tokenizer: CLIPTokenizer, seed: int = 0, plan: Plan = PLAN) -> Trainer:
    """A tiny trainer with one round of random latents."""
    torch.manual_seed(seed)
    trainer = Trainer(build_networks(tokenizer, TINY), tokenizer, plan)
    generator = torch.Generator().manual_seed(2)
    latents = {side: torch.randn(6, 4, side // 8, side // 8, generator=generator).half() for side in (128, 256)}
    trainer.rounds = [Round(scenes_of(5, 0, 6, 0.4), latents)]
    return trainer


def weights_after(trainer: Trainer, steps: int) -> torch.Tensor:
    """Weights and moving average after so many steps."""
    for _ in range(steps):
        trainer.step()
    return torch.cat([trainer.weights.vector.detach(), trainer.weights.average])


def test_a_step_repeated_from_the_same_seed_gives_the_same_weights(tokenizer: CLIPTokenizer) -> None:
    """Same seed, same weights to the bit; another seed, other weights."""
    one, other = (weights_after(begin(tokenizer), 1) for _ in range(2))
    assert torch.equal(one, other)
    assert not torch.equal(one, weights_after(begin(tokenizer, plan=msgspec.structs.replace(PLAN, seed=6)), 1))


def test_the_networks_own_weights_are_what_is_trained(tokenizer: CLIPTokenizer) -> None:
    """The networks look into the flat vector and do not copy it."""
    trainer = begin(tokenizer)
    before = [weight.detach().clone() for weight in trainer.networks.parameters()]
    weights_after(trainer, 2)
    moved = [not torch.equal(old, new) for old, new in zip(before, trainer.networks.parameters(), strict=True)]
    # The last layer of an encoder feeds nothing but the pooled text, so the first encoder's stays nearly as it was.
    assert sum(moved) > 0.9 * len(moved)


def test_resumed_training_ends_in_the_weights_of_one_that_was_not_cut_off(
    tokenizer: CLIPTokenizer, tmp_path: Path
) -> None:
    """A checkpoint holds all that the next step depends on."""
    whole = weights_after(begin(tokenizer), 5)
    first = begin(tokenizer)
    weights_after(first, 2)
    first.save(tmp_path / "checkpoint.safetensors")
    second = begin(tokenizer, seed=99)
    second.load(tmp_path / "checkpoint.safetensors")
    assert second.seen == 4
    assert torch.equal(weights_after(second, 3), whole)


def test_the_average_is_lent_and_taken_back(tokenizer: CLIPTokenizer) -> None:
    """Exporting the moving average leaves the training as it was."""
    trainer = begin(tokenizer)
    weights_after(trainer, 3)
    own = trainer.weights.vector.detach().clone()
    with trainer.weights.averaged():
        assert torch.equal(trainer.weights.vector, trainer.weights.average)
    assert torch.equal(trainer.weights.vector, own)
    assert not torch.equal(trainer.weights.average, own)


def test_a_run_draws_its_rounds_exports_and_ends(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    """A whole run leaves a checkpoint and its rounds, and no partial file."""
    torch.manual_seed(0)
    vae = build_autoencoder().eval()
    exported: list[int] = []

    def export(networks: Networks) -> None:
        exported.append(sum(weight.numel() for weight in networks.parameters()))

    trainer = Trainer(build_networks(tokenizer, TINY), tokenizer, PLAN)
    assert run(trainer, tmp_path, vae, export=export)
    assert trainer.seen == PLAN.total
    assert len(exported) == 1
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"checkpoint.safetensors", "round-00000-0-of-1.safetensors", "round-00001-0-of-1.safetensors"}


def test_the_rate_warms_up_stays_and_falls() -> None:
    """The rate climbs, holds and falls to its floor by the last sample."""
    plan = Plan(small_samples=1000, large_samples=1000, warmup_samples=100, decay_samples=500, rate=1e-3)
    rates = [plan.rate_at(seen) for seen in range(2001)]
    assert rates[0] < 3e-5
    assert max(rates) == pytest.approx(1e-3, rel=0.02)
    assert rates[100] == rates[1500]
    assert all(late <= early for early, late in itertools.pairwise(rates[1500:]))
    assert rates[2000] == pytest.approx(1e-5)


def test_small_pictures_come_first() -> None:
    """The size changes at the very sample that the plan says."""
    assert (PLAN.side(7), PLAN.side(8)) == (128, 256)


def test_a_hurried_plan_ends_in_so_many_samples() -> None:
    """Hurry means a falling rate at the full size, from now on."""
    unhurried = Plan(small_samples=1000, large_samples=1000, warmup_samples=500, decay_samples=500)
    plan = unhurried.hurried(600, 300)
    assert plan.total == 900
    assert plan.side(600) == 256
    assert plan.rate_at(600) == pytest.approx(unhurried.rate_at(600), rel=0.05)
    assert plan.rate_at(600) > plan.rate_at(750) > plan.rate_at(899)


def test_timesteps_cover_all_and_favour_the_noisy_ones() -> None:
    """Two thirds of the steps are in the upper 35%."""
    steps = _spread_steps(1000, torch.Generator().manual_seed(0))
    assert steps.min() < 10
    assert steps.max() > 990
    assert math.isclose((steps >= 650).float().mean(), 2 / 3, abs_tol=0.02)
