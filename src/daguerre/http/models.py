"""Owns the routes of models: what there is, where it is, and loading and unloading it."""

from typing import get_args

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from daguerre import recipe
from daguerre.answers import (
    Bounds,
    Capabilities,
    ModeDefaults,
    ModelDefaults,
    ModelList,
    ModelProgress,
    SchedulerList,
    StyleList,
    WireEmbedding,
    WireIpAdapter,
    WireModel,
    WireScheduler,
    WireStyle,
)
from daguerre.catalog import FAMILIES, Model
from daguerre.errors import FieldError, InvalidRecipe
from daguerre.http import wire
from daguerre.http.exchange import as_json
from daguerre.http.state import State
from daguerre.imaging import MAX_PIXELS
from daguerre.job import Failure
from daguerre.samplers import DIFFUSION, FLOW, samplers_for


async def models(request: Request[State]) -> Response:
    """``GET /v1/models``: all models of the catalogue, those that are not on this machine too."""
    found = request.state["service"].catalog.models
    return as_json(ModelList("list", [_wire(request, model) for model in found]))


async def model(request: Request[State]) -> Response:
    """``GET /v1/models/{id}``: one model; while it is loaded or pulled, how far that is."""
    return as_json(_wire(request, request.state["service"].catalog.find(request.path_params["id"])))


async def load(request: Request[State]) -> Response:
    """``POST /v1/models/load``: 202 while it is on its way to the device, 200 when it is there."""
    found, is_there = request.state["models"].load(await _named(request))
    headers = {"location": f"/v1/models/{found.name}"}
    return as_json(_wire(request, found), 200 if is_there else 202, headers)


async def unload(request: Request[State]) -> Response:
    """``POST /v1/models/unload``: answers when its memory is free; 409 while jobs need it."""
    return as_json(_wire(request, await request.state["models"].unload(await _named(request))))


async def schedulers(_request: Request[State]) -> Response:
    """``GET /v1/schedulers``: their names, AUTOMATIC1111's names for them, and the families that can use each."""
    labels = {name: sampler.label for name, sampler in (DIFFUSION | FLOW).items()}
    usable = {family.name: samplers_for(family.scheduler) for family in FAMILIES.values()}
    data = [
        WireScheduler(name, labels[name], [family for family, known in usable.items() if name in known])
        for name in sorted(labels)
    ]
    return as_json(SchedulerList("list", data))


async def styles(request: Request[State]) -> Response:
    """``GET /v1/styles``: their names, and the words that each puts around a prompt."""
    found = request.state["service"].catalog.styles
    data = [WireStyle(name, s.prompt, s.negative_prompt, s.description) for name, s in found.items()]
    return as_json(StyleList("list", data))


async def capabilities(request: Request[State]) -> Response:
    """``GET /v1/capabilities``: what this server can do, and what bounds it."""
    service, settings = request.state["service"], request.state["settings"]
    here = [model for model in service.catalog.models if model.is_here]
    body = Capabilities(
        modes={mode: [model.name for model in here if mode in model.modes] for mode in get_args(recipe.Mode)},
        defaults={
            mode: _mode_defaults(model, mode) for model in here if _is_default(request, model) for mode in model.modes
        },
        formats=get_args(recipe.Format),
        prompt_syntaxes=get_args(recipe.PromptSyntax),
        reference_images=list(service.sources.references.names),
        ip_adapters=[
            WireIpAdapter(one.name, one.family, one.kind, one.default_scale, one.bytes, one.description)
            for one in service.sources.references.adapters
        ],
        embeddings=[
            WireEmbedding(one.name, one.vectors, tuple(one.widths)) for one in service.sources.embeddings.embeddings
        ],
        limits=Bounds(
            count=recipe.MAX_COUNT,
            loras=recipe.MAX_LORAS,
            reference_images=recipe.MAX_REFERENCES,
            side=(recipe.MIN_SIDE, recipe.MAX_SIDE),
            seed=recipe.MAX_SEED,
            metadata_bytes=recipe.METADATA_BYTES,
            upload_pixels=MAX_PIXELS,
            body_bytes=settings.body_limit,
            queue=service.limits.queue,
        ),
    )
    return as_json(body)


def _is_default(request: Request[State], model: Model) -> bool:
    return model.name == request.state["settings"].default_model


def _defaults(model: Model) -> ModelDefaults:
    width, height = model.native_size
    return ModelDefaults(width, height, model.steps, model.guidance_scale, model.negative_prompt, model.scheduler)


def _mode_defaults(model: Model, mode: str) -> ModeDefaults:
    draft = recipe.Draft(prompt="any")
    return ModeDefaults(
        **msgspec.structs.asdict(_defaults(model)),
        model=model.name,
        strength=None if mode == "txt2img" else recipe.STRENGTH,
        count=draft.count,
        format=recipe.FORMAT,
        quality=draft.quality,
    )


async def _named(request: Request[State]) -> str:
    """The one field that these routes take."""
    fields = wire.read_object(request.headers.get("content-type", ""), await request.body())
    errors = [FieldError(name[:80], "unknown field") for name in fields if name not in ("model_id", "model")]
    name = fields.get("model_id", fields.get("model"))
    if not isinstance(name, str):
        errors.append(FieldError("model_id", "required: the name of a model"))
    if errors:
        raise InvalidRecipe(errors)
    return str(name)


def _wire(request: Request[State], model: Model) -> WireModel:
    state = request.state
    status = state["models"].status(model)
    ready = state["dispatch"].state.ready
    return WireModel(
        id=model.name,
        object="model",
        created=0,  # with owned_by: what OpenAI's clients look for
        owned_by="daguerre",
        name=model.name,
        description=model.description,
        family=model.family,
        modes=model.modes,
        default=_is_default(request, model),
        state=state["models"].place(model),
        native_size=model.native_size,
        size_factor=model.size_factor,
        max_area=model.max_area,
        bytes=model.elements * (4 if ready is None or ready.dtype == "float32" else 2),
        defaults=_defaults(model),
        schedulers=model.schedulers,
        progress=ModelProgress(status.stage, status.done, status.total) if status.stage else None,
        error=Failure(status.error.code, status.error.message) if status.error is not None else None,
    )
