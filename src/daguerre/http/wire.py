"""Owns the wire: bodies to drafts, jobs to JSON, and which form of an answer a client accepts."""

import base64
import json
import math
from datetime import UTC, datetime
from typing import Any, get_args

import msgspec

from daguerre import recipe
from daguerre.answers import Progress, WireImage, WireJob
from daguerre.errors import FieldError, InvalidRecipe, MalformedBody, NotAcceptable, UnsupportedMediaType
from daguerre.imaging import media_type
from daguerre.job import Image, Job
from daguerre.jobs.forecast import Place
from daguerre.recipe import Draft, Format

FORMATS: tuple[Format, ...] = get_args(Format)


def read_draft(content_type: str, body: bytes) -> Draft:
    """The recipe in a request's body.

    Raises:
        UnsupportedMediaType, MalformedBody, InvalidRecipe
    """
    return recipe.parse(read_object(content_type, body))


def read_object(content_type: str, body: bytes) -> dict[str, Any]:
    """The JSON object in a request's body.

    Raises:
        UnsupportedMediaType, MalformedBody, InvalidRecipe
    """
    # A browser sends other sites' forms without asking, but never as JSON: this check is also the one against CSRF.
    if content_type.split(";")[0].strip().lower() != "application/json":
        raise UnsupportedMediaType
    return parse_object(body)


def parse_object(body: bytes) -> dict[str, Any]:
    """A JSON object, more strictly than the standard library reads it: UTF-8 only, each key once, no NaN.

    Raises:
        MalformedBody
        InvalidRecipe: naming the fields that hold a number which is none.
    """
    constants: list[str] = []

    def noted(name: str) -> float:
        constants.append(name)
        return float(name)

    try:
        text = body.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=noted, parse_int=_bounded_int)
    except UnicodeDecodeError:
        raise MalformedBody("the body is not UTF-8") from None
    except RecursionError:
        raise MalformedBody("the body is nested too deep") from None
    except json.JSONDecodeError as error:
        raise MalformedBody(f"the body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    if not isinstance(value, dict):
        raise MalformedBody("the body must be a JSON object")
    if constants:
        raise _endless(value)
    return value


def _endless(fields: dict[str, Any]) -> InvalidRecipe | MalformedBody:
    """What is wrong with an object in which a number is none: NaN or an infinity, which many libraries write."""
    try:
        names = [name for name, value in fields.items() if _is_endless(value)]
    except RecursionError:
        return MalformedBody("the body is nested too deep")
    return InvalidRecipe(
        [FieldError(name[:80], "must be a number that JSON has: no NaN, no infinity") for name in names]
    )


def _is_endless(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_is_endless, value.values()))
    if isinstance(value, list):
        return any(map(_is_endless, value))
    return isinstance(value, float) and not math.isfinite(value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if not all(map(_is_text, found)):
        raise MalformedBody("a key is not valid Unicode text")
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise MalformedBody(f"the key {twice[:80]!r} is there twice")
    return found


def _is_text(name: str) -> bool:
    """Whether it can be told again: JSON can spell half of a surrogate pair, and UTF-8 cannot."""
    return name.isascii() or not any("\ud800" <= character <= "\udfff" for character in name)


def _bounded_int(digits: str) -> int | float:
    """Python refuses to read thousands of digits; as a float the number is still refused, but by its field's name."""
    return int(digits) if len(digits) <= 20 else float(digits)


class Accepted(msgspec.Struct, frozen=True):
    """The form that an answer will have: a job as JSON, or a picture of one format."""

    format: Format | None  # None: whatever the recipe says
    is_json: bool


def negotiate(accept: str, draft: Draft) -> Accepted:
    """Chooses the answer's form from the Accept header and the recipe.

    Raises:
        NotAcceptable: the client takes nothing that can be made, or several pictures were asked as one.
    """
    wanted = _preferences(accept)
    for kind in wanted:
        if kind == "application/json":
            return Accepted(None, is_json=True)
        chosen = _picture(kind, draft.format)
        if chosen is not None:
            if draft.count > 1:
                raise NotAcceptable("several pictures come as JSON only: send Accept: application/json")
            return Accepted(chosen, is_json=False)
    raise NotAcceptable(f"this route answers with application/json or {', '.join(map(media_type, FORMATS))}")


def _picture(kind: str, asked: Format | None) -> Format | None:
    """The picture format that satisfies an accepted media type, given the recipe's wish."""
    if kind in ("*/*", "image/*"):
        return asked or "png"
    named = kind.removeprefix("image/")
    if named in FORMATS and asked in (None, named):
        return named
    return None


def _preferences(accept: str) -> list[str]:
    """The media types of an Accept header, the most wanted first (RFC 9110, 12.5.1); those with q=0 are left out."""
    found: list[tuple[float, int, str]] = []
    for place, part in enumerate((accept or "*/*").split(",")):
        kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = 1.0
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip() == "q":
                try:
                    quality = float(value)
                except ValueError:
                    quality = 0.0
        if kind and quality > 0:
            found.append((-quality, place, kind))
    return [kind for _, _, kind in sorted(found)]


def wire_job(job: Job, pictures: list[bytes], place: Place | None = None) -> WireJob:
    """A job with its pictures, if any are to be sent along; an unfinished one has a place."""
    own = f"/v1/jobs/{job.id}"
    contents: list[str | None] = [base64.b64encode(picture).decode() for picture in pictures]
    contents = contents or [None] * len(job.images)
    images = [_wire_image(image, b64) for image, b64 in zip(job.images, contents, strict=True)]
    return WireJob(
        id=job.id,
        request_id=job.id,
        status=job.status,
        created_at=_moment(job.created_at),
        started_at=None if job.started_at is None else _moment(job.started_at),
        finished_at=None if job.finished_at is None else _moment(job.finished_at),
        position=None if place is None else place.position,
        eta_s=None if place is None else round(place.eta, 1),
        progress=Progress(job.step, job.steps, job.step / job.steps if job.steps else 0.0),
        recipe=job.recipe,
        images=images,
        error=job.error,
        timings=job.timings,
        attempts=job.attempts,
        safety_filter_result=job.safety_filter_result,
        links={"self": own, "result": f"{own}/result", "cancel": f"{own}/cancel", "events": f"{own}/events"},
        metadata=job.recipe.metadata,
    )


def _wire_image(image: Image, b64: str | None) -> WireImage:
    url = f"/outputs/{image.filename}"
    return WireImage(url=url, thumbnail_url=f"{url}/thumbnail", b64=b64, **msgspec.structs.asdict(image))


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def generation_headers(job: Job) -> dict[str, str]:
    """What an answer that is a picture says of its making, in headers; the metadata is JSON in ASCII, below 4 KB."""
    recipe, image = job.recipe, job.images[0]
    about = {
        "model": recipe.model,
        "seed": image.seed,
        "steps": recipe.steps,
        "guidance_scale": recipe.guidance_scale,
        "size": f"{image.width}x{image.height}",
        "width": image.width,
        "height": image.height,
        "scheduler": recipe.scheduler,
        "style": recipe.style,
        "loras": [{"name": use.name, "weight": use.weight} for use in recipe.loras],
    }
    if recipe.ip_adapter is not None:
        uses = [{"name": use.name, "scale": use.scale} for use in recipe.reference_images]
        about |= {"reference_images": uses, "ip_adapter": recipe.ip_adapter}
    if job.safety_filter_result is not None:
        about["safety_filter_result"] = job.safety_filter_result
    phases = msgspec.structs.asdict(job.timings)
    return {
        "x-job-id": job.id,
        "x-seed": str(image.seed),
        "x-generation-metadata": json.dumps(about, ensure_ascii=True),
        "server-timing": ", ".join(f"{phase};dur={1000 * seconds:.1f}" for phase, seconds in phases.items()),
        "content-disposition": f'inline; filename="{image.filename}"',
    }
