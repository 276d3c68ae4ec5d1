"""Owns conditioning: prompts to embeddings, by Compel where it knows the encoders, kept for when they come again."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import torch
from compel.prompt_parser import PromptParser, pp

from daguerre import emphasis
from daguerre.engine import emphasised
from daguerre.errors import FieldError, InvalidRecipe
from daguerre.recipe import Recipe

Embeddings = dict[str, torch.Tensor]

#: What Compel raises for a prompt: its own, its parser's, and Python's where brackets are nested by the hundred.
UNREADABLE = (PromptParser.ParsingException, pp.ParseBaseException, RecursionError)

#: Prompts kept; an SDXL prompt and its negative are 1.3 MB in bfloat16.
CACHED = 128


class Conditioning:
    """The text encoders of one pipeline. Embeddings are [1, tokens, channels], pooled ones [1, channels]."""

    def __init__(self, pipe: Any, accepted: frozenset[str]) -> None:
        self._pipe = pipe
        self._accepted = accepted
        self._cache: OrderedDict[tuple[Any, ...], Embeddings] = OrderedDict()
        self._compel = _compel_for(pipe)

    def arguments(self, recipe: Recipe, adapted: Hashable = ()) -> dict[str, Any]:
        """What the pipeline is called with instead of, or as, the prompt. ``adapted``: what the text encoders wear.

        Raises:
            InvalidRecipe: the prompt's syntax cannot be read, or the text encoders cannot do what is asked.
        """
        if self._compel is None:
            if recipe.clip_skip:
                raise InvalidRecipe([FieldError("clip_skip", f"a {self._pipe.__class__.__name__} cannot skip layers")])
            if recipe.prompt_syntax == "a1111":
                return {"prompt": _words(recipe.prompt, "prompt"), "negative_prompt": recipe.negative_prompt or None}
            return {"prompt": recipe.prompt, "negative_prompt": recipe.negative_prompt or None}
        is_guided = recipe.guidance_scale > 1
        negative = recipe.negative_prompt if is_guided else None
        key = (recipe.prompt, negative, recipe.prompt_syntax, recipe.clip_skip, adapted)
        if key not in self._cache:
            self._cache[key] = self._encode(recipe, is_guided)
        self._cache.move_to_end(key)
        if len(self._cache) > CACHED:
            self._cache.popitem(last=False)
        return dict(self._cache[key])

    def forget(self) -> None:
        """Empties the cache: its embeddings lie on the device."""
        self._cache.clear()

    def _encode(self, recipe: Recipe, is_guided: bool) -> Embeddings:
        if recipe.prompt_syntax == "plain":
            return self._encode_plain(recipe, is_guided)
        if recipe.prompt_syntax == "a1111":
            against = _parsed(recipe.negative_prompt, "negative_prompt") if is_guided else None
            return emphasised.encode(self._pipe, _parsed(recipe.prompt, "prompt"), against, recipe.clip_skip)
        if recipe.clip_skip:
            raise InvalidRecipe([FieldError("clip_skip", "needs prompt_syntax 'plain' or 'a1111'")])
        assert self._compel is not None
        # Where an empty negative prompt means zeros (SDXL), the pipeline makes them itself when it is given none.
        zeros = getattr(self._pipe.config, "force_zeros_for_empty_prompt", False)
        negative = recipe.negative_prompt if recipe.negative_prompt or not zeros else None
        try:
            made = self._compel(recipe.prompt, negative_prompt=negative if is_guided else None)
        except (*UNREADABLE, ValueError, AttributeError, IndexError, KeyError, TypeError) as error:
            raise InvalidRecipe(
                [FieldError("prompt", "Compel cannot read it; prompt_syntax 'plain' takes it as it is")]
            ) from error
        found = {
            "prompt_embeds": made.embeds,
            "negative_prompt_embeds": made.negative_embeds,
            "pooled_prompt_embeds": made.pooled_embeds,
            "negative_pooled_prompt_embeds": made.negative_pooled_embeds,
        }
        return {name: value for name, value in found.items() if value is not None and name in self._accepted}

    def _encode_plain(self, recipe: Recipe, is_guided: bool) -> Embeddings:
        """The pipeline's own encoding: 77 tokens, no weights, the layer that clip_skip names."""
        try:
            made = self._pipe.encode_prompt(
                recipe.prompt,
                device=self._pipe.device,
                num_images_per_prompt=1,
                do_classifier_free_guidance=is_guided,
                negative_prompt=recipe.negative_prompt or None,
                clip_skip=recipe.clip_skip or None,
            )
        except AttributeError as error:
            if not recipe.clip_skip:
                raise
            # diffusers 0.42 looks in StableDiffusionPipeline for a part of CLIP that transformers 5 has renamed.
            message = "these versions of diffusers and transformers cannot skip layers of this model"
            raise InvalidRecipe([FieldError("clip_skip", message)]) from error
        names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
        return {name: value for name, value in zip(names, made, strict=False) if value is not None}


def _parsed(prompt: str, field: str) -> emphasis.Parsed:
    """A prompt in AUTOMATIC1111's syntax; what a style or a trigger word adds to it has to be in it too."""
    try:
        return emphasis.parse(prompt)
    except emphasis.SyntaxProblem as problem:
        raise InvalidRecipe([FieldError(field, str(problem))]) from None


def _words(prompt: str, field: str) -> str:
    """The same for text encoders whose embeddings cannot be weighted."""
    parsed = _parsed(prompt, field)
    if parsed.is_weighted:
        raise InvalidRecipe([FieldError(field, "this model's text encoders take no weights and no BREAK")])
    return parsed.text


def _compel_for(pipe: Any) -> Callable[..., Any] | None:
    """Compel for the pipelines whose text encoders it knows; the others encode for themselves."""
    import compel

    known = {
        "StableDiffusionPipeline": compel.CompelForSD,
        "StableDiffusionXLPipeline": compel.CompelForSDXL,
    }
    make = known.get(type(pipe).__name__)
    return make(pipe) if make is not None else None
