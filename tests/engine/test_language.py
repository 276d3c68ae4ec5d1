"""Families whose prompts a language model reads: FLUX.2, Qwen-Image and Z-Image, held against the plain calls."""

from collections import Counter

import pytest
import tiny
import tiny_language
import torch
from harness import (
    THIRD_PARTY,
    Darkroom,
    Paint,
    assert_parity,
    assert_same,
    difference,
    job,
    paint_all,
    paint_in_step,
    plain,
)

from daguerre import catalog
from daguerre.catalog import Catalog
from daguerre.engine.denoisers import DENOISERS, Arguments, batch_key
from daguerre.engine.scheduler import BUCKETS
from daguerre.errors import InvalidRecipe

pytestmark = THIRD_PARTY


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """A catalogue of these families alone."""
    weights = tmp_path_factory.mktemp("language")
    tiny.write_all(weights, tiny_language.BUILDERS)
    return catalog.read(weights, "qwen")


@pytest.mark.parametrize("name", tiny_language.BUILDERS)
def test_a_mixed_set_equals_the_plain_calls(models: Catalog, paint: Paint, name: str) -> None:
    """Different steps, guidance, prompts of equal and other lengths, seeds, negative prompts, all at one moment."""
    model = models.model(name)
    jobs = [
        job(model, "a red fox", steps=3),
        job(model, "a sad owl", steps=4, seed=7),
        job(model, "a blue whale in the deep and silent sea", steps=4, guidance_scale=7.0, seed=1),
        job(model, "a red fox", steps=2, negative_prompt="ugly, blurred", seed=3),
        job(model, "an owl", steps=3, guidance_scale=0.0, seed=5),
    ]
    outcomes, _ = paint(jobs)
    assert_parity(jobs, outcomes)


#: Forwards of a run with guidance: of each step one with all its rows, or one for each side of the guidance.
PER_STEP = {"flux2": 2, "qwen": 2, "z-image": 1}


@pytest.mark.parametrize("name", tiny_language.BUILDERS)
def test_runs_share_forwards(models: Catalog, name: str) -> None:
    """Prompts of one length: four runs need the forwards of one, padded to a bucket."""
    model = models.model(name)
    jobs = [job(model, f"a mill {i}", steps=4, seed=i, negative_prompt="snow") for i in range(3)]
    outcomes, rows = paint_in_step(jobs)
    assert_parity(jobs, outcomes)
    assert len(rows) == 4 * PER_STEP[name]
    assert set(rows) <= set(BUCKETS)


@pytest.mark.parametrize("name", ["flux2", "z-image"])
def test_lengths_that_are_padded_alike_share_forwards(models: Catalog, name: str) -> None:
    """FLUX.2's prompts are all as long after padding, Z-Image's within a block of 32 tokens."""
    model = models.model(name)
    jobs = [job(model, prompt, steps=3, guidance_scale=0.0) for prompt in ("a mill", "a mill by a river")]
    outcomes, rows = paint_in_step(jobs)
    assert_parity(jobs, outcomes)
    assert len(rows) == 3


@pytest.mark.parametrize("name", ["qwen", "z-image"])
def test_other_lengths_share_none(models: Catalog, name: str) -> None:
    """They would need a mask, and then the forward is not the one that each had alone."""
    model = models.model(name)
    prompts = ("a mill", "a mill by a river, with a wheel that turns and turns in the light of the evening sun")
    jobs = [job(model, prompt, steps=3, guidance_scale=0.0) for prompt in prompts]
    outcomes, rows = paint_in_step(jobs)
    assert_parity(jobs, outcomes)
    assert Counter(rows) == {1: 6}


@pytest.mark.parametrize("name", tiny_language.BUILDERS)
def test_the_engine_shares_forwards(models: Catalog, name: str) -> None:
    """By its own policy."""
    model = models.model(name)
    jobs = [job(model, "a mill", steps=6, seed=seed) for seed in (0, 1, 10, 11)]
    outcomes, rows = paint_all(jobs)
    assert_parity(jobs, outcomes)
    assert max(rows) > min(rows)


def test_starting_from_images(models: Catalog, paint: Paint, photograph: torch.Tensor) -> None:
    """Qwen-Image and Z-Image: text-to-image and image-to-image at one moment."""
    for name in ("qwen", "z-image"):
        model = models.model(name)
        jobs = [
            job(model, "a boat", steps=4),
            job(model, "a boat", photograph, strength=0.5, steps=6, seed=1),
            job(model, "a ship", photograph, strength=1.0, steps=4, seed=2),
        ]
        outcomes, _ = paint(jobs)
        assert_parity(jobs, outcomes)


@pytest.mark.parametrize("name", tiny_language.BUILDERS)
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


KV = {"hidden_states": torch.zeros(1, 4, 8), "timestep": torch.zeros(1)}
CAPTIONS = {"x": [torch.zeros(4, 1, 8, 8)], "t": torch.zeros(1), "cap_feats": [torch.zeros(20, 8)]}


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("Flux2Transformer2DModel", KV | {"kv_cache_mode": "extract"}),
        ("Flux2Transformer2DModel", KV | {"kv_cache": object()}),
        ("ZImageTransformer2DModel", CAPTIONS | {"image_noise_mask": [[0, 1]]}),
        ("ZImageTransformer2DModel", CAPTIONS | {"controlnet_block_samples": {0: torch.zeros(1)}}),
        ("ZImageTransformer2DModel", CAPTIONS | {"x": [[torch.zeros(4, 1, 8, 8)]]}),
        ("QwenImageTransformer2DModel", KV | {"controlnet_block_samples": [torch.zeros(1)]}),
    ],
)
def test_what_does_not_batch_goes_alone(kind: str, arguments: Arguments) -> None:
    """Caches of other pictures, and what holds tensors for a whole call; without it, the same call can share."""
    assert batch_key(DENOISERS[kind], arguments) is None
    common = KV if kind != "ZImageTransformer2DModel" else CAPTIONS
    assert batch_key(DENOISERS[kind], common) is not None


def test_a_prompt_that_comes_again_is_not_encoded_again(models: Catalog) -> None:
    """Neither side of the guidance; another prompt is."""
    model = models.model("z-image")
    calls: list[str] = []

    def count(module: torch.nn.Module, *_: object) -> None:
        calls.extend(["read"] * (type(module).__name__ == "Qwen3Model"))

    jobs = [job(model, prompt, seed=seed) for prompt, seed in (("a mill", 0), ("a mill", 1), ("a dam", 2))]
    read: list[int] = []
    handle = torch.nn.modules.module.register_module_forward_hook(count)
    try:
        with Darkroom() as darkroom:
            for submission in jobs:
                darkroom.paint(submission)
                read.append(len(calls))
            outcomes = darkroom.rest()
    finally:
        handle.remove()
    assert read == [2, 2, 4]
    assert_parity(jobs, outcomes)


@pytest.mark.parametrize("name", tiny_language.BUILDERS)
def test_what_cannot_be_had_is_said(models: Catalog, name: str) -> None:
    """Weights, blends and layers of CLIP; the field is named, and the way out."""
    model = models.model(name)
    wishes = {
        "prompt": [
            job(model, "a (red)1.4 fox", prompt_syntax="compel"),
            job(model, '("a cat", "a dog").blend(0.7, 0.3)', prompt_syntax="compel"),
            job(model, "a (red:1.4) fox", prompt_syntax="a1111"),
        ],
        "negative_prompt": [job(model, "a fox", negative_prompt="ugly++", prompt_syntax="compel")] * (name != "flux2"),
        "clip_skip": [job(model, "a fox", clip_skip=1)],
    }
    outcomes, rows = paint_all([submission for jobs in wishes.values() for submission in jobs])
    assert not rows
    for field, jobs in wishes.items():
        for submission in jobs:
            error = outcomes[submission.id].error
            assert isinstance(error, InvalidRecipe)
            (problem,) = error.errors
            assert problem.field == field
            assert "prompt_syntax 'plain'" in problem.message or "cannot skip layers" in problem.message


def test_words_alone_are_taken_in_every_syntax(models: Catalog) -> None:
    """Quotes and brackets, which mean nothing by themselves, stay in the prompt."""
    model = models.model("qwen")
    jobs = [job(model, 'a sign: "open (late)"', prompt_syntax=syntax) for syntax in ("plain", "compel")]
    outcomes, _ = paint_all(jobs)
    for submission in jobs:
        assert_same(outcomes[submission.id].exact, plain(jobs[0]))
