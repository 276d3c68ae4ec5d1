"""Owns conditioning: prompts to embeddings, kept for when they come again."""

import inspect
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import msgspec
import torch

from daguerre import emphasis
from daguerre.embeddings import Learned
from daguerre.engine import compelled, emphasised, shortened
from daguerre.engine.inversions import Inversions
from daguerre.errors import FieldError, InvalidRecipe
from daguerre.recipe import PromptSyntax, Recipe

Embeddings = dict[str, torch.Tensor]

#: Bytes of embeddings that are kept; in bfloat16 an SDXL prompt and its negative are 0.6 MB, a FLUX prompt is 4.
CACHED = 128 * 1024**2

#: Pipelines whose prompts can be weighted as AUTOMATIC1111 does.
_EMPHASISED = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
#: What ``encode_prompt`` gives, in its order.
_ENCODED = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
_ENCODED_BY_FLUX = ("prompt_embeds", "pooled_prompt_embeds")


class Conditioning:
    """The text encoders of one pipeline. Embeddings are [1, tokens, channels], pooled ones [1, channels].

    ``prepare`` is called before anything is encoded: it sees that the encoders are on the device.
    """

    def __init__(self, pipe: Any, device: torch.device, prepare: Callable[[], None] = lambda: None) -> None:
        self._pipe = pipe
        self._device = device
        self._prepare = prepare
        self._kind = type(pipe).__name__
        self._cache: OrderedDict[Hashable, Any] = OrderedDict()
        self._inverted: tuple[Inversions, Conditioning] | None = None  # made when a prompt names a textual inversion
        #: Tokens that the text encoders read in the last call, padding included: none for a prompt that was known, and
        #: nothing is known where the pipeline encodes for itself.
        self.tokens: int | None = None

    def arguments(self, recipe: Recipe, adapted: Hashable = (), learned: Sequence[Learned] = ()) -> dict[str, Any]:
        """What the pipeline is called with instead of, or as, the prompt. ``adapted``: what the text encoders wear.

        Raises:
            InvalidRecipe: the prompt's syntax cannot be read, or the text encoders cannot do what is asked.
        """
        self.tokens = None
        if not compelled.knows(self._pipe):
            return self._words(recipe)
        is_guided = recipe.guidance_scale > 1 and self._kind != "FluxPipeline"  # which has no negative prompt
        negative = recipe.negative_prompt if is_guided else None
        contents = tuple(one.digest for one in learned)
        key = (recipe.prompt, negative, recipe.prompt_syntax, recipe.clip_skip, adapted, contents)
        is_known = key in self._cache
        embeddings = self._kept(key, lambda: self._encode_any(recipe, is_guided, learned))
        self.tokens = 0 if is_known else _tokens(embeddings)
        return dict(embeddings)

    def remember(self, shell: Any, recipe: Recipe, adapted: Hashable = ()) -> None:
        """Lets a pipeline that encodes for itself do so once for each prompt."""
        encode = getattr(shell, "encode_prompt", None)
        if encode is None or compelled.knows(self._pipe):
            return

        def remembered(*args: Any, **options: Any) -> Any:
            said = [args, sorted(options.items())]
            if not _can_be_key(said):  # pictures, or embeddings that were made already
                return encode(*args, **options)
            key = (type(shell), recipe.guidance_scale, repr(said), adapted)
            return _copied(self._kept(key, lambda: encode(*args, **options)))

        shell.encode_prompt = remembered

    def forget(self) -> None:
        """Empties the cache: its embeddings lie on the device."""
        self._cache.clear()

    def _kept(self, key: Hashable, make: Callable[[], Any]) -> Any:
        if key not in self._cache:
            self._prepare()
            self._cache[key] = make()
            while len(self._cache) > 1 and sum(map(_bytes, self._cache.values())) > CACHED:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return self._cache[key]

    def _words(self, recipe: Recipe) -> dict[str, Any]:
        """The prompts, for a pipeline that encodes for itself; they may ask for nothing but to be read."""
        if recipe.clip_skip:
            raise InvalidRecipe([FieldError("clip_skip", f"a {self._kind} cannot skip layers")])
        words: dict[str, Any] = {"prompt": _unweighted(recipe.prompt, "prompt", recipe.prompt_syntax)}
        if "negative_prompt" not in inspect.signature(self._pipe.__call__).parameters:
            return words
        negative = _unweighted(recipe.negative_prompt, "negative_prompt", recipe.prompt_syntax) or None
        if self._kind.startswith("QwenImage") and recipe.guidance_scale > 1:
            # Its ``guidance_scale`` is for models that have yet to be distilled; without a negative prompt, none acts.
            return words | {"true_cfg_scale": recipe.guidance_scale, "negative_prompt": negative or " "}
        return words | {"negative_prompt": negative}

    def _encode_any(self, recipe: Recipe, is_guided: bool, learned: Sequence[Learned]) -> Embeddings:
        """The prompts, in which textual inversions may be named."""
        if not learned:
            return self._encode(recipe, is_guided)
        if self._inverted is None:
            made = Inversions(self._pipe)
            self._inverted = made, Conditioning(made.shell, self._device)
        inversions, conditioning = self._inverted
        with inversions.known(learned, is_expanded=recipe.prompt_syntax != "compel") as write:
            prompts = {name: write(getattr(recipe, name)) for name in ("prompt", "negative_prompt")}
            return conditioning._encode(msgspec.structs.replace(recipe, **prompts), is_guided)

    def _encode(self, recipe: Recipe, is_guided: bool) -> Embeddings:
        skip = shortened.at_most(self._pipe.text_encoder, recipe.clip_skip)
        recipe = msgspec.structs.replace(recipe, clip_skip=skip)
        if recipe.prompt_syntax == "plain":
            return self._encode_plain(recipe, recipe.prompt, recipe.negative_prompt, is_guided)
        if recipe.prompt_syntax == "a1111":
            return self._encode_emphasised(recipe, is_guided)
        # Where an empty negative prompt means zeros (SDXL), the pipeline makes them itself when it is given none.
        zeros = getattr(self._pipe.config, "force_zeros_for_empty_prompt", False)
        negative = recipe.negative_prompt if is_guided and (recipe.negative_prompt or not zeros) else None
        return compelled.encode(self._pipe, recipe.prompt, negative, recipe.clip_skip)

    def _encode_emphasised(self, recipe: Recipe, is_guided: bool) -> Embeddings:
        prompt = _parsed(recipe.prompt, "prompt")
        if self._kind in _EMPHASISED:
            against = _parsed(recipe.negative_prompt, "negative_prompt") if is_guided else None
            return emphasised.encode(self._pipe, prompt, against, recipe.clip_skip)
        words = _unweighted(recipe.prompt, "prompt", "a1111")
        against_words = _unweighted(recipe.negative_prompt, "negative_prompt", "a1111") if is_guided else ""
        return self._encode_plain(recipe, words, against_words, is_guided)

    def _encode_plain(self, recipe: Recipe, prompt: str, negative: str, is_guided: bool) -> Embeddings:
        """The pipeline's own encoding: as many tokens as it takes, no weights, the layer that clip_skip names."""
        is_sd, is_flux = self._kind == "StableDiffusionPipeline", self._kind == "FluxPipeline"
        if is_flux and recipe.clip_skip:
            raise InvalidRecipe([FieldError("clip_skip", "FLUX takes no layer of CLIP but the last")])
        options = {
            "prompt": prompt,
            "prompt_2": None,
            "prompt_3": None,
            "negative_prompt": negative or None,
            "device": self._device,
            "num_images_per_prompt": 1,
            "do_classifier_free_guidance": is_guided,
            "clip_skip": None if is_sd else recipe.clip_skip or None,
        }
        accepted = inspect.signature(self._pipe.encode_prompt).parameters
        made = self._pipe.encode_prompt(**{name: value for name, value in options.items() if name in accepted})
        found = dict(zip(_ENCODED_BY_FLUX if is_flux else _ENCODED, made, strict=False))
        if is_sd and recipe.clip_skip:
            # diffusers 0.42 looks in this pipeline for a part of CLIP that transformers 5 has renamed.
            found["prompt_embeds"] = _skipping(self._pipe, prompt, recipe.clip_skip, self._device)
        return {name: value for name, value in found.items() if value is not None}


def _skipping(pipe: Any, prompt: str, clip_skip: int, device: torch.device) -> torch.Tensor:
    """What Stable Diffusion's one encoder makes of a prompt without its last layers: [1, 77, channels]."""
    tokens = pipe.tokenizer(prompt, padding="max_length", truncation=True, return_tensors="pt")
    embeds: torch.Tensor = shortened.Shortened(pipe.text_encoder, clip_skip)(
        tokens.input_ids.to(device)
    ).last_hidden_state
    return embeds


def _tokens(embeddings: Embeddings) -> int:
    """That were read to make these."""
    return sum(embeddings[name].shape[1] for name in ("prompt_embeds", "negative_prompt_embeds") if name in embeddings)


def _parsed(prompt: str, field: str) -> emphasis.Parsed:
    """A prompt in AUTOMATIC1111's syntax; what a style or a trigger word adds to it has to be in it too."""
    try:
        return emphasis.parse(prompt)
    except emphasis.SyntaxProblem as problem:
        raise InvalidRecipe([FieldError(field, str(problem))]) from None


def _unweighted(prompt: str, field: str, syntax: PromptSyntax) -> str:
    """The words of a prompt, for text encoders whose embeddings cannot be weighted in that syntax."""
    if syntax == "a1111":
        parsed = _parsed(prompt, field)
        words, is_weighted = parsed.text, parsed.is_weighted
    else:
        words, is_weighted = prompt, syntax == "compel" and not compelled.is_plain(compelled.parsed(prompt, field))
    if is_weighted:
        message = f"this model takes no weights in this syntax; prompt_syntax {'plain'!r} takes the prompt as it is"
        raise InvalidRecipe([FieldError(field, message)])
    return words


def _can_be_key(value: Any) -> bool:
    """Whether it is nothing but texts, numbers and the like, so that what it looks like is what it is."""
    if isinstance(value, list | tuple):
        return all(_can_be_key(item) for item in value)
    return value is None or isinstance(value, str | int | float | torch.device | torch.dtype)


def _bytes(value: Any) -> int:
    """Of all tensors in it."""
    if isinstance(value, torch.Tensor):
        return int(value.numel() * value.element_size())
    if isinstance(value, dict):
        return sum(map(_bytes, value.values()))
    return sum(map(_bytes, value)) if isinstance(value, list | tuple) else 0


def _copied(value: Any) -> Any:
    """With tensors and lists of its own: a pipeline may change what it has made."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    return type(value)(_copied(item) for item in value) if isinstance(value, list | tuple) else value
