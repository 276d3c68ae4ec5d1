"""Owns AUTOMATIC1111's API under /sdapi/v1: painting, progress, interrupting and the choice of a checkpoint.

Fields that it does not know are ignored, as real clients rely on. Progress is of the caller's own jobs, and so is what
an interrupt ends.
"""

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from PIL import Image, ImageChops
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from daguerre import imaging, infotext, recipe
from daguerre.errors import DaguerreError, FieldError, InvalidRecipe, JobCancelled, ModelNotFound
from daguerre.http import problems, wire
from daguerre.http.document.bodies import SdError, SdInfo, SdOptions, SdProgress, SdState
from daguerre.http.exchange import as_json, client_of, is_urgent, paint, read_pictures
from daguerre.http.state import State
from daguerre.job import Job, Status
from daguerre.jobs.inputs import Inputs, decoded, unwrapped
from daguerre.recipe import Draft
from daguerre.samplers import DIFFUSION, FLOW
from daguerre.version import __version__

Endpoint = Callable[[Request[State]], Awaitable[Response]]

#: Our names of what they call otherwise.
FIELDS = {
    "prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "width": "width",
    "height": "height",
    "steps": "steps",
    "cfg_scale": "guidance_scale",
    "seed": "seed",
    "denoising_strength": "strength",
}
#: Theirs of what is not said in one field, for errors.
THEIRS = {"count": "batch_size", "scheduler": "sampler_name"}
#: Their names of the schedules of sigmas that change which sampler of ours is meant.
SCHEDULES = {"karras": " Karras"}
#: What theirs says of some wrong input, and the status that it does so with.
OWN_WORDS = {"Sampler not found": 400, "Init image not found": 404}
#: What FastAPI reads as yes in a query.
TRUE = ("true", "1", "on", "yes")
#: Seconds that an answer waits for a preview of this moment, before it gives the one before.
LOOK = 0.5
#: Clients whose choice of a checkpoint is remembered.
MAX_CLIENTS = 1024


def spoken(endpoint: Endpoint) -> Endpoint:
    """The endpoint, whose errors have the form that AUTOMATIC1111's have."""

    async def answer(request: Request[State]) -> Response:
        began = time.perf_counter()
        try:
            response = await endpoint(request)
        except DaguerreError as error:
            response = failure(error, request.scope.get("request_id", ""))
        response.headers["x-process-time"] = f"{time.perf_counter() - began:.4f}"
        return response

    return answer


def failure(error: DaguerreError, request_id: str) -> Response:
    """The error as AUTOMATIC1111 tells its own."""
    plain = problems.answer(error, request_id)
    status, detail = plain.status_code, error.message
    said = error.errors[0].message.split(";")[0] if isinstance(error, InvalidRecipe) else ""
    if said in OWN_WORDS:
        status, detail = OWN_WORDS[said], said
    body = SdError(error=type(error).__name__, detail=detail, body="", errors=error.message)
    kept = {name: value for name, value in plain.headers.items() if name == "retry-after"}
    return as_json(body, status, kept | problems.challenge(error, "Basic"))


async def txt2img(request: Request[State]) -> Response:
    """``POST /sdapi/v1/txt2img``."""
    fields = await _fields(request)
    return await _painted(request, fields, None)


async def img2img(request: Request[State]) -> Response:
    """``POST /sdapi/v1/img2img``: with a mask, what is white in it is painted anew."""
    fields = await _fields(request)
    loop = asyncio.get_running_loop()
    inputs = await loop.run_in_executor(request.state["codec"], _inputs, fields)
    return await _painted(request, fields, inputs)


async def _fields(request: Request[State]) -> dict[str, Any]:
    body, codec = await request.body(), request.state["codec"]
    content_type = request.headers.get("content-type", "")
    return await asyncio.get_running_loop().run_in_executor(codec, _read, content_type, body)


def _read(content_type: str, body: bytes) -> dict[str, Any]:
    """The fields of a body. All are told again in the answer, those that mean nothing here as well."""
    fields = wire.read_object(content_type, body)
    for name, value in fields.items():
        try:
            json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        except ValueError:
            told = "holds a number that is too large, or what is no valid Unicode text"
            raise InvalidRecipe([FieldError(name[:80], told)]) from None
    return fields


async def _painted(request: Request[State], fields: Mapping[str, Any], inputs: Inputs | None) -> Response:
    draft = _draft(fields, inputs, _checkpoint(request, fields))
    urgent = is_urgent(request)
    job = await request.state["service"].submit(draft, inputs, client_of(request), is_urgent=urgent)
    try:
        job = await paint(request, job)
    except JobCancelled:
        # Theirs answers an interrupted request with what there is; of ours there is nothing, and no error either.
        job = request.state["service"].find(job.id) or job
    pictures = await read_pictures(request, job) if job.status is Status.SUCCEEDED else []
    wants_images = fields.get("send_images", True) is not False
    hidden = {} if inputs is None or fields.get("include_init_images") is True else {"init_images": None, "mask": None}
    body = {
        "images": [base64.b64encode(picture).decode() for picture in pictures] if wants_images else [],
        "parameters": {**fields, **hidden},
        "info": json.dumps(_info(job)),
    }
    return JSONResponse(body, headers={"x-job-id": job.id})


def _draft(fields: Mapping[str, Any], inputs: Inputs | None, model: str | None) -> Draft:
    """The recipe that such a request means; what is absent follows from the model, not from their defaults.

    Raises:
        InvalidRecipe: naming what is wrong, by their names.
    """
    _check_scripts(fields)
    ours = {name: fields[theirs] for theirs, name in FIELDS.items() if fields.get(theirs) is not None}
    if inputs is None:
        ours.pop("strength", None)
    else:
        ours |= {"image": "", **({} if inputs.mask is None else {"mask": ""})}
    ours["prompt"] = ours.get("prompt") or "a picture"  # theirs may be empty
    ours["count"] = _times(fields.get("batch_size"), "batch_size") * _times(fields.get("n_iter"), "n_iter")
    ours |= {"model": model, "scheduler": _sampler(fields), "style": _style(fields), "prompt_syntax": "a1111"}
    settings = fields.get("override_settings")
    skip = settings.get("CLIP_stop_at_last_layers") if isinstance(settings, dict) else None
    if isinstance(skip, int) and skip > 1:
        ours["clip_skip"] = skip - 1  # theirs counts the last layer as 1
    try:
        return recipe.parse(ours)
    except InvalidRecipe as error:
        theirs = {name: their for their, name in FIELDS.items()} | THEIRS
        raise InvalidRecipe([FieldError(theirs.get(e.field, e.field), e.message) for e in error.errors]) from None


def _check_scripts(fields: Mapping[str, Any]) -> None:
    """There are no scripts here: a picture without the one that was asked for would be a wrong one."""
    script, scripts = fields.get("script_name"), fields.get("alwayson_scripts")
    if script not in (None, "", "None"):
        raise InvalidRecipe([FieldError("script_name", "Script not found; there are none")])
    if isinstance(scripts, dict) and scripts:
        raise InvalidRecipe([FieldError("alwayson_scripts", "Always-on script not found; there are none")])


def _times(value: Any, name: str) -> int:
    if value is None:
        return 1
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= recipe.MAX_COUNT:
        raise InvalidRecipe([FieldError(name, f"must be a whole number from 1 to {recipe.MAX_COUNT}")])
    return value


def _style(fields: Mapping[str, Any]) -> str | None:
    """The style, which is one of the list that clients are given."""
    styles = fields.get("styles") or []
    names = [style for style in styles if style not in ("", "None")] if isinstance(styles, list) else [styles]
    if not all(isinstance(name, str) for name in names) or len(names) > 1:
        raise InvalidRecipe([FieldError("styles", "must be a list with the name of one style at most")])
    return names[0] if names else None


def _sampler(fields: Mapping[str, Any]) -> str | None:
    """Our name of their sampler and schedule; nothing where the client leaves it to the server."""
    label = fields.get("sampler_name") or fields.get("sampler_index")
    if not label:
        return None
    samplers = DIFFUSION | FLOW
    by_label = {sampler.label.lower(): name for name, sampler in samplers.items()} | {name: name for name in samplers}
    wanted = str(label).lower()
    schedule = SCHEDULES.get(str(fields.get("scheduler") or "").lower(), "").lower()
    found = by_label.get(wanted + schedule) or by_label.get(wanted)
    if found is None:
        known = ", ".join(sampler.label for sampler in DIFFUSION.values())
        raise InvalidRecipe([FieldError("sampler_name", f"Sampler not found; known are {known}")])
    return found


def _checkpoint(request: Request[State], fields: Mapping[str, Any]) -> str | None:
    """The model that this request names, else the one that its client has chosen, else the default.

    Raises:
        ModelNotFound: theirs would paint with another model without a word; a wrong picture is worse than an error.
    """
    settings = fields.get("override_settings")
    named = settings.get("sd_model_checkpoint") if isinstance(settings, dict) else None
    if named:
        return request.state["service"].catalog.model(_name(named)).name
    return request.state["checkpoints"].get(client_of(request))


def _name(title: Any) -> str:
    """A model's name, from the title that the list of models gives it: theirs puts a hash in brackets behind."""
    if not isinstance(title, str):
        raise ModelNotFound("", [])
    return title.split(" [")[0].removesuffix(".safetensors")


def _inputs(fields: Mapping[str, Any]) -> Inputs:
    images = fields.get("init_images")
    first = images[0] if isinstance(images, list) and images else None
    if not isinstance(first, str):
        raise InvalidRecipe([FieldError("init_images", "Init image not found")])
    mask = fields.get("mask")
    if mask is not None and not isinstance(mask, str):
        raise InvalidRecipe([FieldError("mask", "is not base64")])
    picture = _decoded("init_images", first)
    cut = None if not mask else _decoded("mask", mask)
    if cut is not None and fields.get("inpainting_mask_invert") in (1, True):
        cut = ImageChops.invert(cut.convert("L")).convert("RGBA")
    return Inputs(picture, cut)


def _decoded(field: str, text: str) -> Image.Image:
    """The picture in base64; those of URLs are fetched by theirs where that is allowed, and here nowhere."""
    if text.startswith(("http://", "https://")):
        raise InvalidRecipe([FieldError(field, "Requests not allowed; send the picture in base64")])
    try:
        return decoded(field, text)
    except InvalidRecipe as error:
        raise InvalidRecipe([FieldError(field, f"Invalid encoded image: {error.errors[0].message}")]) from None


def _info(job: Job) -> dict[str, Any]:
    """What theirs says of the pictures, as far as it means something here."""
    whole, safety = job.recipe, job.safety_filter_result
    seeds = [job.recipe.seed + index for index in range(job.recipe.count)]
    return {
        "prompt": whole.prompt,
        "all_prompts": [whole.prompt] * whole.count,
        "negative_prompt": whole.negative_prompt,
        "all_negative_prompts": [whole.negative_prompt] * whole.count,
        "seed": whole.seed,
        "all_seeds": seeds,
        "subseed": whole.seed,
        "all_subseeds": seeds,
        "subseed_strength": 0,
        "width": whole.width,
        "height": whole.height,
        "sampler_name": infotext.sampler_label(whole.scheduler),
        "cfg_scale": whole.guidance_scale,
        "steps": whole.steps,
        "batch_size": whole.count,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": whole.model,
        "sd_model_hash": "",
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": whole.strength,
        "extra_generation_params": {} if safety is None else {"Safety filter": safety},
        "index_of_first_image": 0,
        "infotexts": [infotext.infotext(whole, seed) for seed in seeds],
        "styles": [] if whole.style is None else [whole.style],
        "job_timestamp": _timestamp(job),
        "clip_skip": whole.clip_skip + 1,
        "is_using_inpainting_conditioning": False,
        "version": f"daguerre {__version__}",
    }


async def progress(request: Request[State]) -> Response:
    """``GET /sdapi/v1/progress``: of all the caller's own jobs; ``state`` and the preview are of the one at hand."""
    service = request.state["service"]
    mine = service.unfinished_of(client_of(request))
    at_hand = next((job for job in mine if job.status is Status.RUNNING), mine[0] if mine else None)
    wants_image = request.query_params.get("skip_current_image", "").lower() not in TRUE
    preview = text = None
    if at_hand is not None and at_hand.status is Status.QUEUED:
        text = f"In queue: {service.place(at_hand).position}/{service.waiting}"
    elif at_hand is not None and wants_image:
        preview = await _preview(request, at_hand)
    done = sum(job.step / job.steps for job in mine if job.steps)
    body = SdProgress(
        progress=min(1.0, 0.01 + done / len(mine)) if mine else 0.0,
        eta_relative=round(max((service.place(job).eta for job in mine), default=0.0), 1),
        state=_state(at_hand, len(mine)),
        current_image=None if preview is None else base64.b64encode(preview).decode(),
        textinfo=text,
    )
    return as_json(body)


def _state(job: Job | None, jobs: int) -> SdState:
    """A job as theirs tells of it: the steps of a batch count once, since its pictures are painted together."""
    pictures = 1 if job is None else job.recipe.count
    return SdState(
        skipped=False,
        interrupted=False,
        stopping_generation=False,
        job="" if job is None else job.id,
        job_count=jobs,
        job_timestamp="0" if job is None else _timestamp(job),
        job_no=0,
        sampling_step=0 if job is None else job.step // pictures,
        sampling_steps=0 if job is None else job.steps // pictures,
    )


def _timestamp(job: Job) -> str:
    return f"{datetime.fromtimestamp(job.created_at, UTC):%Y%m%d%H%M%S}"


async def _preview(request: Request[State], job: Job) -> bytes | None:
    """What a running job's picture looks like by now. None is made for a client that does not ask."""
    last = request.state["dispatch"].look(job.id)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LOOK), request.state["service"].follow(job) as states:
            async for news in states:
                if news.preview not in (None, last):
                    return news.preview
    return last


async def interrupt(request: Request[State]) -> Response:
    """``POST /sdapi/v1/interrupt``: ends the caller's own jobs, and nobody else's."""
    for job in request.state["service"].unfinished_of(client_of(request)):
        request.state["service"].cancel(job.id)
    return as_json({})


async def skip(request: Request[State]) -> Response:
    """``POST /sdapi/v1/skip``: ends the caller's job that is being painted; those that wait are left."""
    mine = request.state["service"].unfinished_of(client_of(request))
    running = next((job for job in mine if job.status is Status.RUNNING), None)
    if running is not None:
        request.state["service"].cancel(running.id)
    return as_json(None)


async def options(request: Request[State]) -> Response:
    """``GET /sdapi/v1/options``."""
    chosen = request.state["checkpoints"].get(client_of(request))
    model = request.state["service"].catalog.model(chosen)
    return as_json(SdOptions(sd_model_checkpoint=model.name, samples_format="png", CLIP_stop_at_last_layers=1))


async def set_options(request: Request[State]) -> Response:
    """``POST /sdapi/v1/options``: takes the whole of what GET gave; the checkpoint is chosen for this client alone."""
    fields = await _fields(request)
    if fields.get("sd_model_checkpoint"):
        chosen = request.state["checkpoints"]
        chosen[client_of(request)] = request.state["service"].catalog.model(_name(fields["sd_model_checkpoint"])).name
        if len(chosen) > MAX_CLIENTS:
            del chosen[next(iter(chosen))]
    return as_json(None)


async def png_info(request: Request[State]) -> Response:
    """``POST /sdapi/v1/png-info``: what a picture says of its making."""
    fields = await _fields(request)
    if not isinstance(fields.get("image"), str):
        raise InvalidRecipe([FieldError("image", "required")])
    loop = asyncio.get_running_loop()
    texts = await loop.run_in_executor(request.state["codec"], _texts, fields["image"])
    info = texts.pop(imaging.PARAMETERS, "")
    return as_json(SdInfo(info=info, items=texts, parameters=infotext.parse(info)))


def _texts(encoded: str) -> dict[str, str]:
    """The texts of a PNG; of another picture none."""
    try:
        return imaging.read_text(unwrapped("image", encoded))
    except ValueError:
        decoded("image", encoded)
        return {}


ROUTES: list[BaseRoute] = [
    Route(f"/sdapi/v1/{name}", spoken(endpoint), methods=[method])
    for method, name, endpoint in (
        ("POST", "txt2img", txt2img),
        ("POST", "img2img", img2img),
        ("GET", "progress", progress),
        ("POST", "interrupt", interrupt),
        ("POST", "skip", skip),
        ("GET", "options", options),
        ("POST", "options", set_options),
        ("POST", "png-info", png_info),
    )
]
