"""Prompts to embeddings: layers of CLIP that are skipped, Compel for FLUX and SD3, and prompts that cannot be had."""

import re
from typing import Any

import compel
import pytest
import torch
from compel.prompt_parser import PromptParser
from harness import THIRD_PARTY, job, paint_all, pooled_words, sd3_by_compel
from hypothesis import given, settings
from hypothesis import strategies as st
from test_adapters import pipe_of

from daguerre.catalog import Catalog
from daguerre.engine import compelled, conditioning
from daguerre.engine.conditioning import Conditioning
from daguerre.errors import InvalidRecipe

CPU = torch.device("cpu")

pytestmark = THIRD_PARTY


@torch.no_grad()
def embeddings(pipe: Any, submission: Any) -> dict[str, torch.Tensor]:
    """What the engine would hand to the pipeline."""
    return Conditioning(pipe, CPU).arguments(submission.recipe)


# Layers of CLIP


def _norm(layer: Any, x: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    scaled = centred / torch.sqrt(centred.pow(2).mean(dim=-1, keepdim=True) + layer.eps)
    return scaled * layer.weight + layer.bias


def _linear(layer: Any, x: torch.Tensor) -> torch.Tensor:
    return x @ layer.weight.T + layer.bias


def _attention(layer: Any, x: torch.Tensor, heads: int) -> torch.Tensor:
    tokens, channels = x.shape
    q, k, v = (
        _linear(getattr(layer, f"{part}_proj"), x).view(tokens, heads, channels // heads).transpose(0, 1)
        for part in "qkv"
    )
    scores = q @ k.transpose(1, 2) / (channels // heads) ** 0.5
    later = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    mixed = scores.masked_fill(later, -torch.inf).softmax(dim=-1) @ v
    return _linear(layer.out_proj, mixed.transpose(0, 1).reshape(tokens, channels))


@torch.no_grad()
def layers_by_hand(encoder: Any, ids: list[int], skip: int, is_normed: bool) -> torch.Tensor:
    """CLIP's text encoder (Radford et al. 2021, section 2.4) without its last layers, one operation after the other."""
    inner = getattr(encoder, "text_model", encoder)
    embedding = inner.embeddings
    x = embedding.token_embedding.weight[ids] + embedding.position_embedding.weight[: len(ids)]
    for layer in inner.encoder.layers[: encoder.config.num_hidden_layers - skip]:
        x = x + _attention(layer.self_attn, _norm(layer.layer_norm1, x), encoder.config.num_attention_heads)
        hidden = _linear(layer.mlp.fc1, _norm(layer.layer_norm2, x))
        x = x + _linear(layer.mlp.fc2, hidden * torch.sigmoid(1.702 * hidden))
    return (_norm(inner.final_layer_norm, x) if is_normed else x)[None]


def _tokens(tokenizer: Any, words: list[str]) -> list[int]:
    ids = [tokenizer.bos_token_id]
    for word in words:
        ids += tokenizer(word, add_special_tokens=False).input_ids
    ids.append(tokenizer.eos_token_id)
    return ids + [tokenizer.pad_token_id] * (77 - len(ids))


def _by_hand(pipe: Any, words: list[str], skip: int) -> torch.Tensor:
    """Of every CLIP that the pipeline has, side by side; SDXL and SD3 take the layer before the last, unnormed."""
    ends = [end for end in ("", "_2") if "CLIP" in type(getattr(pipe, f"text_encoder{end}", None)).__name__]
    is_normed = len(ends) == 1
    made = []
    for end in ends:
        ids = _tokens(getattr(pipe, f"tokenizer{end}"), words)
        made.append(layers_by_hand(getattr(pipe, f"text_encoder{end}"), ids, skip + (not is_normed), is_normed))
    return torch.cat(made, dim=-1)


@pytest.mark.parametrize("syntax", ["plain", "compel", "a1111"])
@pytest.mark.parametrize("name", ["sd15", "sd21", "sdxl"])
def test_clip_skip_by_hand(models: Catalog, name: str, syntax: str) -> None:
    """In every syntax; only AUTOMATIC1111's skips the negative prompt's layers too, as AUTOMATIC1111 does."""
    pipe = pipe_of(models.model(name))
    for skip in (0, 1, 2):
        made = embeddings(
            pipe, job(models.model(name), "a red fox", negative_prompt="mud", prompt_syntax=syntax, clip_skip=skip)
        )
        assert torch.allclose(made["prompt_embeds"], _by_hand(pipe, ["a red fox"], skip), atol=2e-4)
        below = skip if syntax == "a1111" else 0
        assert torch.allclose(made["negative_prompt_embeds"], _by_hand(pipe, ["mud"], below), atol=2e-4)


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_clip_skip_under_compels_weights(models: Catalog, name: str) -> None:
    """The weights act on what the shorter encoder makes, away from what it makes of nothing."""
    pipe = pipe_of(models.model(name))
    made = embeddings(pipe, job(models.model(name), "a (red)1.4 fox", prompt_syntax="compel", clip_skip=1))
    words = _by_hand(pipe, ["a", "red", "fox"], 1)
    weights = torch.ones(77)
    weights[2:5] = 1.4  # every letter is a token
    nothing = _by_hand(pipe, [], 1)
    assert torch.allclose(made["prompt_embeds"], nothing + (words - nothing) * weights[:, None], atol=2e-4)


def test_a_long_prompt_and_its_negative_are_as_long_whatever_is_skipped(models: Catalog) -> None:
    """Two chunks of one, one of the other: filled up with nothing, by the layers that the negative prompt has."""
    pipe = pipe_of(models.model("sd15"))
    made = embeddings(pipe, job(models.model("sd15"), "ab " * 50, prompt_syntax="compel", clip_skip=1))
    assert made["prompt_embeds"].shape[1] == made["negative_prompt_embeds"].shape[1] == 154
    nothing = _by_hand(pipe, [], 0)
    assert torch.allclose(made["negative_prompt_embeds"], torch.cat([nothing, nothing], dim=1), atol=2e-4)


@pytest.mark.parametrize("syntax", ["plain", "compel", "a1111"])
@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd3"])
def test_no_more_layers_are_skipped_than_there_are(models: Catalog, name: str, syntax: str) -> None:
    """The first stays, in encoders that have fewer than may be asked for."""
    asked = [job(models.model(name), "a fox", prompt_syntax=syntax, clip_skip=skip) for skip in (1, 2, 4)]
    one, two, four = (embeddings(pipe_of(models.model(name)), each)["prompt_embeds"] for each in asked)
    assert torch.equal(two, four)
    assert not torch.allclose(one, two, atol=2e-4)


@pytest.mark.parametrize("syntax", ["plain", "compel", "a1111"])
def test_flux_skips_no_layers(models: Catalog, syntax: str) -> None:
    """It takes CLIP's last and no other; the field is named."""
    with pytest.raises(InvalidRecipe, match="clip_skip: FLUX takes no layer"):
        embeddings(pipe_of(models.model("flux")), job(models.model("flux"), "a", prompt_syntax=syntax, clip_skip=1))


# Compel's own classes, where it has them

PROMPTS = [
    "a fox",
    "a ((red)1.2 and (old)0.7)1.3 fox++, on a hill--",
    '("a cat", "a (big)1.3 dog").blend(0.7, 0.5)',
    '("a cat", "a dog", "an owl").blend(0.7, 0.5, -0.2, no_normalize)',
    '("a cat", "a dog").and(1, 0.5)',
    "a (very old)1.2 harbour, " + "with many boats, " * 8 + "at (night)0.4",
]


@pytest.mark.parametrize("name", ["sd15", "sd21", "sdxl"])
def test_embeddings_are_those_of_compel(models: Catalog, name: str) -> None:
    """Of the prompt and of a negative one with weights, to a hundred-thousandth."""
    pipe = pipe_of(models.model(name))
    against = "(ugly)1.3 mud"
    wrapper = (compel.CompelForSDXL if name == "sdxl" else compel.CompelForSD)(pipe)
    names = {
        "prompt_embeds": "embeds",
        "negative_prompt_embeds": "negative_embeds",
        "pooled_prompt_embeds": "pooled_embeds",
        "negative_pooled_prompt_embeds": "negative_pooled_embeds",
    }
    for text in PROMPTS:
        # CompelForSDXL stumbles over its own pooled embedding where parts have weights.
        prompt = text.replace(".and(1, 0.5)", ".and()") if name == "sdxl" else text
        made = embeddings(pipe, job(models.model(name), prompt, negative_prompt=against, prompt_syntax="compel"))
        assert len(made) == (4 if name == "sdxl" else 2)
        with torch.no_grad():
            theirs = wrapper(prompt, negative_prompt=against)
        for ours, name_of_theirs in names.items():
            assert ours not in made or torch.allclose(made[ours], getattr(theirs, name_of_theirs), atol=1e-5), prompt


def test_embeddings_for_flux_are_those_of_compel(models: Catalog) -> None:
    """T5's of every prompt; the pooled one where CompelForFlux makes one."""
    pipe = pipe_of(models.model("flux"))
    for prompt in PROMPTS:
        made = embeddings(pipe, job(models.model("flux"), prompt, prompt_syntax="compel"))
        with torch.no_grad():
            theirs = compel.CompelForFlux(pipe)(prompt)
        assert torch.allclose(made["prompt_embeds"], theirs.embeds, atol=1e-5), prompt
        assert made["pooled_prompt_embeds"].shape == (1, 32)
        if theirs.pooled_embeds.shape[0] == 1:
            assert torch.allclose(made["pooled_prompt_embeds"], theirs.pooled_embeds, atol=1e-5), prompt


# FLUX and Stable Diffusion 3

BLEND = '("a cat", "a (big)1.3 dog").blend(0.7, 0.5)'


def test_a_blend_for_flux(models: Catalog) -> None:
    """T5's embeddings are Compel's; the pooled one is blended, where CompelForFlux gives two rows of neither."""
    pipe = pipe_of(models.model("flux"))
    made = embeddings(pipe, job(models.model("flux"), BLEND, prompt_syntax="compel"))
    t5 = compel.Compel(pipe.tokenizer_2, pipe.text_encoder_2)(BLEND)
    cat, dog = (pooled_words(pipe.tokenizer, pipe.text_encoder, words) for words in ("a cat", "a big dog"))
    assert torch.allclose(made["prompt_embeds"], t5, atol=1e-5)
    assert torch.allclose(made["pooled_prompt_embeds"], (0.7 * cat + 0.5 * dog) / 1.2, atol=1e-5)


def test_a_blend_for_stable_diffusion_3(models: Catalog) -> None:
    """The same with two CLIPs."""
    pipe = pipe_of(models.model("sd3"))
    made = embeddings(pipe, job(models.model("sd3"), BLEND, prompt_syntax="compel"))
    cat, dog = (sd3_by_compel(pipe, words, "")["pooled_prompt_embeds"] for words in ("a cat", "a big dog"))
    assert torch.allclose(made["pooled_prompt_embeds"], (0.7 * cat + 0.5 * dog) / 1.2, atol=1e-5)
    parts = [sd3_by_compel(pipe, words, "")["prompt_embeds"] for words in ("a cat", "a (big)1.3 dog")]
    assert torch.allclose(made["prompt_embeds"], (0.7 * parts[0] + 0.5 * parts[1]) / 1.2, atol=1e-5)


@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_without_weights_it_is_the_pipelines_own_encoding(models: Catalog, name: str) -> None:
    """In every syntax; brackets and quotes without weights stay in the prompt, for models that can write."""
    pipe = pipe_of(models.model(name))
    for prompt in ("a red fox", 'a sign that says "open (late)", 1,000 lamps'):
        expected = embeddings(pipe, job(models.model(name), prompt, negative_prompt="mud"))
        escaped = prompt.replace("(", r"\(").replace(")", r"\)")
        for text, syntax in ((prompt, "compel"), (escaped, "a1111")):
            made = embeddings(pipe, job(models.model(name), text, negative_prompt="mud", prompt_syntax=syntax))
            assert made.keys() == expected.keys()
            assert all(torch.allclose(made[key], expected[key], atol=1e-5) for key in made)


def test_no_word_of_a_long_prompt_is_lost(models: Catalog) -> None:
    """Every letter is a token of the tiny T5, which reads 512 of them at a time for FLUX, and 256 for SD3."""
    prompt = "a" * 600 + "b" * 100
    flux, sd3 = (pipe_of(models.model(name)) for name in ("flux", "sd3"))
    made = embeddings(flux, job(models.model("flux"), prompt, prompt_syntax="compel"))
    other = embeddings(flux, job(models.model("flux"), prompt[:-1] + "c", prompt_syntax="compel"))
    assert made["prompt_embeds"].shape[1] == 1024
    assert torch.equal(made["prompt_embeds"][:, :512], other["prompt_embeds"][:, :512])
    assert not torch.allclose(made["prompt_embeds"][:, 512:], other["prompt_embeds"][:, 512:], atol=1e-3)
    made = embeddings(sd3, job(models.model("sd3"), prompt, prompt_syntax="compel"))
    assert made["prompt_embeds"].shape == made["negative_prompt_embeds"].shape == (1, 10 * 77 + 3 * 256, 64)


def test_stable_diffusion_3_without_t5(models: Catalog) -> None:
    """Zeros stand for it, as in the pipeline."""
    pipe = pipe_of(models.model("sd3"))
    pipe.text_encoder_3 = pipe.tokenizer_3 = None
    model = models.model("sd3")
    expected = embeddings(pipe, job(model, "a red fox"))
    made = embeddings(pipe, job(model, "a red fox", prompt_syntax="compel"))
    assert all(torch.allclose(made[key], expected[key], atol=1e-5) for key in expected)
    weighted = embeddings(pipe, job(model, "a (red)1.4 fox", prompt_syntax="compel"))["prompt_embeds"]
    assert weighted.shape == expected["prompt_embeds"].shape
    assert not weighted[:, 77:].any()


@pytest.mark.parametrize("name", ["sd15", "sdxl", "flux", "sd3"])
def test_weights_are_those_of_the_encoders_as_they_are(models: Catalog, name: str) -> None:
    """Adapters change the text encoders between two prompts: nothing of the first is left in the second."""
    pipe = pipe_of(models.model(name))
    submission = job(models.model(name), "a (red)1.4 fox", prompt_syntax="compel")
    conditioning = Conditioning(pipe, CPU)
    with torch.no_grad():
        before = conditioning.arguments(submission.recipe)
        for part in pipe.components.values():
            if hasattr(part, "encoder"):
                for weight in part.encoder.parameters():
                    weight.mul_(1.2)
        after = conditioning.arguments(submission.recipe, adapted=("other",))
        fresh = Conditioning(pipe, CPU).arguments(submission.recipe)
    assert all(torch.equal(after[key], fresh[key]) for key in fresh)
    assert not torch.allclose(before["prompt_embeds"], after["prompt_embeds"], atol=1e-3)


def test_what_is_kept_is_bounded(models: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    """By bytes, the least recently used go first; what is kept is the same tensor again."""
    model = models.model("sd15")
    kept = Conditioning(pipe_of(model), CPU)
    size = 2 * 77 * 32 * 4  # a prompt and its negative
    monkeypatch.setattr(conditioning, "CACHED", 3 * size)
    recipes = [job(model, f"owl {i}").recipe for i in range(4)]
    with torch.no_grad():
        first = [kept.arguments(recipe)["prompt_embeds"] for recipe in recipes[:3]]
        assert kept.arguments(recipes[0])["prompt_embeds"] is first[0]
        kept.arguments(recipes[3])
        again = [kept.arguments(recipe)["prompt_embeds"] for recipe in (recipes[0], recipes[2], recipes[1])]
    assert [one is other for one, other in zip(again, (first[0], first[2], first[1]), strict=True)] == [1, 1, 0]


# What Compel reads, and what it cannot

PARSER = PromptParser()


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="ab1 ,.;:'-+=é\t", min_size=1, max_size=30))
def test_prompts_without_marks_are_what_compel_reads(text: str) -> None:
    """They go past its parser, which needs seconds for the longest; the words are the same."""
    ours, theirs = compelled.parsed(text, "prompt"), PARSER.parse_conjunction(text)
    assert [_shape(part) for part in ours.prompts] == [_shape(part) for part in theirs.prompts] or not theirs.prompts


def _shape(part: Any) -> list[tuple[str, float]]:
    return [(re.sub(r"\s+", " ", child.text).strip(), round(child.weight, 6)) for child in part.children]


WRONG = {
    "a cat.swap(dog)": "change from step to step",
    "a fox withLora(style, 0.5)": "the field loras",
    '("a", "b").blend(1)': "cannot read it",
    '("a", "b").blend(x, y)': "cannot read it",
    '("a", "b").blend(1, -1)': "nothing together",
    "(a)101 b": "at most 100",
    "x" + "+" * 9_000: "at most 100|cannot read it",
    "(a)0.9 b " * 32: "more than 32 parts",
    "(" + ", ".join(['"a"'] * 33) + ").blend()": "more than 32 parts",
    "(" * 500 + "a" + ")" * 500: "cannot read it",
}


@pytest.mark.parametrize("prompt", WRONG, ids=lambda prompt: prompt[:16])
@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
def test_what_cannot_be_read_is_said(prompt: str, field: str) -> None:
    """The field is named, and nobody else waits for it."""
    with pytest.raises(InvalidRecipe, match=f"^{field}: .*({WRONG[prompt]})"):
        compelled.parsed(prompt, field)


def test_brackets_in_brackets_cost_no_more_than_others() -> None:
    """Compel's parser alone takes five times as long for each pair: twenty would take years."""
    (part,) = compelled.parsed("(" * 20 + "a" + ")" * 20 + " fox", "prompt").prompts
    assert [child.text for child in part.children] == ["a fox"]


def test_a_refused_prompt_costs_its_neighbours_nothing(models: Catalog) -> None:
    """In one engine; and prompts that are nothing but marks are painted."""
    model = models.model("sd15")
    jobs = [job(model, prompt, prompt_syntax="compel") for prompt in ("a cat.swap(dog)", "a fox", "()", '""', "(")]
    outcomes, _ = paint_all(jobs)
    errors = [outcomes[submission.id].error for submission in jobs]
    assert isinstance(errors[0], InvalidRecipe)
    assert errors[1:] == [None] * 4
