"""Owns the examples: a value of each type, made by the code that makes the real ones where there is such."""

import types
import typing
from typing import Any

import msgspec

from daguerre import errors
from daguerre.answers import WireJob
from daguerre.errors import DaguerreError, FieldError, InvalidRecipe
from daguerre.http import wire
from daguerre.http.document import bodies
from daguerre.job import Image, Job, Status, Timings
from daguerre.recipe import Draft, LoraUse, LoraWish, Recipe

_ID = "0197f0a4-6f3e-7c11-9d2a-5b8f3c6a1e20"
_RECIPE = Recipe(
    mode="txt2img",
    prompt="a red circle on a blue background",
    negative_prompt="",
    model="demo-xl",
    style=None,
    width=256,
    height=256,
    steps=20,
    guidance_scale=5.0,
    seed=3,
    count=1,
    scheduler="euler",
    prompt_syntax="compel",
    clip_skip=0,
    strength=None,
    format="png",
    quality=90,
    reproducible=False,
    metadata={"order": 7},
    loras=(LoraUse("papercut", 0.8),),
)
_IMAGE = Image("20261121_080000_demo-xl_3c6a1e20.png", 3, 256, 256, "png", 58_213, "5f2b" * 16)
JOB = Job(
    id=_ID,
    recipe=_RECIPE,
    created_at=1_795_248_000.0,
    attempts=1,
    status=Status.SUCCEEDED,
    started_at=1_795_248_000.1,
    finished_at=1_795_248_002.3,
    step=20,
    steps=20,
    images=(_IMAGE,),
    timings=Timings(queue=0.1, encode=0.04, denoise=2.0, decode=0.1, png=0.01),
)

#: Examples that say more than one made of the type alone.
TOLD: dict[type, Any] = {
    WireJob: wire.wire_job(JOB, []),
    Recipe: _RECIPE,
    Draft: {"prompt": _RECIPE.prompt, "seed": 3, "width": 256, "height": 256, "steps": 20},
    LoraWish: LoraWish("papercut", 0.8),
    FieldError: FieldError("steps", "expected `int` <= 150"),
    bodies.ModelName: {"model_id": "demo-xl"},
    bodies.LoraName: {"name": "papercut"},
    bodies.ImagesRequest: {"prompt": _RECIPE.prompt, "size": "256x256", "response_format": "b64_json"},
    bodies.EditForm: {"prompt": "a blue square", "image": "…", "strength": 0.6},
    bodies.VariationForm: {"image": "…", "n": 2},
    bodies.SdTxt2Img: {"prompt": _RECIPE.prompt, "steps": 20, "width": 256, "height": 256},
    bodies.SdImg2Img: {"prompt": _RECIPE.prompt, "init_images": ["iVBORw0KGgo…"], "denoising_strength": 0.6},
}


def example(kind: Any) -> Any:
    """A value of the type, as JSON has it: told above, or made field by field."""
    kind = _plain(kind)
    if kind in TOLD:
        return msgspec.to_builtins(TOLD[kind])
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        config, hints = kind.__struct_config__, typing.get_type_hints(kind)
        needed = [field for field in msgspec.structs.fields(kind) if field.required]
        made = {field.encode_name: example(hints[field.name]) for field in needed}
        return made if config.tag is None else {config.tag_field: config.tag, **made}
    return _value(kind)


def _plain(kind: Any) -> Any:
    """The type without what may be said beside it, and without its absence."""
    if typing.get_origin(kind) is typing.Annotated:
        return _plain(typing.get_args(kind)[0])
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return _plain(typing.get_args(kind)[0])
    return kind


def _value(kind: Any) -> Any:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return inner[0]
    if origin is tuple and inner[-1] is not ...:
        return [example(each) for each in inner]
    if origin in (list, tuple):
        return [example(inner[0])]
    if kind is Status:
        return Status.QUEUED.value
    return {int: 1, float: 0.5, bool: False, str: "text"}.get(kind, {})


def error(kind: type[DaguerreError]) -> DaguerreError:
    """An error of that kind, as it might be met."""
    match kind:
        case errors.InvalidRecipe:
            return InvalidRecipe([TOLD[FieldError]])
        case errors.ModelNotFound:
            return errors.ModelNotFound("sdxl", ["demo-xl"])
        case errors.LoraNotFound:
            return errors.LoraNotFound("papercutt", ["papercut"])
        case errors.ModelNotPulled:
            return errors.ModelNotPulled("sdxl-base")
        case errors.NoPicture:
            return errors.NoPicture(errors.JobTimeout())
        case errors.Unauthenticated:
            return errors.Unauthenticated("none")
        case errors.Forbidden:
            return errors.Forbidden(scopes=("models",))
        case errors.PromptRefused:
            return errors.PromptRefused("violence")
        case errors.DaguerreError:
            return DaguerreError("something went wrong here; the server's log says what")
    return kind()


#: The answer's request id in examples of errors.
REQUEST_ID = _ID
