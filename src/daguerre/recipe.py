"""Owns the recipe: what to paint. A draft is what a client asked for; a recipe is a draft with nothing left open."""

import math
import re
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Protocol

import msgspec
from msgspec import Meta

from daguerre import emphasis
from daguerre.errors import FieldError, InvalidRecipe

Format = Literal["png", "jpeg", "webp"]
PromptSyntax = Literal["compel", "a1111", "plain"]
Mode = Literal["txt2img", "img2img", "inpaint"]

MAX_SEED = 2**63 - 1
MAX_COUNT = 8
RANDOM_SEEDS = 2**32  # random seeds stay below this, so that every tool can hold them
METADATA_BYTES = 4096
STRENGTH = 0.75
FORMAT: Format = "png"
MIN_SIDE, MAX_SIDE = 64, 2048

#: Other tools' names for our fields.
ALIASES = {
    "model_id": "model",
    "num_inference_steps": "steps",
    "n": "count",
    "num_images": "count",
    "sampler": "scheduler",
    "init_image": "image",
    "mask_image": "mask",
}

Side = Annotated[int, Meta(ge=MIN_SIDE, le=MAX_SIDE)]

MAX_LORAS = 4
MAX_REFERENCES = 4


class LoraWish(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A LoRA as a client asks for it; without a weight it has the catalogue's."""

    name: Annotated[str, Meta(min_length=1, max_length=200)]
    weight: Annotated[float, Meta(ge=-2, le=2)] | None = None


class LoraUse(msgspec.Struct, frozen=True):
    """A LoRA of a recipe."""

    name: str
    weight: float


class ReferenceWish(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A reference image as a client asks for it: inline or by name; without a scale it has the IP-Adapter's."""

    image: str | None = None
    name: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    scale: Annotated[float, Meta(ge=0, le=1)] | None = None


class ReferenceUse(msgspec.Struct, frozen=True):
    """A reference image of a recipe; one without a name came with the request."""

    name: str | None
    scale: float


class Draft(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A recipe as a client asked for it: what is absent follows from the model. The bounds here are the wire's."""

    prompt: Annotated[str, Meta(min_length=1, max_length=10_000, description="What the picture shows.")]
    negative_prompt: Annotated[str, Meta(max_length=10_000, description="What it must not show.")] | None = None
    model: Annotated[str, Meta(max_length=200, description="A name from the catalogue.")] | None = None
    style: Annotated[str, Meta(max_length=200, description="A style from the catalogue.")] | None = None
    width: Side | None = None
    height: Side | None = None
    steps: Annotated[int, Meta(ge=1, le=150, description="Denoising steps.")] | None = None
    guidance_scale: Annotated[float, Meta(ge=0, le=30, description="How closely to follow the prompt.")] | None = None
    seed: Annotated[int, Meta(ge=-1, le=MAX_SEED, description="-1 or absent: random.")] | None = None
    count: Annotated[int, Meta(ge=1, le=MAX_COUNT, description="Pictures; picture i has seed + i.")] = 1
    scheduler: Annotated[str, Meta(max_length=100)] | None = None
    loras: Annotated[tuple[LoraWish, ...], Meta(max_length=MAX_LORAS, description="Adapters, and how strongly.")] = ()
    prompt_syntax: PromptSyntax = "compel"
    clip_skip: Annotated[int, Meta(ge=0, le=4)] = 0
    image: Annotated[str, Meta(description="Base64 of a PNG, JPEG or WebP to start from.")] | None = None
    strength: Annotated[float, Meta(ge=0, le=1, description="How much of the image is painted anew.")] | None = None
    mask: Annotated[str, Meta(description="Base64; white is painted anew, black kept.")] | None = None
    reference_images: Annotated[
        tuple[ReferenceWish, ...], Meta(max_length=MAX_REFERENCES, description="Pictures to be inspired by.")
    ] = ()
    ip_strength: Annotated[float, Meta(ge=0, le=1, description="Of an only reference image.")] | None = None
    ip_adapter: Annotated[str, Meta(max_length=200, description="Which of several that fit.")] | None = None
    format: Format | None = None
    quality: Annotated[int, Meta(ge=1, le=100, description="Of JPEG and WebP.")] = 90
    reproducible: bool = False
    preview_every: Annotated[int, Meta(ge=0, le=150, description="Steps between previews on streams; 0: none.")] = 0
    webhook: Annotated[str, Meta(max_length=2000, description="Where the job is posted when it ends.")] | None = None
    metadata: dict[str, Any] = {}

    @property
    def mode(self) -> Mode:
        """What is to be done, which follows from the images given."""
        if self.image is None:
            return "txt2img"
        return "img2img" if self.mask is None else "inpaint"

    @property
    def has_pictures(self) -> bool:
        """Whether any picture comes with it."""
        return self.image is not None or any(wish.image is not None for wish in self.reference_images)


class Recipe(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What to paint, complete: the same recipe on the same machine gives the same picture. Sizes are in pixels."""

    mode: Mode
    prompt: str
    negative_prompt: str
    model: str
    style: str | None
    width: int
    height: int
    steps: int
    guidance_scale: float
    seed: int
    count: int
    scheduler: str
    prompt_syntax: PromptSyntax
    clip_skip: int
    strength: float | None
    format: Format
    quality: int
    reproducible: bool
    preview_every: int = 0
    metadata: dict[str, Any]
    loras: tuple[LoraUse, ...] = ()
    reference_images: tuple[ReferenceUse, ...] = ()
    ip_adapter: str | None = None


class Defaults(Protocol):
    """What a recipe needs to know of the model that will paint it."""

    @property
    def name(self) -> str: ...
    @property
    def native_size(self) -> tuple[int, int]: ...
    @property
    def size_factor(self) -> int: ...
    @property
    def max_area(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def guidance_scale(self) -> float: ...
    @property
    def negative_prompt(self) -> str: ...
    @property
    def scheduler(self) -> str: ...
    @property
    def schedulers(self) -> tuple[str, ...]: ...


class Adapting(Protocol):
    """What a recipe needs to know of a LoRA that it names."""

    @property
    def default_weight(self) -> float: ...
    @property
    def trigger_words(self) -> tuple[str, ...]: ...


def parse(fields: Mapping[str, Any]) -> Draft:
    """Checks the fields of a request one by one.

    Raises:
        InvalidRecipe: naming every field that is unknown, missing or out of bounds.
    """
    errors: list[FieldError] = []
    given: dict[str, Any] = {}
    for sent, value in _joined_lora(_split_resolution(fields, errors), errors).items():
        name = ALIASES.get(sent, sent)
        if name not in _TYPES:
            errors.append(FieldError(_shown(sent), "unknown field"))
        elif value is None and name != "prompt":
            continue  # an explicit null means the same as an absent field
        elif name in given:
            errors.append(FieldError(sent, f"given twice, under two of its names; the field is {name!r}"))
        else:
            given[name] = _convert(sent, value, _TYPES[name], errors)
    if "prompt" not in given:
        errors.append(FieldError("prompt", "required"))
    if len(msgspec.json.encode(given.get("metadata") or {})) > METADATA_BYTES:
        errors.append(FieldError("metadata", f"larger than {METADATA_BYTES} bytes of JSON"))
    if given.get("prompt_syntax") == "a1111":
        given = _emphasised(given, errors)
    given = _referring(given, errors)
    if errors:
        raise InvalidRecipe(errors)
    if given.get("image") is None:
        errors = [FieldError(name, "needs an image") for name in ("mask", "strength") if given.get(name) is not None]
        if errors:
            raise InvalidRecipe(errors)
    return Draft(**{name: value for name, value in given.items() if value is not None})


def resolve(
    draft: Draft,
    model: Defaults,
    random_seed: int,
    styles: Mapping[str, "Style"],
    image_size: tuple[int, int] | None = None,
    loras: Mapping[str, Adapting] = types.MappingProxyType({}),
) -> Recipe:
    """Fills what the draft leaves open from the model's defaults, and checks what depends on the model.

    ``loras``: all that the draft names. Their trigger words are added to the prompt where it does not have them.
    A picture that starts from an image has that image's size, ``image_size`` in pixels, as far as the model can.

    Raises:
        InvalidRecipe: naming every field that this model cannot do.
    """
    errors: list[FieldError] = []
    default_size = model.native_size if image_size is None else _fitted(image_size, model)
    width, height = draft.width or default_size[0], draft.height or default_size[1]
    for name, side in (("width", width), ("height", height)):
        if side % model.size_factor:
            errors.append(FieldError(name, f"must be a multiple of {model.size_factor} for {model.name!r}"))
    if width * height > model.max_area:
        errors.append(
            FieldError("width", f"{width}×{height} is more than the {model.max_area} pixels that {model.name!r} does")
        )
    scheduler = draft.scheduler or model.scheduler
    if scheduler not in model.schedulers:
        errors.append(FieldError("scheduler", f"must be one of {', '.join(model.schedulers)} for {model.name!r}"))
    seed = random_seed if draft.seed in (None, -1) else draft.seed
    assert seed is not None
    if seed + draft.count - 1 > MAX_SEED:
        errors.append(FieldError("seed", f"seed + count - 1 must be at most {MAX_SEED}"))
    if draft.style is not None and draft.style not in styles:
        errors.append(FieldError("style", f"must be one of {', '.join(styles) or 'none'}"))
    steps = model.steps if draft.steps is None else draft.steps
    strength = None if draft.image is None else (STRENGTH if draft.strength is None else draft.strength)
    if errors:
        raise InvalidRecipe(errors)
    negative = model.negative_prompt if draft.negative_prompt is None else draft.negative_prompt
    prompt = _triggered(draft.prompt, [word for wish in draft.loras for word in loras[wish.name].trigger_words])
    if draft.style is not None:
        prompt, negative = styles[draft.style].applied(prompt, negative)
    return Recipe(
        mode=draft.mode,
        prompt=prompt,
        negative_prompt=negative,
        model=model.name,
        style=draft.style,
        width=width,
        height=height,
        steps=steps,
        guidance_scale=model.guidance_scale if draft.guidance_scale is None else draft.guidance_scale,
        seed=seed,
        count=draft.count,
        scheduler=scheduler,
        prompt_syntax=draft.prompt_syntax,
        clip_skip=draft.clip_skip,
        strength=strength,
        format=draft.format or FORMAT,
        quality=draft.quality,
        reproducible=draft.reproducible,
        preview_every=draft.preview_every,
        metadata=draft.metadata,
        loras=tuple(
            LoraUse(wish.name, loras[wish.name].default_weight if wish.weight is None else wish.weight)
            for wish in draft.loras
        ),
    )


def _triggered(prompt: str, words: list[str]) -> str:
    """The prompt with the trigger words that it lacks, each once."""
    for word in words:
        if word.casefold() not in prompt.casefold():
            prompt = f"{prompt}, {word}"
    return prompt


class Style(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Words that a style puts around a prompt; ``{prompt}`` stands for the user's own."""

    prompt: str = "{prompt}"
    negative_prompt: str = ""
    description: str = ""

    def applied(self, prompt: str, negative_prompt: str) -> tuple[str, str]:
        """The prompt and the negative prompt with the style's words."""
        negative = ", ".join(part for part in (negative_prompt, self.negative_prompt) if part)
        return self.prompt.replace("{prompt}", prompt), negative


def _fitted(size: tuple[int, int], model: Defaults) -> tuple[int, int]:
    """The nearest size of about the same shape that the model can paint."""
    scale = min(1.0, math.sqrt(model.max_area / (size[0] * size[1])), MAX_SIDE / max(size))
    factor = model.size_factor
    lowest = -(-MIN_SIDE // factor) * factor
    width, height = (max(lowest, int(side * scale) // factor * factor) for side in size)
    return width, height


_RESOLUTION = re.compile(r"(\d{1,5})[x×](\d{1,5})")


def _split_resolution(fields: Mapping[str, Any], errors: list[FieldError]) -> dict[str, Any]:
    """Replaces ``resolution: "1024x1536"`` by width and height."""
    rest = dict(fields)
    resolution = rest.pop("resolution", None)
    if resolution is None:
        return rest
    match = _RESOLUTION.fullmatch(resolution) if isinstance(resolution, str) else None
    if match is None:
        errors.append(FieldError("resolution", 'must look like "1024x1536"'))
    elif rest.get("width") is not None or rest.get("height") is not None:
        errors.append(FieldError("resolution", "give either resolution, or width and height"))
    else:
        rest["width"], rest["height"] = int(match[1]), int(match[2])
    return rest


def _joined_lora(fields: dict[str, Any], errors: list[FieldError]) -> dict[str, Any]:
    """Replaces ``lora_path`` and ``lora_scale`` by ``loras`` with one entry."""
    short: dict[str, Any] = {name: fields.pop(name) for name in ("lora_path", "lora_scale") if name in fields}
    if short.get("lora_path") is None:
        errors += [FieldError(name, "needs lora_path") for name, value in short.items() if value is not None]
    elif fields.get("loras") is not None:
        errors.append(FieldError("lora_path", "give either loras, or one by lora_path"))
    else:
        for name, own in (("lora_path", "name"), ("lora_scale", "weight")):
            _convert(name, short.get(name), _LORA_TYPES[own], errors)
        if not any(error.field in short for error in errors):
            fields["loras"] = [{"name": short["lora_path"], "weight": short.get("lora_scale")}]
    return fields


def _emphasised(given: dict[str, Any], errors: list[FieldError]) -> dict[str, Any]:
    """Checks prompts in AUTOMATIC1111's syntax, and moves the LoRAs that the prompt names to their field."""
    loras = list(given.get("loras") or ())
    read: dict[str, Any] = {}
    for name in ("prompt", "negative_prompt"):
        try:
            parsed = emphasis.parse(given.get(name) or "")
        except emphasis.SyntaxProblem as problem:
            errors.append(FieldError(name, str(problem)))
            continue
        if parsed.loras:
            read[name] = parsed.rest
            loras += [LoraWish(tag.name, tag.weight) for tag in parsed.loras]
        if parsed.loras and name == "negative_prompt":
            errors.append(FieldError(name, "LoRAs are named in the prompt"))
    if len(loras) > MAX_LORAS:
        errors.append(FieldError("loras", f"with those that the prompt names there are more than {MAX_LORAS}"))
    return given | read | {"loras": tuple(loras)}


def _referring(given: dict[str, Any], errors: list[FieldError]) -> dict[str, Any]:
    """Checks the reference images, and gives an only one the strength that stands beside it."""
    wishes: tuple[ReferenceWish, ...] = given.get("reference_images") or ()
    for place, wish in enumerate(wishes):
        if (wish.image is None) == (wish.name is None):
            errors.append(FieldError(f"reference_images[{place}]", "give either an image or a name"))
    strength = given.get("ip_strength")
    if given.get("ip_adapter") is not None and not wishes and strength is None:
        errors.append(FieldError("ip_adapter", "needs reference_images or ip_strength"))
    if strength is None or not wishes:
        return given
    if len(wishes) > 1 or wishes[0].scale is not None:
        errors.append(FieldError("ip_strength", "goes with one reference image that has no scale of its own"))
    return given | {"reference_images": (msgspec.structs.replace(wishes[0], scale=strength), *wishes[1:])}


_LORA_TYPES: dict[str, Any] = typing.get_type_hints(LoraWish, include_extras=True)
_TYPES: dict[str, Any] = typing.get_type_hints(Draft, include_extras=True)


def _convert(name: str, value: Any, kind: Any, errors: list[FieldError]) -> Any:
    """The value as its field's type; what is wrong with it goes to ``errors``."""
    if value is None and name != "prompt":
        return None
    try:
        converted = msgspec.convert(value, kind)
        _encode_text(converted)
    except msgspec.ValidationError as error:
        errors.append(FieldError(name, _plain(str(error), kind)))
    except UnicodeEncodeError:
        errors.append(FieldError(name, "is not valid Unicode text"))
    else:
        return converted
    return None


def _encode_text(value: Any) -> None:
    """Raises UnicodeEncodeError for half of a surrogate pair, which JSON can spell and UTF-8 cannot."""
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, dict | tuple):
        msgspec.json.encode(value).decode().encode()


def _plain(message: str, kind: Any) -> str:
    """msgspec's message without its JSON path, in lower case, with the allowed values of a choice."""
    message = message.split(" - at `")[0]
    choices = _choices(kind)
    if choices and "Invalid enum value" in message:
        return f"must be one of {', '.join(choices)}"
    return message[:1].lower() + message[1:]


def _choices(kind: Any) -> tuple[str, ...]:
    if typing.get_origin(kind) is Literal:
        return typing.get_args(kind)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return next((found for arm in typing.get_args(kind) if (found := _choices(arm))), ())
    return ()


def _shown(name: str) -> str:
    """A field name that somebody else chose, cut to what is fit to print."""
    return name[:80].encode("unicode_escape").decode("ascii")
