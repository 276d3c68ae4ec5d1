"""Parity, the oracle of the engine: what is painted together equals what the plain diffusers call paints alone."""

import numpy as np
import pytest
import tiny
from harness import THIRD_PARTY, Picture, assert_parity, difference, job, paint_all, plain

from daguerre.catalog import Catalog
from daguerre.engine.denoisers import DENOISERS
from daguerre.engine.scheduler import BUCKETS

pytestmark = THIRD_PARTY

BETA = ("sd15", "sd21", "sdxl")
FLOW = ("flux", "sd3", "auraflow")
SAMPLERS = ("ddim", "ddpm", "dpmpp_2m", "dpmpp_2m_karras", "dpmpp_2m_sde", "dpmpp_2s", "euler", "euler_a")
SAMPLERS += ("euler_karras", "heun", "kdpm2", "kdpm2_a", "lcm", "pndm", "unipc")
SKIPS_NO_LAYERS = pytest.param(
    "sd15",
    marks=pytest.mark.xfail(
        reason="diffusers 0.42 looks for text_encoder.text_model, which transformers 5 has no more"
    ),
)
NO_HEUN = pytest.param(
    "flux", marks=pytest.mark.xfail(reason="FluxPipeline gives its scheduler sigmas, which flow Heun does not take")
)
ALONE = ("auraflow",)  # not in the table of denoisers


@pytest.mark.parametrize("name", tiny.BUILDERS)
def test_a_mixed_set_equals_the_plain_calls(models: Catalog, name: str) -> None:
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
    outcomes, _ = paint_all(jobs)
    assert_parity(jobs, outcomes)


@pytest.mark.parametrize("name", BETA)
def test_every_sampler_keeps_its_own_state_in_company(models: Catalog, name: str) -> None:
    """All samplers at one moment: multistep, second-order, ancestral and stochastic ones, each as if it were alone."""
    model = models.model(name)
    jobs = [
        job(model, f"a tower, number {i}", scheduler=sampler, steps=3 + i % 3, seed=i)
        for i, sampler in enumerate(SAMPLERS)
    ]
    outcomes, _ = paint_all(jobs, max_runs=len(jobs))
    assert_parity(jobs, outcomes)


@pytest.mark.xfail(reason="diffusers' LMS needs scipy, which Daguerre does not ask for")
def test_lms(models: Catalog) -> None:
    """The one sampler that integrates by somebody else's library."""
    jobs = [job(models.model("sd15"), "a tower", scheduler="lms", seed=seed) for seed in (0, 1)]
    outcomes, _ = paint_all(jobs)
    assert_parity(jobs, outcomes)


def test_every_name_in_the_table_is_tried(models: Catalog) -> None:
    """A sampler that is added to the table is added here."""
    assert set(models.model("sd15").schedulers) == {*SAMPLERS, "lms"}


@pytest.mark.parametrize("name", [NO_HEUN, "sd3", "auraflow"])
def test_the_samplers_of_flow_models(models: Catalog, name: str) -> None:
    """Euler and Heun together."""
    model = models.model(name)
    jobs = [job(model, f"a {s} gate", scheduler=s, steps=n, seed=n) for s in ("euler", "heun") for n in (2, 4)]
    outcomes, _ = paint_all(jobs)
    assert_parity(jobs, outcomes)


@pytest.mark.parametrize("name", ["sd15", "sd21", "sdxl"])
def test_compels_embeddings(models: Catalog, name: str) -> None:
    """Weights, a blend, and a prompt longer than 77 tokens, against the plain call on Compel's own embeddings."""
    model = models.model(name)
    prompts = [
        "a (red)1.4 fox",
        "a (red)0.5 fox",
        '("a cat", "a dog").blend(0.7, 0.3)',
        "a cat sits on a wall and looks at the sea, where ships go by in the evening light, slowly, one by one",
    ]
    jobs = [job(model, prompt, prompt_syntax="compel", steps=3 + i) for i, prompt in enumerate(prompts)]
    jobs += [
        job(model, "a fox+++", prompt_syntax="compel", negative_prompt="(ugly)1.2", seed=1),
        job(model, "a fox", prompt_syntax="compel", guidance_scale=1.0, seed=2),
        job(model, "a fox", seed=3),  # plain, in the same batch
    ]
    outcomes, _ = paint_all(jobs)
    assert_parity(jobs, outcomes)


@pytest.mark.parametrize("name", [SKIPS_NO_LAYERS, "sdxl"])
def test_clip_skip(models: Catalog, name: str) -> None:
    """The layer that a recipe names is that recipe's alone."""
    jobs = [job(models.model(name), "a red fox", clip_skip=skip) for skip in (0, 1, 2)]
    outcomes, _ = paint_all(jobs)
    assert_parity(jobs, outcomes)


@pytest.mark.parametrize("name", tiny.BUILDERS)
def test_pictures_of_one_job_equal_single_requests(models: Catalog, name: str) -> None:
    """Picture i of a count has seed + i."""
    model = models.model(name)
    together, single = job(model, "a lighthouse", count=3, seed=5), job(model, "a lighthouse", seed=6)
    outcomes, _ = paint_all([together, single])
    assert_parity([together], outcomes)
    assert difference(outcomes[single.id].picture, outcomes[together.id].pictures[1]) <= 1


@pytest.mark.parametrize("name", tiny.BUILDERS)
def test_sizes_go_together(models: Catalog, name: str) -> None:
    """Runs of other sizes go on side by side; those of one size still meet."""
    model = models.model(name)
    sizes = [(32, 32), (48, 32), (32, 48), (48, 32), (64, 64)]
    jobs = [job(model, "a bridge", width=w, height=h, seed=i) for i, (w, h) in enumerate(sizes)]
    outcomes, _ = paint_all(jobs)
    assert_parity(jobs, outcomes)


def test_models_go_together(models: Catalog) -> None:
    """Runs of every model alive at one moment."""
    jobs = [job(models.model(name), "a bridge", seed=seed) for name in tiny.BUILDERS for seed in (0, 1)]
    outcomes, _ = paint_all(jobs, max_runs=len(jobs))
    assert_parity(jobs, outcomes)


@pytest.mark.parametrize("name", ["sd15", "sdxl", "flux", "sd3"])
def test_starting_from_images(models: Catalog, name: str, photograph: Picture) -> None:
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
    outcomes, _ = paint_all(jobs)
    assert_parity(jobs, outcomes)


@pytest.mark.parametrize("name", tiny.BUILDERS)
def test_runs_share_forwards(models: Catalog, name: str) -> None:
    """Four runs of four steps need far fewer than sixteen forwards, padded to buckets; where no entry is, sixteen."""
    model = models.model(name)
    jobs = [job(model, "a mill", steps=4, seed=seed) for seed in range(4)]
    outcomes, rows = paint_all(jobs)
    assert_parity(jobs, outcomes)
    if name in ALONE:
        assert len(rows) == 16
    else:
        assert len(rows) <= 8
        assert set(rows) <= set(BUCKETS)


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd3"])
def test_runs_with_and_without_guidance_share_forwards(models: Catalog, name: str) -> None:
    """A call of two rows and one of a single row lie in one forward, at different steps of different samplers."""
    model = models.model(name)
    jobs = [
        job(model, "a mill", steps=4),
        job(model, "a mill", steps=4, guidance_scale=1.0, scheduler="heun" if name == "sd3" else "ddim"),
    ]
    outcomes, rows = paint_all(jobs)
    assert_parity(jobs, outcomes)
    assert max(rows) > 2


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
    assert all(picture.std() > 5 for picture in pictures)
    assert all(difference(pictures[0], other) > 2 for other in pictures[1:])
