"""Owns OpenAI's images API: generations, edits, variations and the list of models, as its clients expect them.

Fields that the API does not know may be ours (``seed``, ``negative_prompt``, ``steps``, …): clients send them as extra
fields. Any others are ignored, as real clients rely on.
"""

import asyncio
import base64
import contextlib
import json
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import msgspec
from PIL import Image, ImageChops
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from daguerre import imaging, recipe
from daguerre.errors import (
    AccessRefused,
    BadRequest,
    ClientLimit,
    DaguerreError,
    FieldError,
    ImageRefused,
    InvalidRecipe,
    ModelNotFound,
    PromptRefused,
    RateLimited,
    Unavailable,
)
from daguerre.http import problems, wire
from daguerre.http.dialects.uploads import Form, read_form
from daguerre.http.exchange import paint, read_inputs, read_pictures, submit_again
from daguerre.http.state import State
from daguerre.job import Job
from daguerre.jobs.inputs import Inputs
from daguerre.recipe import Draft

Endpoint = Callable[[Request[State]], Awaitable[Response]]

#: Names of OpenAI's own models: clients have them built in, and mean whatever the server has.
THEIR_MODELS = ("gpt-image", "chatgpt-image", "dall-e")
#: Fields of theirs that say something else, or nothing, in a recipe.
THEIR_FIELDS = frozenset(
    [
        "model",
        "n",
        "size",
        "quality",
        "style",
        "stream",
        "partial_images",
        "user",
        "background",
        "moderation",
        "response_format",
        "output_format",
        "output_compression",
        "input_fidelity",
        "image",
        "mask",
    ]
)
#: Our names of what they call otherwise, for errors.
PARAMS = {"count": "n", "width": "size", "height": "size", "format": "output_format", "quality": "output_compression"}
#: What theirs refuses by its policy, it refuses under one code.
POLICY = (PromptRefused, ImageRefused)
#: Previews that a stream may ask for.
MAX_PARTIALS = 3
#: Of an upload that is to be varied, how much is painted anew.
VARIATION = 0.6

_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")
_OURS = (frozenset(Draft.__struct_fields__) | frozenset(recipe.ALIASES)) - {"webhook"}


def spoken(endpoint: Endpoint) -> Endpoint:
    """The endpoint, whose errors come in OpenAI's envelope; they say whether asking again can help."""

    async def answer(request: Request[State]) -> Response:
        try:
            return await endpoint(request)
        except DaguerreError as error:
            return failure(error, request.scope.get("request_id", ""))

    return answer


def failure(error: DaguerreError, request_id: str) -> Response:
    """The error in OpenAI's envelope, with the word on whether asking again can help."""
    plain = problems.answer(error, request_id)
    status = 400 if isinstance(error, (InvalidRecipe, *POLICY)) else plain.status_code
    headers = {"x-should-retry": "true" if isinstance(error, Unavailable) else "false"}
    headers |= {name: plain.headers[name] for name in ("retry-after", "www-authenticate") if name in plain.headers}
    return Response(json.dumps({"error": _envelope(error)}), status, headers, "application/json")


def _envelope(error: DaguerreError) -> dict[str, Any]:
    is_theirs = isinstance(error, BadRequest | ModelNotFound | AccessRefused | ImageRefused)
    kind = "invalid_request_error" if is_theirs else "server_error"
    if isinstance(error, RateLimited | ClientLimit):
        kind = "rate_limit_error"
    code = "content_policy_violation" if isinstance(error, POLICY) else error.code
    param = "model" if isinstance(error, ModelNotFound) else None
    if isinstance(error, InvalidRecipe):
        param = PARAMS.get(error.errors[0].field, error.errors[0].field)
    return {"message": error.message, "type": kind, "param": param, "code": code}


async def generations(request: Request[State]) -> Response:
    """``POST /v1/images/generations``."""
    fields = wire.read_object(request.headers.get("content-type", ""), await request.body())
    return await _answer(request, fields, None, "image_generation")


async def edits(request: Request[State]) -> Response:
    """``POST /v1/images/edits``: image-to-image, or inpainting where the mask is transparent."""
    form = await read_form(request)
    loop = asyncio.get_running_loop()
    inputs = await loop.run_in_executor(request.state["codec"], _inputs, form)
    return await _answer(request, _typed(form), inputs, "image_edit")


async def variations(request: Request[State]) -> Response:
    """``POST /v1/images/variations``: the picture again, somewhat different."""
    form = await read_form(request)
    loop = asyncio.get_running_loop()
    inputs = await loop.run_in_executor(request.state["codec"], _inputs, Form(form.texts, {**form.files, "mask": []}))
    fields = {"prompt": "a picture like this one", "strength": VARIATION, **_typed(form)}
    return await _answer(request, fields, inputs, "image_edit")


async def _answer(request: Request[State], fields: Mapping[str, Any], inputs: Inputs | None, kind: str) -> Response:
    draft = _draft(fields, inputs)
    if inputs is None:
        inputs = await read_inputs(request, draft)
    as_url = _choice(fields, "response_format", ("b64_json", "url")) == "url"
    partials = _partial_images(fields)
    if fields.get("stream") in (True, "true"):
        job = await submit_again(request, _previewed(request, draft, partials), inputs)
        return StreamingResponse(_events(request, job, kind, partials), media_type="text/event-stream")
    job = await submit_again(request, draft, inputs)
    job = await paint(request, job)
    body = {"created": int(job.created_at), "data": await _data(request, job, as_url), **_about(job)}
    return Response(msgspec.json.encode(body), media_type="application/json", headers={"x-job-id": job.id})


async def _data(request: Request[State], job: Job, as_url: bool) -> list[dict[str, Any]]:
    if as_url:
        base = str(request.base_url).rstrip("/")
        return [{"url": f"{base}/outputs/{image.filename}", "seed": image.seed} for image in job.images]
    pictures = await read_pictures(request, job)
    return [
        {"b64_json": base64.b64encode(data).decode(), "seed": image.seed}
        for data, image in zip(pictures, job.images, strict=True)
    ]


def _partial_images(fields: Mapping[str, Any]) -> int:
    wanted = fields.get("partial_images") or 0
    if not isinstance(wanted, int) or isinstance(wanted, bool) or not 0 <= wanted <= MAX_PARTIALS:
        raise InvalidRecipe([FieldError("partial_images", f"must be a whole number from 0 to {MAX_PARTIALS}")])
    return wanted


def _previewed(request: Request[State], draft: Draft, partials: int) -> Draft:
    """The draft with so many previews on the way, evenly spaced."""
    if not partials:
        return draft
    steps = draft.steps or request.state["service"].catalog.model(draft.model).steps
    return msgspec.structs.replace(draft, preview_every=max(1, steps // (partials + 1)))


async def _events(request: Request[State], job: Job, kind: str, partials: int) -> AsyncIterator[bytes]:
    """Previews as they come, and each finished picture. Once headers are sent, an error is an event, too."""
    painting = asyncio.ensure_future(paint(request, job))
    try:
        index = 0
        async with contextlib.aclosing(_previews(request, job, partials)) as previews:
            async for preview in previews:
                entry = {"b64_json": base64.b64encode(preview).decode(), "partial_image_index": index}
                yield _event(f"{kind}.partial_image", {**_about(job), **entry, "output_format": "jpeg"})
                index += 1
        job = await painting
        for index, entry in enumerate(await _data(request, job, as_url=False)):
            yield _event(f"{kind}.completed", {**_about(job), **entry, "index": index})
    except DaguerreError as error:
        yield f"data: {json.dumps({'error': _envelope(error)})}\n\n".encode()
    finally:
        painting.cancel()
        await asyncio.gather(painting, return_exceptions=True)


async def _previews(request: Request[State], job: Job, wanted: int) -> AsyncGenerator[bytes]:
    """The first so many previews of a job, as JPEG."""
    shown: bytes | None = None
    async with request.state["service"].follow(job) as states:
        async for news in states:
            if wanted and news.preview is not None and news.preview is not shown:
                yield news.preview
                shown, wanted = news.preview, wanted - 1
            if not wanted:
                return


def _event(kind: str, entry: dict[str, Any]) -> bytes:
    told = json.dumps({"type": kind, "created_at": int(time.time()), **entry})
    return f"event: {kind}\ndata: {told}\n\n".encode()


def _about(job: Job) -> dict[str, Any]:
    """What both forms of an answer say of the pictures; nothing is counted in tokens here."""
    details = {"text_tokens": 0, "image_tokens": 0}
    return {
        "size": f"{job.recipe.width}x{job.recipe.height}",
        "quality": "high",
        "background": "opaque",
        "output_format": job.recipe.format,
        "usage": {"total_tokens": 0, "input_tokens": 0, "output_tokens": 0, "input_tokens_details": details},
    }


def _draft(fields: Mapping[str, Any], inputs: Inputs | None) -> Draft:
    """The recipe that such a request means.

    Raises:
        InvalidRecipe: naming what is wrong.
    """
    ours = {name: value for name, value in fields.items() if name in _OURS and name not in THEIR_FIELDS}
    model = fields.get("model")
    if model is not None and not (isinstance(model, str) and model.startswith(THEIR_MODELS)):
        ours["model"] = model
    if fields.get("n") is not None:
        ours["count"] = fields["n"]
    if fields.get("background") == "transparent":
        raise InvalidRecipe([FieldError("background", "transparent pictures cannot be painted")])
    if fields.get("output_format") is not None:
        ours["format"] = fields["output_format"]
    if fields.get("output_compression") is not None:
        ours["quality"] = fields["output_compression"] or 1  # theirs begins at 0
    if "width" not in ours and "height" not in ours:
        ours |= _size(fields.get("size"))
    if inputs is not None:
        ours |= {"image": "", **({} if inputs.mask is None else {"mask": ""})}
    return recipe.parse(ours)


def _size(size: Any) -> dict[str, int]:
    if size in (None, "", "auto"):
        return {}
    found = _SIZE.fullmatch(size) if isinstance(size, str) else None
    if found is None:
        raise InvalidRecipe([FieldError("size", 'must be "auto" or look like "1024x1024"')])
    return {"width": int(found[1]), "height": int(found[2])}


def _choice(fields: Mapping[str, Any], name: str, choices: tuple[str, ...]) -> str:
    value = fields.get(name) or choices[0]
    if value not in choices:
        raise InvalidRecipe([FieldError(name, f"must be one of {', '.join(choices)}")])
    return str(value)


def _typed(form: Form) -> dict[str, Any]:
    """The form's texts, where a field of ours is no text as what it is: a form cannot tell 3 from "3"."""
    texts = ("prompt", "negative_prompt", "model", "user")
    return {name: text if name in texts else _value(text) for name, text in form.texts.items()}


def _value(text: str) -> Any:
    try:
        value = json.loads(text) if len(text) < 40 else text
    except ValueError:
        return text
    return value if isinstance(value, int | float | bool) else text


def _inputs(form: Form) -> Inputs:
    """The picture to edit and its mask; in theirs what is transparent is painted anew, in ours what is white."""
    if form.files.get("markup"):
        raise InvalidRecipe([FieldError("markup", "is not offered here; a mask says what is to be painted anew")])
    data = form.only("image", "image[]")
    if data is None:
        raise InvalidRecipe([FieldError("image", "required")])
    mask = form.only("mask")
    return Inputs(_picture("image", data), None if mask is None else _mask(_picture("mask", mask)))


def _mask(picture: Image.Image) -> Image.Image:
    alpha = picture.getchannel("A")
    if alpha.getextrema()[0] == 255:
        raise InvalidRecipe([FieldError("mask", "nothing in it is transparent, so nothing would be edited")])
    return ImageChops.invert(alpha).convert("RGBA")


def _picture(field: str, data: bytes) -> Image.Image:
    try:
        return imaging.decode(data)
    except ValueError as error:
        raise InvalidRecipe([FieldError(field, str(error))]) from None


def _posted(name: str, endpoint: Endpoint) -> list[BaseRoute]:
    paths = (f"/v1/images/{name}", f"/api/v1/images/{name}")
    return [Route(path, spoken(endpoint), methods=["POST"]) for path in paths]


ROUTES: list[BaseRoute] = [
    *_posted("generations", generations),
    *_posted("edits", edits),
    *_posted("variations", variations),
]
