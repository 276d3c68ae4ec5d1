"""Owns the lists of AUTOMATIC1111's API: models, samplers, styles and what its clients look for at their start."""

import os
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from daguerre.http.dialects.a1111 import spoken
from daguerre.http.document.bodies import (
    SdEmbeddings,
    SdLora,
    SdMemory,
    SdModel,
    SdRam,
    SdSampler,
    SdScheduler,
    SdScripts,
    SdStyle,
)
from daguerre.http.exchange import as_json, client_of
from daguerre.http.state import State
from daguerre.samplers import DIFFUSION

#: Lists of what is not here.
ABSENT = (
    "sd-vae",
    "sd-modules",
    "upscalers",
    "latent-upscale-modes",
    "face-restorers",
    "realesrgan-models",
    "hypernetworks",
    "script-info",
)
#: What happens by itself: the catalogue is always fresh.
FRESH = ("refresh-checkpoints", "refresh-embeddings", "refresh-loras", "refresh-vae")
#: The same: models come and go as they are needed.
PLACED = ("unload-checkpoint", "reload-checkpoint")
#: The schedules of sigmas, and the names that theirs have.
SCHEDULES = (("automatic", "Automatic"), ("karras", "Karras"))


def _models(request: Request[State]) -> Any:
    return [
        # A path would be nobody's business.
        SdModel(title=model.name, model_name=model.name, hash=None, sha256=None, filename=model.name, config=None)
        for model in request.state["service"].catalog.models
        if model.is_here
    ]


def _samplers(_request: Request[State]) -> Any:
    return [SdSampler(name=sampler.label, aliases=[name], options={}) for name, sampler in DIFFUSION.items()]


def _schedulers(_request: Request[State]) -> Any:
    return [
        SdScheduler(name=name, label=label, aliases=None, default_rho=-1.0, need_inner_model=False)
        for name, label in SCHEDULES
    ]


def _styles(request: Request[State]) -> Any:
    styles = request.state["service"].catalog.styles
    return [SdStyle(name, style.prompt, style.negative_prompt) for name, style in styles.items()]


def _memory(_request: Request[State]) -> Any:
    page = os.sysconf("SC_PAGE_SIZE")
    total, free = page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
    return SdMemory(ram=SdRam(free=free, used=total - free, total=total), cuda={})


def _loras(request: Request[State]) -> Any:
    return [
        SdLora(name=lora.name, alias=lora.name, path=lora.name, metadata={}) for lora in request.state["loras"].loras
    ]


def _none(_request: Request[State]) -> Any:
    return []


def _embeddings(request: Request[State]) -> Any:
    """Theirs are loaded where they fit the present checkpoint; each has the width of its last vectors."""
    service = request.state["service"]
    model = service.catalog.find(request.state["checkpoints"].get(client_of(request)))
    found = SdEmbeddings(loaded={}, skipped={})
    for one in service.sources.embeddings.embeddings:
        about = {"step": None, "sd_checkpoint": None, "sd_checkpoint_name": None}
        place = found.loaded if one.misfit(model) is None else found.skipped
        place[one.name] = about | {"shape": one.widths[-1], "vectors": one.vectors}
    return found


def _scripts(_request: Request[State]) -> Any:
    return SdScripts(txt2img=[], img2img=[])


def _nothing(_request: Request[State]) -> Any:
    return None


def _empty(_request: Request[State]) -> Any:
    return {}


def _route(method: str, name: str, content: Callable[[Request[State]], Any]) -> Route:
    async def answer(request: Request[State]) -> Response:
        return as_json(content(request))

    return Route(f"/sdapi/v1/{name}", spoken(answer), methods=[method])


ROUTES: list[BaseRoute] = [
    _route("GET", "sd-models", _models),
    _route("GET", "samplers", _samplers),
    _route("GET", "schedulers", _schedulers),
    _route("GET", "prompt-styles", _styles),
    _route("GET", "memory", _memory),
    _route("GET", "loras", _loras),
    _route("GET", "embeddings", _embeddings),
    _route("GET", "cmd-flags", _empty),
    _route("GET", "scripts", _scripts),
    *(_route("GET", name, _none) for name in ABSENT),
    *(_route("POST", name, _nothing) for name in FRESH),
    *(_route("POST", name, _empty) for name in PLACED),
]
