"""Owns encoding in Compel's syntax: weights, blends and prompts of any length, for CLIP and for T5.

The syntax and the arithmetic are Compel's (https://github.com/damian0815/compel, 2.x). What its classes for whole
pipelines leave out is done here: Stable Diffusion 3; the pooled embedding of a blend; layers of CLIP that are skipped.
"""

import functools
import re
from dataclasses import dataclass
from typing import Any

import pyparsing
import torch
from compel import Compel, ReturnedEmbeddingsType
from compel.prompt_parser import Blend, Conjunction, FlattenedPrompt, Fragment, PromptParser

from daguerre.engine import length
from daguerre.engine.shortened import Shortened
from daguerre.errors import FieldError, InvalidRecipe

# Without it, each pair of brackets around a word makes Compel's parser five times slower.
pyparsing.ParserElement.enable_packrat(cache_size_limit=None)

#: Tokens of T5 that Stable Diffusion 3 reads at a time, as its pipeline has it; FLUX's are told by its tokenizer.
SD3_TOKENS = 256
#: Times that the encoders may read a prompt: once, and once more for each part of a blend or weighted below 1.
MOST_READINGS = 32
MOST_WEIGHT = 100.0

_LAST = ReturnedEmbeddingsType.LAST_HIDDEN_STATES_NORMALIZED
_PENULTIMATE = ReturnedEmbeddingsType.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED

#: What may mean something to Compel; prompts without it are one fragment, whatever their length.
_MARKS = re.compile(r'[()"\\]|[+-](?=[\s().",+=-]|$)|(?:with|use)Lora')
_SPACE = re.compile(r"[ \t\n\r\x0b\x0c]+")


#: What Compel's parser raises for prompts that it does not understand.
_FAILURES = (
    PromptParser.ParsingException,
    *(ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError),
)


@dataclass(frozen=True, slots=True)
class _Side:
    """A prompt as one encoder after the other reads it. ``beside``: CLIP's, joined by channels; ``after``: T5's."""

    beside: list[tuple[Compel, torch.Tensor]]  # [1, tokens, channels]
    after: list[tuple[Compel, torch.Tensor]]
    pooled: torch.Tensor | None  # [1, channels]


def encode(pipe: Any, prompt: str, negative: str | None, clip_skip: int) -> dict[str, torch.Tensor]:
    """Embeddings by the pipeline's names of them. As in diffusers, ``clip_skip`` is the prompt's, not the negative's.

    Raises:
        InvalidRecipe: Compel cannot read a prompt, or it asks for what cannot be had.
    """
    sides = {"": _read(pipe, prompt, "prompt", clip_skip)}
    if negative is not None:
        sides["negative_"] = _read(pipe, negative, "negative_prompt", 0)
    clip = max((embeds.shape[1] for side in sides.values() for _, embeds in side.beside), default=0)
    t5 = max((embeds.shape[1] for side in sides.values() for _, embeds in side.after), default=0)
    found: dict[str, torch.Tensor] = {}
    for sign, side in sides.items():
        parts = [torch.cat([_filled(*read, clip) for read in side.beside], dim=-1)] if side.beside else []
        parts += [_filled(*read, t5) for read in side.after]
        if type(pipe).__name__ == "StableDiffusion3Pipeline":
            parts = _sd3(pipe, parts)
        found[f"{sign}prompt_embeds"] = torch.cat(parts, dim=1)
        if side.pooled is not None:
            found[f"{sign}pooled_prompt_embeds"] = side.pooled
    return found


def _read(pipe: Any, text: str, field: str, clip_skip: int) -> _Side:
    """A prompt, read by the encoders of a pipeline of this family."""
    length.check(len(pipe.tokenizer(text, add_special_tokens=False, verbose=False).input_ids), field)
    return _FAMILIES[type(pipe).__name__](pipe, text, field, clip_skip)


def _read_sd(pipe: Any, text: str, field: str, clip_skip: int) -> _Side:
    return _Side([_sequence(_clip(pipe, "", clip_skip, _LAST), parsed(text, field))], [], None)


def _read_sdxl(pipe: Any, text: str, field: str, clip_skip: int) -> _Side:
    prompt = parsed(text, field)
    both = [_clip(pipe, end, clip_skip, _PENULTIMATE) for end in ("", "_2")]
    # CompelForSDXL pools the text as it was written.
    return _Side([_sequence(clip, prompt) for clip in both], [], _pooled(both[1], text))


def _read_flux(pipe: Any, text: str, field: str, clip_skip: int) -> _Side:
    if clip_skip:
        raise InvalidRecipe([FieldError("clip_skip", "FLUX takes no layer of CLIP but the last")])
    prompt = parsed(text, field, keeps_marks=True)
    t5 = _compel(pipe.tokenizer_2, pipe.text_encoder_2, _LAST)
    return _Side([], [_sequence(t5, prompt)], _summary(_clip(pipe, "", 0, _LAST), prompt))


def _read_sd3(pipe: Any, text: str, field: str, clip_skip: int) -> _Side:
    prompt = parsed(text, field, keeps_marks=True)
    both = [_clip(pipe, end, clip_skip, _PENULTIMATE) for end in ("", "_2")]
    t5 = (
        [_compel(pipe.tokenizer_3, pipe.text_encoder_3, _LAST, model_max_length=SD3_TOKENS)]
        if pipe.text_encoder_3 is not None
        else []
    )
    pooled = torch.cat([_summary(clip, prompt) for clip in both], dim=-1)
    return _Side([_sequence(clip, prompt) for clip in both], [_sequence(each, prompt) for each in t5], pooled)


_FAMILIES = {
    "StableDiffusionPipeline": _read_sd,
    "StableDiffusionXLPipeline": _read_sdxl,
    "FluxPipeline": _read_flux,
    "StableDiffusion3Pipeline": _read_sd3,
}


def knows(pipe: Any) -> bool:
    """Whether prompts of this pipeline can be weighted."""
    return type(pipe).__name__ in _FAMILIES


def _clip(pipe: Any, end: str, clip_skip: int, kind: ReturnedEmbeddingsType) -> Compel:
    encoder = getattr(pipe, f"text_encoder{end}")
    shortened = Shortened(encoder, clip_skip) if clip_skip else encoder
    return _compel(
        getattr(pipe, f"tokenizer{end}"),
        shortened,
        kind,
        textual_inversion_manager=getattr(pipe, "inversions", None),
    )


def _compel(tokenizer: Any, encoder: Any, kind: ReturnedEmbeddingsType, **options: Any) -> Compel:
    # Made anew for each prompt: it remembers the device and the embedding of nothing, and both change under it.
    return Compel(tokenizer, encoder, truncate_long_prompts=False, returned_embeddings_type=kind, **options)


def _sequence(compel: Compel, prompt: Conjunction) -> tuple[Compel, torch.Tensor]:
    return compel, compel.build_conditioning_tensor_for_conjunction(prompt)[0]


def _pooled(clip: Compel, text: str) -> torch.Tensor:
    pooled: torch.Tensor = clip.conditioning_provider.get_pooled_embeddings([text], device=clip.device)
    return pooled


def _summary(clip: Compel, prompt: Conjunction) -> torch.Tensor:
    """The pooled embedding of the words without their weights, as CompelForFlux has it; blends are blended."""
    if len(prompt.prompts) == 1 and isinstance(prompt.prompts[0], Blend):
        blend = prompt.prompts[0]
        parts = torch.cat([_pooled(clip, _words(part)) for part in blend.prompts])
        weights = torch.tensor(blend.weights, dtype=parts.dtype, device=parts.device)
        weights = weights / weights.sum() if blend.normalize_weights else weights
        return (weights[:, None] * parts).sum(dim=0, keepdim=True)
    return _pooled(clip, " ".join(_words(part) for part in _flattened(prompt)))


def _filled(compel: Compel, embeds: torch.Tensor, tokens: int) -> torch.Tensor:
    """As many tokens as the other prompt has: what Compel makes of nothing is appended."""
    nothing = compel.conditioning_provider.empty_z
    missing = (tokens - embeds.shape[1]) // nothing.shape[1]
    return torch.cat([embeds, *[nothing] * missing], dim=1)


def _sd3(pipe: Any, parts: list[torch.Tensor]) -> list[torch.Tensor]:
    """CLIP's channels filled up to T5's; without a T5, its tokens are zeros."""
    clip, width = parts[0], pipe.transformer.config.joint_attention_dim
    t5 = parts[1] if len(parts) > 1 else clip.new_zeros(1, SD3_TOKENS, width)
    return [torch.nn.functional.pad(clip, (0, width - clip.shape[-1])), t5]


def parsed(text: str, field: str, keeps_marks: bool = False) -> Conjunction:
    """A prompt as Compel reads it. ``keeps_marks``: where it asks for nothing, its brackets and quotes are left in it.

    Raises:
        InvalidRecipe: Compel cannot read it, or it asks for what cannot be had.
    """
    if _MARKS.search(text) is None:
        return _one(text if keeps_marks else _SPACE.sub(" ", re.sub(r",(\S)", r", \1", text)).strip())
    try:
        prompt = _parser().parse_conjunction(text)
    except pyparsing.ParseBaseException as error:
        raise _unreadable(field, f" at position {error.loc}") from None
    except _FAILURES:
        raise _unreadable(field) from None
    _check(prompt, field)
    if keeps_marks and is_plain(prompt):
        return _one(text)
    return prompt if prompt.prompts else _one("")


def _one(text: str) -> Conjunction:
    return Conjunction([FlattenedPrompt([(text, 1.0)])])


def is_plain(prompt: Conjunction) -> bool:
    """Whether it is nothing but words."""
    return not any(isinstance(part, Blend) for part in prompt.prompts) and (
        len(prompt.prompts) < 2 and all(child.weight == 1 for part in prompt.prompts for child in part.children)
    )


@functools.cache
def _parser() -> PromptParser:
    return PromptParser()


def _unreadable(field: str, where: str = "") -> InvalidRecipe:
    message = f"Compel cannot read it{where}; prompt_syntax 'plain' takes it as it is"
    return InvalidRecipe([FieldError(field, message)])


def _check(prompt: Conjunction, field: str) -> None:
    if prompt.lora_weights:
        raise InvalidRecipe([FieldError(field, "LoRAs are named in the field loras")])
    parts = _flattened(prompt)
    fragments = [child for part in parts for child in part.children]
    if not all(isinstance(fragment, Fragment) for fragment in fragments):
        raise InvalidRecipe([FieldError(field, "prompts that change from step to step are not served: .swap")])
    if any(abs(fragment.weight) > MOST_WEIGHT for fragment in fragments):
        raise InvalidRecipe([FieldError(field, f"weights are at most {MOST_WEIGHT:g}")])
    if len(parts) + sum(fragment.weight < 1 for fragment in fragments) > MOST_READINGS:
        message = f"more than {MOST_READINGS} parts that are blended, or weighted below 1"
        raise InvalidRecipe([FieldError(field, message)])
    blends = [part for part in prompt.prompts if isinstance(part, Blend)]
    if any(blend.normalize_weights and abs(sum(blend.weights)) < 1e-3 for blend in blends):
        raise InvalidRecipe([FieldError(field, "the weights of a blend are nothing together")])


def _flattened(prompt: Conjunction) -> list[FlattenedPrompt]:
    """The parts of a prompt, those of its blends too."""
    return [inner for part in prompt.prompts for inner in (part.prompts if isinstance(part, Blend) else [part])]


def _words(part: FlattenedPrompt) -> str:
    return " ".join(fragment.text for fragment in part.children)
