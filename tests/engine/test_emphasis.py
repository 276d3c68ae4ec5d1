"""Encoding as AUTOMATIC1111 does, against the same written out by hand, and against diffusers where both agree."""

from typing import Any

import pytest
import torch
from harness import THIRD_PARTY, assert_parity, assert_same, difference, job, paint_all
from test_adapters import pipe_of

from daguerre.catalog import Catalog
from daguerre.emphasis import parse
from daguerre.engine.emphasised import encode
from daguerre.errors import InvalidRecipe

pytestmark = THIRD_PARTY


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_without_marks_it_is_diffusers_own_encoding(models: Catalog, name: str) -> None:
    """The same picture as with ``plain``."""
    model = models.model(name)
    prompts = {"a red fox": "", "an owl": "ugly, dark"}
    jobs = [job(model, p, negative_prompt=n, prompt_syntax="a1111", seed=i) for i, (p, n) in enumerate(prompts.items())]
    same = [job(model, p, negative_prompt=n, seed=i) for i, (p, n) in enumerate(prompts.items())]
    outcomes, _ = paint_all([*jobs, *same])
    assert_parity(same, outcomes)
    for ours, theirs in zip(jobs, same, strict=True):
        assert_same(outcomes[ours.id].exact, outcomes[theirs.id].exact)


@torch.no_grad()
def by_hand(pipe: Any, words: list[tuple[str, float]]) -> torch.Tensor:
    """One chunk of Stable Diffusion 1.5: tokens, embeddings, weights, the mean as it was."""
    ids, weights = [pipe.tokenizer.bos_token_id], [1.0]
    for text, weight in words:
        found = pipe.tokenizer(text, add_special_tokens=False).input_ids
        ids += found
        weights += [weight] * len(found)
    missing = 77 - len(ids)
    ids += [pipe.tokenizer.eos_token_id] * missing
    weights += [1.0] * missing
    embeds = pipe.text_encoder(torch.tensor([ids])).last_hidden_state
    weighted = embeds * torch.tensor(weights)[None, :, None]
    return weighted * (embeds.mean() / weighted.mean())


@torch.no_grad()
def test_weights_and_breaks_by_hand(models: Catalog) -> None:
    """Each chunk by itself, then one after the other; the negative prompt gets as many."""
    pipe = pipe_of(models.model("sd15"))
    pipe.text_encoder.final_layer_norm.bias.normal_(1.0)  # real encoders' embeddings have a mean
    made = encode(pipe, parse("a (red:1.4) fox BREAK [snow]"), parse("ugly"), 0)
    first = by_hand(pipe, [("a ", 1.0), ("red", 1.4), (" fox ", 1.0)])
    second = by_hand(pipe, [("snow", 1 / 1.1)])
    assert torch.allclose(made["prompt_embeds"], torch.cat([first, second], 1), atol=1e-5)
    negative = torch.cat([by_hand(pipe, [("ugly", 1.0)]), by_hand(pipe, [])], 1)
    assert torch.allclose(made["negative_prompt_embeds"], negative, atol=1e-5)


def test_a_thousand_breaks_are_refused(models: Catalog) -> None:
    """Each makes a chunk that every call of the denoiser would read; and a long prompt of words is none."""
    jobs = [
        job(models.model("sd15"), "a fox", prompt_syntax="a1111", negative_prompt="BREAK " * 1_000, guidance_scale=4),
        job(models.model("sd15"), "red fox, " * 1_111, prompt_syntax="a1111", width=8, height=8, steps=1),
        job(models.model("sd15"), "狐" * 10_000, prompt_syntax="compel"),
    ]
    outcomes, _ = paint_all(jobs)
    refused, painted, other = (outcomes[submission.id].error for submission in jobs)
    assert isinstance(refused, InvalidRecipe)
    assert [(error.field, "75075 tokens" in error.message) for error in refused.errors] == [("negative_prompt", True)]
    assert painted is None
    assert isinstance(other, InvalidRecipe)
    assert "30000 tokens" in other.errors[0].message


@torch.no_grad()
def test_a_long_prompt_ends_its_chunks_at_commas(models: Catalog) -> None:
    """Every letter is a token of the tiny models: the chunk ends after the comma, eight tokens early."""
    pipe = pipe_of(models.model("sd15"))
    made = encode(pipe, parse("a" * 66 + "," + "b" * 20), None, 0)
    expected = torch.cat([by_hand(pipe, [("a" * 66 + ",", 1.0)]), by_hand(pipe, [("b" * 20, 1.0)])], 1)
    assert torch.allclose(made["prompt_embeds"], expected, atol=1e-5)
    whole = encode(pipe, parse("a" * 80), None, 0)
    assert whole["prompt_embeds"].shape[1] == 154


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_weights_act(models: Catalog, name: str) -> None:
    """More weight, another picture; the prompt as a text is not the cache's key alone."""
    model = models.model(name)
    jobs = [job(model, prompt, prompt_syntax="a1111") for prompt in ("a red fox", "a (red:1.6) fox", "a BREAK red fox")]
    jobs.append(job(model, "a red fox", prompt_syntax="a1111", clip_skip=1))
    outcomes, _ = paint_all(jobs)
    pictures = [outcomes[submission.id].picture for submission in jobs]
    for i, one in enumerate(pictures):
        for other in pictures[:i]:
            assert difference(one, other) > 2


def test_encoders_without_weights_say_so(models: Catalog) -> None:
    """FLUX takes the words; weights are refused, not dropped. Those of a negative prompt, which it has not, are."""
    model = models.model("flux")
    fields = {"prompt_syntax": "a1111", "negative_prompt": "(mud:1.4)"}
    jobs = [job(model, prompt, **fields) for prompt in (r"a fox \(red\)", "a (red:1.2) fox")]
    jobs.append(job(model, "a fox (red)"))
    outcomes, _ = paint_all(jobs)
    plain, weighted, same = (outcomes[submission.id] for submission in jobs)
    assert_same(plain.exact, same.exact)
    assert isinstance(weighted.error, InvalidRecipe)
    assert "no weights" in weighted.error.message
