"""Textual inversions: parity with diffusers' `load_textual_inversion` in every syntax; nothing is disturbed by them."""

import copy
import dataclasses
import gc
from pathlib import Path
from typing import Any

import compel
import diffusers
import ipfiles
import numpy as np
import pytest
import torch
from compel import DiffusersTextualInversionManager
from harness import THIRD_PARTY, Darkroom, Floats, assert_parity, assert_same, difference, floats, job, paint_all
from harness import plain as without
from safetensors.torch import load_file

from daguerre.catalog import Catalog, Model
from daguerre.embeddings import Embeddings
from daguerre.emphasis import parse
from daguerre.engine import Submission, emphasised
from daguerre.engine.pipelines import Pipeline
from daguerre.errors import InvalidRecipe

pytestmark = THIRD_PARTY

WORD = "sunnyhill"
MANY, ONE = 3, 1


def vectors(seed: int, count: int, channels: int = 32) -> torch.Tensor:
    """As loud as the tiny encoders' own."""
    return torch.randn(count, channels, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def folder(models: Catalog) -> Path:
    """Embeddings of every layout beside the tiny models."""
    found = models.model("sd15").path.parent / "embeddings"
    ipfiles.write(found / f"{WORD}.safetensors", {"emb_params": vectors(1, MANY)})
    ipfiles.write(found / "<cat-toy>.safetensors", {"<cat-toy>": vectors(2, ONE)[0]})
    both = {"clip_l": vectors(3, 2), "clip_g": vectors(4, 2)}
    ipfiles.write(found / "twofold.safetensors", both)
    return found


@pytest.fixture(scope="module")
def shelf(folder: Path) -> Embeddings:
    """Their catalogue."""
    return Embeddings(folder.parent)


def knowing(shelf: Embeddings, submission: Submission) -> Submission:
    """The submission with the embeddings that its prompts name."""
    found = shelf.used(submission.recipe, submission.model)
    assert found
    return dataclasses.replace(submission, learned=tuple(one.read() for one in found))


def taught(model: Model, folder: Path) -> Any:
    """A plain pipeline that diffusers has taught what fits it."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(model.path)
    pipe.set_progress_bar_config(disable=True)
    for path in sorted(folder.glob("*.safetensors")):
        tensors = load_file(path)
        is_xl = "clip_g" in tensors
        if is_xl != hasattr(pipe, "text_encoder_2"):
            continue
        for name, end in (("clip_l", ""), ("clip_g", "_2")) if is_xl else ((next(iter(tensors)), ""),):
            sides = {part: getattr(pipe, f"{part}{end}") for part in ("tokenizer", "text_encoder")}
            pipe.load_textual_inversion({path.stem: tensors[name]}, token=path.stem, **sides)
    return pipe


@torch.no_grad()
def painted(pipe: Any, submission: Submission, **prompts: Any) -> Floats:
    """The picture as a plain pipeline paints it."""
    recipe = submission.recipe
    image = pipe(
        width=recipe.width,
        height=recipe.height,
        num_inference_steps=recipe.steps,
        guidance_scale=recipe.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(recipe.seed),
        output_type="pt",
        **prompts,
    ).images[0]
    return floats(image)


PROMPTS = [
    ("sd15", f"a {WORD}, in spring", "fog"),
    ("sd15", "a <cat-toy> backpack", f"{WORD}"),
    ("sd21", f"{WORD} and a <cat-toy>", "ugly"),
    ("sdxl", "a twofold valley", "twofold"),
    ("sdxl", "a valley", "twofold, ugly"),
]


@pytest.mark.parametrize(("name", "prompt", "negative"), PROMPTS)
def test_plain_prompts(models: Catalog, folder: Path, shelf: Embeddings, name: str, prompt: str, negative: str) -> None:
    """Positive and negative prompts, words of one vector and of several."""
    submission = knowing(shelf, job(models.model(name), prompt, negative_prompt=negative))
    outcomes, _ = paint_all([submission])
    pipe = taught(submission.model, folder)
    assert_same(outcomes[submission.id].exact, painted(pipe, submission, prompt=prompt, negative_prompt=negative))


@pytest.mark.parametrize(("name", "prompt"), [("sd15", "a ({})1.3 hill"), ("sd15", "{}++, fog"), ("sdxl", "a ({})0.6")])
@torch.no_grad()
def test_compels_prompts(models: Catalog, folder: Path, shelf: Embeddings, name: str, prompt: str) -> None:
    """All vectors of a word have the weight that the word has, against Compel on a pipeline that diffusers taught."""
    text = prompt.format("twofold" if name == "sdxl" else WORD)
    submission = knowing(shelf, job(models.model(name), text, negative_prompt="fog", prompt_syntax="compel"))
    outcomes, _ = paint_all([submission])
    pipe = taught(submission.model, folder)
    make = compel.CompelForSDXL if name == "sdxl" else compel.CompelForSD
    made = make(pipe, textual_inversion_manager=DiffusersTextualInversionManager(pipe))(text, negative_prompt="fog")
    prompts = {"prompt_embeds": made.embeds, "negative_prompt_embeds": made.negative_embeds}
    if name == "sdxl":
        prompts |= {"pooled_prompt_embeds": made.pooled_embeds}
        prompts |= {"negative_pooled_prompt_embeds": made.negative_pooled_embeds}
    assert_same(outcomes[submission.id].exact, painted(pipe, submission, **prompts))


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
@torch.no_grad()
def test_automatic1111s_prompts(models: Catalog, folder: Path, shelf: Embeddings, name: str) -> None:
    """The same in its syntax, against its encoding on a pipeline that diffusers taught."""
    word = "twofold" if name == "sdxl" else WORD
    expanded = " ".join([word, *(f"{word}_{i}" for i in range(1, 2 if name == "sdxl" else MANY))])
    text = "a ({}:1.3) hill BREAK [{}], fog"
    given = {"prompt_syntax": "a1111", "negative_prompt": f"({word})"}
    submission = knowing(shelf, job(models.model(name), text.format(word, word), **given))
    outcomes, _ = paint_all([submission])
    pipe = taught(submission.model, folder)
    sides = parse(text.format(expanded, expanded)), parse(f"({expanded})")
    assert_same(
        outcomes[submission.id].exact, painted(pipe, submission, **emphasised.encode(pipe, *sides, clip_skip=0))
    )


def test_a_prompt_of_many_words_and_any_case(models: Catalog, folder: Path, shelf: Embeddings) -> None:
    """Case does not count, and part of a longer word is not the word."""
    model = models.model("sd15")
    one = knowing(shelf, job(model, f"{WORD.upper()} by the sea"))
    outcomes, _ = paint_all([one])
    assert_same(
        outcomes[one.id].exact, painted(taught(model, folder), one, prompt=f"{WORD} by the sea", negative_prompt=None)
    )
    assert shelf.used(job(model, f"{WORD}s, un{WORD}, {WORD}_").recipe, model) == ()


def test_those_without_are_not_disturbed(models: Catalog, shelf: Embeddings) -> None:
    """The same words painted with, without and again: a plain prompt is what it was, and the model is as it came."""
    model = models.model("sd15")
    bare, known = job(model, f"a {WORD}", steps=4), knowing(shelf, job(model, f"a {WORD}", steps=4))
    older = [one for one in gc.get_objects() if type(one) is Pipeline]  # cycles that nobody has collected yet
    with Darkroom() as darkroom:
        first = darkroom.paint(bare).exact
        found = [one for one in gc.get_objects() if type(one) is Pipeline and all(one is not other for other in older)]
        (pipeline,) = found
        encoder, tokenizer = pipeline._pipe.text_encoder, pipeline._pipe.tokenizer
        before = copy.deepcopy(encoder.state_dict()), len(tokenizer)
        other = darkroom.paint(known).exact
        again = darkroom.paint(dataclasses.replace(bare, id="again")).exact
        assert before[1] == len(tokenizer)
        assert all(torch.equal(tensor, before[0][name]) for name, tensor in encoder.state_dict().items())
        del pipeline, encoder, tokenizer
    assert np.array_equal(first, again)
    assert difference(first, other) > 2
    assert_same(first, without(bare))


def test_company_of_prompts_with_and_without(models: Catalog, shelf: Embeddings) -> None:
    """In one engine at one moment, of several models."""
    bare = [job(models.model(name), f"a {WORD}", seed=seed) for name in ("sd15", "sdxl") for seed in range(2)]
    known = [knowing(shelf, job(models.model("sd15"), f"a {WORD}", seed=seed)) for seed in (5, 6)]
    known.append(knowing(shelf, job(models.model("sdxl"), "a twofold hill", seed=7)))
    outcomes, _ = paint_all([bare[0], known[0], bare[1], known[2], bare[2], known[1], bare[3]])
    assert_parity(bare, outcomes)
    assert all(outcomes[submission.id].error is None for submission in known)
    for i in range(2):
        twin = job(models.model("sd15"), f"a {WORD}", seed=(5, 6)[i])
        assert difference(outcomes[known[i].id].exact, without(twin)) > 2


def test_a_changed_file_is_another_embedding(models: Catalog, folder: Path, tmp_path: Path) -> None:
    """At the next prompt, though its words are the same; and the old content gives the old picture."""
    model = models.model("sd15")
    path = ipfiles.write(tmp_path / "embeddings" / "mood.safetensors", {"emb_params": vectors(7, 2)})
    shelf = Embeddings(tmp_path)
    with Darkroom() as darkroom:
        first = knowing(shelf, job(model, "a mood"))
        one = darkroom.paint(first).picture
        ipfiles.write(path, {"emb_params": vectors(8, 4)})
        two = darkroom.paint(knowing(shelf, job(model, "a mood"))).picture
        ipfiles.write(path, {"emb_params": vectors(7, 2)})
        three = darkroom.paint(knowing(shelf, job(model, "a mood"))).picture
    assert np.array_equal(one, three)
    assert difference(one, two) > 2


def test_numbers_that_are_none_are_refused(models: Catalog, tmp_path: Path) -> None:
    """The job ends with the reason, and the next one is painted."""
    model = models.model("sd15")
    ipfiles.write(tmp_path / "embeddings" / "mood.safetensors", {"emb_params": vectors(7, 2) / 0})
    bad, good = knowing(Embeddings(tmp_path), job(model, "a mood")), job(model, "a mood")
    outcomes, _ = paint_all([bad, good])
    assert isinstance(outcomes[bad.id].error, InvalidRecipe)
    assert "'mood' holds numbers that are not finite" in str(outcomes[bad.id].error)
    assert_same(outcomes[good.id].exact, without(good))
