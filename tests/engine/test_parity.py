"""Parity, the oracle of the engine: what is painted together equals what the plain diffusers call paints alone."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from harness import (
    THIRD_PARTY,
    Darkroom,
    Mask,
    Paint,
    Picture,
    assert_parity,
    assert_same,
    count_forwards,
    difference,
    job,
    paint_all,
    paint_in_step,
    plain,
    plain_rows,
)

from daguerre.catalog import Catalog, Model
from daguerre.engine import Submission
from daguerre.engine.denoisers import DENOISERS
from daguerre.engine.scheduler import BUCKETS

pytestmark = THIRD_PARTY

BETA = ("sd15", "sd21", "sdxl")
SAMPLERS = ("ddim", "ddpm", "dpmpp_2m", "dpmpp_2m_karras", "dpmpp_2m_sde", "dpmpp_2s", "euler", "euler_a")
SAMPLERS += ("euler_karras", "heun", "kdpm2", "kdpm2_a", "lcm", "pndm", "unipc")
SAMPLERS += ("dpmpp_2m_exponential", "dpmpp_2m_sde_exponential", "dpmpp_2m_sde_karras", "dpmpp_2s_karras")
SAMPLERS += ("euler_exponential", "heun_karras", "kdpm2_karras", "kdpm2_a_karras", "unipc_karras")
ALONE = ("auraflow",)  # not in the table of denoisers


@pytest.mark.parametrize("name", tiny.BUILDERS)
def test_a_mixed_set_equals_the_plain_calls(models: Catalog, paint: Paint, name: str) -> None:
    """Different steps, guidance, prompts, seeds and negative prompts, all at one moment."""
    model = models.model(name)
    jobs = [
        job(model, "a red fox", steps=3),
        job(model, "a red fox", steps=5, seed=7),
        job(model, "a blue whale", steps=4, guidance_scale=7.0, seed=1),
        job(model, "the old harbour", steps=2, guidance_scale=1.0, seed=2),
        job(model, "snow", steps=6, negative_prompt="ugly, blurred", seed=3),
        job(model, "an owl", steps=1, guidance_scale=2.5, seed=4),
        job(model, "an owl", steps=4, guidance_scale=0.0, seed=5),
    ]
    outcomes, _ = paint(jobs)
    assert_parity(jobs, outcomes)


@pytest.mark.parametrize("name", tiny.BUILDERS)
def test_what_is_left_is_rounding(models: Catalog, name: str) -> None:
    """With twice the digits they agree far beyond what single precision could tell: no order of operations differs."""
    guidances = (4.0, 7.0, 1.0)
    jobs = [job(models.model(name), "a red fox", seed=i, guidance_scale=scale) for i, scale in enumerate(guidances)]
    outcomes, _ = paint_in_step(jobs, dtype=torch.float64)
    for one in jobs:
        assert difference(outcomes[one.id].exact, plain(one, dtype=torch.float64)) < 1e-9


def motley(model: Model, photograph: Picture) -> list[Submission]:
    """Every sampler of the model, each with a prompt, steps, guidance, seed and mode of its own: 24 pictures, or 9."""
    mask = np.zeros(photograph.shape[:2], np.uint8)
    mask[8:24, 8:24] = 255
    modes: list[tuple[Picture | Mask, ...]] = [(), (photograph,), (photograph, mask)]
    if model.name in ALONE:  # of which diffusers paints from text only
        modes = [()]
    jobs = []
    for i, sampler in enumerate(SAMPLERS if model.name in BETA else model.schedulers * 3):
        images = modes[(i + i // 3) % len(modes)]  # so that a flow's three samplers meet each mode
        options: dict[str, Any] = {"strength": 0.6 + i % 4 / 10} if images else {}
        options |= {"steps": 4 + i % 3, "guidance_scale": (4.0, 1.0, 7.5, 2.0)[i % 4]}
        options |= {"negative_prompt": "fog"} if i % 5 == 2 else {}
        jobs.append(job(model, f"a tower, number {i}", *images, scheduler=sampler, seed=i, **options))
    return jobs


@pytest.mark.parametrize("name", tiny.BUILDERS)
def test_everything_at_once(models: Catalog, photograph: Picture, name: str) -> None:
    """All samplers, steps, guidances, prompts, seeds and modes in forwards of eight: no more than the longest needs."""
    jobs = motley(models.model(name), photograph)
    for some in (jobs[i : i + 8] for i in range(0, len(jobs), 8)):
        outcomes, rows = paint_in_step(some)
        assert_parity(some, outcomes)
        forwards = [len(plain_rows(submission)) for submission in some]
        assert len(rows) == (sum(forwards) if name in ALONE else max(forwards))


@pytest.mark.parametrize("name", tiny.BUILDERS)
def test_the_engine_computes_every_row_once(models: Catalog, photograph: Picture, name: str) -> None:
    """The same, all in one engine: however its policy parts the rows, they are those that the plain calls compute."""
    jobs = motley(models.model(name), photograph)
    darkroom = Darkroom(max_runs=len(jobs))
    darkroom.submit(*jobs)
    with count_forwards() as rows, darkroom:
        outcomes = darkroom.outcomes()
    assert_parity(jobs, outcomes)
    needed = [count for submission in jobs for count in plain_rows(submission)]
    if name in ALONE:
        assert Counter(rows) == Counter(needed)
        return
    counted = darkroom.engine.counters.forwards  # by rows, without padding
    assert sum(counted.values()) == len(rows) < len(needed)
    assert sum(count * number for count, number in counted.items()) == sum(needed)


def test_every_name_in_the_table_is_tried(models: Catalog) -> None:
    """A sampler that is added to a table is added here."""
    assert set(models.model("sd15").schedulers) == set(SAMPLERS)
    assert {len(models.model(name).schedulers) for name in tiny.BUILDERS if name not in BETA} == {3}


@pytest.mark.parametrize("name", [*BETA, "flux", "sd3"])
def test_compels_embeddings(models: Catalog, paint: Paint, name: str) -> None:
    """Weights, a blend, and a prompt longer than 77 tokens, against the plain call on Compel's own embeddings."""
    model = models.model(name)
    prompts = [
        "a (red)1.4 fox",
        "a (red)0.5 fox",
        *(['("a cat", "a dog").blend(0.7, 0.3)'] if name in BETA else []),  # CompelForFlux pools blends wrongly
        "a cat sits on a wall and looks at the sea, where ships go by in the evening light, slowly, one by one",
    ]
    jobs = [job(model, prompt, prompt_syntax="compel", steps=3 + i) for i, prompt in enumerate(prompts)]
    jobs += [
        job(model, "a fox+++", prompt_syntax="compel", negative_prompt="(ugly)1.2", seed=1),
        job(model, "a fox", prompt_syntax="compel", guidance_scale=1.0, seed=2),
        job(model, "a fox", seed=3),  # plain, in the same batch
    ]
    outcomes, _ = paint(jobs)
    assert_parity(jobs, outcomes)


@pytest.mark.parametrize("name", ["sd15", "sd21", "sdxl", "sd3"])
def test_clip_skip(models: Catalog, name: str) -> None:
    """The layer that a recipe names is that recipe's alone."""
    jobs = [job(models.model(name), "a red fox", clip_skip=skip) for skip in (0, 1, 2)]
    outcomes, _ = paint_all(jobs)
    assert_parity(jobs, outcomes)


@pytest.mark.parametrize("name", tiny.BUILDERS)
def test_pictures_of_one_job_equal_single_requests(models: Catalog, paint: Paint, name: str) -> None:
    """Picture i of a count has seed + i."""
    model = models.model(name)
    together, single = job(model, "a lighthouse", count=3, seed=5), job(model, "a lighthouse", seed=6)
    outcomes, _ = paint([together, single])
    assert_parity([together], outcomes)
    assert_same(outcomes[single.id].exact, outcomes[together.id].floats[1])


@pytest.mark.parametrize("name", tiny.BUILDERS)
def test_sizes_go_together(models: Catalog, paint: Paint, name: str) -> None:
    """Runs of other sizes go on side by side; those of one size still meet."""
    model = models.model(name)
    sizes = [(32, 32), (48, 32), (32, 48), (48, 32), (64, 64)]
    jobs = [job(model, "a bridge", width=w, height=h, seed=i) for i, (w, h) in enumerate(sizes)]
    outcomes, _ = paint(jobs)
    assert_parity(jobs, outcomes)


def test_models_go_together(models: Catalog, paint: Paint) -> None:
    """Runs of every model alive at one moment."""
    jobs = [job(models.model(name), "a bridge", seed=seed) for name in tiny.BUILDERS for seed in (0, 1)]
    outcomes, _ = paint(jobs, max_runs=len(jobs))
    assert_parity(jobs, outcomes)


@pytest.mark.parametrize("name", ["sd15", "sdxl", "flux", "sd3"])
def test_starting_from_images(models: Catalog, paint: Paint, name: str, photograph: Picture) -> None:
    """Text-to-image, image-to-image and inpainting at one moment."""
    model = models.model(name)
    mask = np.zeros(photograph.shape[:2], np.uint8)
    mask[8:24, 8:24] = 255
    jobs = [
        job(model, "a boat", steps=4),
        job(model, "a boat", photograph, strength=0.5, steps=6, seed=1),
        job(model, "a ship", photograph, strength=1.0, steps=4, seed=2),
        job(model, "a ship", photograph, mask, strength=1.0, steps=4, seed=3),
        job(model, "a raft", photograph, mask, strength=0.75, steps=4, seed=4),
    ]
    outcomes, _ = paint(jobs)
    assert_parity(jobs, outcomes)


@pytest.mark.parametrize("name", tiny.BUILDERS)
def test_runs_share_forwards(models: Catalog, name: str) -> None:
    """Four runs of four steps can do with four forwards, padded to a bucket; without an entry they need sixteen."""
    model = models.model(name)
    jobs = [job(model, "a mill", steps=4, seed=seed) for seed in range(3)] + [job(model, "a dam", steps=4)]
    outcomes, rows = paint_in_step(jobs)
    assert_parity(jobs, outcomes)
    if name in ALONE:
        assert len(rows) == 16
    else:
        assert len(rows) == (5 if name == "sd15" else 4)  # PNDM asks once more
        assert set(rows) <= set(BUCKETS)


@pytest.mark.parametrize("name", [name for name in tiny.BUILDERS if name not in ALONE])
def test_the_engine_shares_forwards(models: Catalog, name: str) -> None:
    """How many at once is its policy's affair, which measures what pays; but it tries."""
    model = models.model(name)
    jobs = [job(model, "a mill", steps=6, seed=seed) for seed in range(4)]
    outcomes, rows = paint_all(jobs)
    assert_parity(jobs, outcomes)
    assert max(rows) > min(rows)
    assert set(rows) <= set(BUCKETS)


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd3"])
def test_runs_with_and_without_guidance_share_forwards(models: Catalog, name: str) -> None:
    """A call of two rows and one of a single row lie in one forward, at different steps of different samplers."""
    model = models.model(name)
    jobs = [
        job(model, "a mill", steps=4),
        job(model, "a mill", steps=4, guidance_scale=1.0, scheduler="euler" if name == "sd3" else "ddim"),
    ]
    outcomes, rows = paint_in_step(jobs)
    assert_parity(jobs, outcomes)
    assert rows.count(4) == 4


def test_a_reproducible_run_shares_no_forward(models: Catalog) -> None:
    """Its rows always lie in a batch of the same size."""
    jobs = [job(models.model("sd15"), "a mill", reproducible=True, seed=seed) for seed in range(3)]
    outcomes, rows = paint_all(jobs)
    assert_parity(jobs, outcomes)
    assert set(rows) == {2}


def test_the_tests_know_which_models_batch() -> None:
    """The model that is to stand for all those without an entry has none."""
    assert "AuraFlowTransformer2DModel" not in DENOISERS


@pytest.mark.parametrize("name", tiny.BUILDERS)
def test_the_tiny_models_are_worth_comparing(models: Catalog, name: str) -> None:
    """They paint no flat surface, and listen to prompt, seed, steps and guidance."""
    model = models.model(name)
    pictures = [
        plain(job(model, "a red fox")),
        plain(job(model, "a blue whale")),
        plain(job(model, "a red fox", seed=1)),
        plain(job(model, "a red fox", steps=4)),
        plain(job(model, "a red fox", guidance_scale=8.0)),
    ]
    assert all(picture.std() > 5 / 255 for picture in pictures)
    assert all(difference(pictures[0], other) > 2 for other in pictures[1:])


@pytest.mark.parametrize("name", ["sd15", "sdxl", "flux", "sd3"])
def test_the_least_strength_is_one_step(models: Catalog, name: str, photograph: Picture) -> None:
    """What would leave no step leaves one: 1 / steps, which no rounding makes none or two."""
    model = models.model(name)
    for steps in (1, 3, 4):
        least, one = (
            job(model, "a boat", photograph, strength=strength, steps=steps, reproducible=True)
            for strength in (0.0, 1 / steps)
        )
        outcomes, _ = paint_all([least, one])
        assert outcomes[least.id].error is None
        assert outcomes[least.id].picture.tobytes() == outcomes[one.id].picture.tobytes()
