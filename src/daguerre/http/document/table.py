"""Owns the table of Daguerre's own routes: what the document says of each. `ALIASES` are other paths to the same."""

from daguerre import errors
from daguerre.answers import (
    Alive,
    Cancellation,
    Capabilities,
    Event,
    Health,
    JobPage,
    LoraList,
    ModelList,
    QueueStatus,
    SchedulerList,
    StyleList,
    Task,
    Totals,
    WireJob,
    WireLora,
    WireModel,
)
from daguerre.http.document import dialects
from daguerre.http.document.bodies import LoraName, ModelName
from daguerre.http.document.operation import (
    CURSOR,
    ENDED,
    EVENTS,
    FILENAME,
    ID,
    INDEX,
    JSON,
    KEY,
    LAST_EVENT,
    LIMIT,
    MODEL,
    PREFER,
    REFUSED,
    SINCE,
    STATUS,
    UNKNOWN,
    UNREADABLE,
    Answer,
    Body,
    Lines,
    Operation,
    Picture,
)
from daguerre.imaging import media_type
from daguerre.recipe import Draft
from daguerre.store.files import EXTENSIONS

PICTURES = dict.fromkeys(map(media_type, EXTENSIONS), Picture)
#: A PNG of one white pixel.
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4//8/AAX+Av4N70a4AAAAAElFTkSuQmCC"

_PAINTED = ("X-Job-Id", "X-Seed", "X-Generation-Metadata", "Server-Timing", "Content-Disposition")
_ACCEPTED = Answer(
    202,
    "The job, which is durable, and where to ask for it.",
    {JSON: WireJob},
    ("Location", "X-Job-Id", "Cache-Control", "Preference-Applied"),
)


def _json(kind: object, description: str, *headers: str, status: int = 200) -> Answer:
    return Answer(status, description, {JSON: kind}, headers)


def _painting(summary: str, needed: tuple[str, ...] = (), refused: tuple[str, ...] = ()) -> Operation:
    example = {"prompt": "a red circle on a blue background", "seed": 3} | dict.fromkeys(needed, PIXEL)
    answer = Answer(200, "The picture, or the job with its pictures.", {**PICTURES, JSON: WireJob}, _PAINTED)
    return Operation(
        summary,
        "Painting",
        (answer, _ACCEPTED),
        Body(Draft, needed=needed, refused=refused, example=example),
        (PREFER, KEY),
        (*REFUSED, *ENDED, errors.NotAcceptable, errors.KeyReused),
    )


_SUBMIT = Operation(
    "Paint later: accepted once the job is durable.",
    "Jobs",
    (_ACCEPTED,),
    Body(Draft),
    (KEY,),
    (*REFUSED, errors.KeyReused),
)
_FILE = (
    Answer(200, "The picture.", PICTURES, ("Accept-Ranges", "Content-Disposition", "ETag", "Last-Modified")),
    Answer(
        206,
        "The parts that a Range header asked for.",
        {**PICTURES, "multipart/byteranges": Picture},
        ("Accept-Ranges", "Content-Disposition", "Content-Range", "ETag", "Last-Modified"),
    ),
    Answer(400, "The Range header cannot be read.", {"text/plain": Lines}),
    Answer(416, "There is no such part.", {"text/plain": Lines}, ("Content-Range",)),
)
_CANCEL = Operation(
    "Call a job off: a running one stops within a step.",
    "Jobs",
    (_json(Cancellation, "Whether anything was left to call off."),),
    parameters=(ID,),
    raised=UNKNOWN,
)


def _of_model(summary: str, answers: tuple[Answer, ...], *raised: type[errors.DaguerreError]) -> Operation:
    known = (*UNREADABLE, errors.ModelNotFound, errors.CatalogError)
    return Operation(summary, "Models", answers, Body(ModelName), raised=(*known, *raised))


def _of_lora(summary: str, answers: tuple[Answer, ...], *raised: type[errors.DaguerreError]) -> Operation:
    known = (*UNREADABLE, errors.LoraNotFound, errors.LoraIncompatible)
    return Operation(summary, "LoRAs", answers, Body(LoraName), raised=(*known, *raised))


def _told(summary: str, tag: str, kind: object, description: str) -> Operation:
    return Operation(summary, tag, (_json(kind, description, "Cache-Control"),))


TABLE: dict[str, Operation] = {
    "POST /generate": _painting("Paint what the recipe's images make of it: from text, from an image, or into one."),
    "POST /v1/txt2img": _painting("Paint from text alone.", refused=("image", "mask")),
    "POST /v1/img2img": _painting("Paint from an image.", needed=("image",), refused=("mask",)),
    "POST /v1/inpaint": _painting("Paint a part of an image anew.", needed=("image", "mask")),
    "POST /v1/jobs": _SUBMIT,
    "GET /v1/jobs": Operation(
        "The caller's jobs, the newest first.",
        "Jobs",
        (_json(JobPage, "A page of jobs."),),
        parameters=(STATUS, LIMIT, CURSOR),
        raised=(errors.InvalidRecipe,),
    ),
    "GET /v1/jobs/{id}": Operation(
        "A job as it stands.",
        "Jobs",
        (_json(WireJob, "The job.", "X-Job-Id", "Cache-Control"),),
        parameters=(ID,),
        raised=UNKNOWN,
    ),
    "DELETE /v1/jobs/{id}": _CANCEL,
    "POST /v1/jobs/{id}/cancel": _CANCEL,
    "GET /v1/jobs/{id}/result": Operation(
        "A job's picture, once it is there.",
        "Jobs",
        (
            Answer(200, "The picture.", PICTURES, _PAINTED),
            _json(WireJob, "There is none yet.", "X-Job-Id", "Cache-Control", "Retry-After", status=202),
        ),
        parameters=(ID, INDEX),
        raised=(*UNKNOWN, errors.NoPicture, errors.JobCancelled, errors.RouteNotFound, errors.InvalidRecipe),
    ),
    "GET /v1/jobs/{id}/events": Operation(
        "A job followed as it happens: its present state, then each change, as server-sent events.",
        "Jobs",
        (Answer(200, "Events; the data of each is an Event.", {EVENTS: Lines}, ("X-Job-Id", "Cache-Control")),),
        parameters=(ID, LAST_EVENT, SINCE),
        raised=UNKNOWN,
    ),
    "GET /queue/status": _told("How much there is to do.", "Jobs", QueueStatus, "The queue."),
    "GET /status/{id}": Operation(
        "A job as clients of the older task API know it.",
        "Jobs",
        (_json(Task, "The task.", "Cache-Control"),),
        parameters=(ID,),
        raised=UNKNOWN,
    ),
    "GET /outputs/{filename}": Operation(
        "A finished picture by its name.",
        "Painting",
        _FILE,
        parameters=(FILENAME,),
        raised=(errors.RouteNotFound,),
    ),
    "GET /download/{filename}": Operation(
        "A finished picture by its name, to be kept as a file.",
        "Painting",
        _FILE,
        parameters=(FILENAME,),
        raised=(errors.RouteNotFound,),
    ),
    "GET /v1/images/{id}/file": Operation(
        "A finished picture by its job's id, or by its name.",
        "Painting",
        _FILE,
        parameters=(ID, INDEX),
        raised=(errors.RouteNotFound, errors.ResultExpired, errors.StorageFailed, errors.InvalidRecipe),
    ),
    "GET /outputs/{filename}/thumbnail": Operation(
        "A finished picture, small.",
        "Painting",
        (
            Answer(
                200, "The picture, 256 pixels on its longer side.", {"image/webp": Picture}, ("Content-Disposition",)
            ),
        ),
        parameters=(FILENAME,),
        raised=(errors.RouteNotFound,),
    ),
    "GET /v1/models": _told("All models, and where the weights of each are.", "Models", ModelList, "The models."),
    "GET /v1/models/{id}": Operation(
        "One model; while it is loaded or pulled, how far that is.",
        "Models",
        (_json(WireModel, "The model.", "Cache-Control"),),
        parameters=(MODEL,),
        raised=(errors.ModelNotFound, errors.CatalogError),
    ),
    "POST /v1/models/load": _of_model(
        "Load a model, and pull it before where that is allowed.",
        (
            _json(WireModel, "It is on the device.", "Location", "Cache-Control"),
            _json(WireModel, "It is on its way.", "Location", "Cache-Control", status=202),
        ),
        errors.ModelNotPulled,
    ),
    "POST /v1/models/unload": _of_model(
        "Let go of a model's weights.",
        (_json(WireModel, "Its memory is free.", "Cache-Control"),),
        errors.ModelBusy,
    ),
    "GET /v1/loras": _told("All LoRAs, and where the weights of each are.", "LoRAs", LoraList, "The LoRAs."),
    "POST /v1/loras/load": _of_lora(
        "Read a LoRA into host memory.",
        (
            _json(WireLora, "It is there.", "Cache-Control"),
            _json(WireLora, "It is on its way.", "Cache-Control", status=202),
        ),
    ),
    "POST /v1/loras/unload": _of_lora(
        "Let go of a LoRA's weights.",
        (_json(WireLora, "Its memory is free.", "Cache-Control"),),
        errors.ModelBusy,
    ),
    "GET /v1/schedulers": _told("The schedulers.", "Models", SchedulerList, "Their names, and who can use them."),
    "GET /v1/styles": _told("The styles.", "Models", StyleList, "The words that each puts around a prompt."),
    "GET /v1/capabilities": _told("What this server can do.", "Models", Capabilities, "Modes, formats and limits."),
    "GET /v1/usage": _told("What the caller's jobs have taken.", "Jobs", Totals, "The totals."),
    "GET /metrics": Operation(
        "The server in numbers, for Prometheus.",
        "Running it",
        (Answer(200, "Prometheus' text format.", {"text/plain": Lines}, ("Cache-Control",)),),
    ),
    "GET /ping": _told("A sign of life.", "Running it", Alive, "It answers."),
    "GET /livez": _told("Whether the event loop turns.", "Running it", Alive, "It does."),
    "GET /readyz": Operation(
        "Whether a picture asked for now would be painted.",
        "Running it",
        (_json(Alive, "It would.", "Cache-Control"),),
        raised=(errors.NotReady, errors.Draining, errors.DiskLow),
    ),
    "GET /health": _told("What a person wants to know.", "Running it", Health, "Always 200; its status tells."),
    "GET /openapi.json": Operation("This document.", "Running it", (_json(dict, "OpenAPI 3.1."),)),
    "GET /docs": Operation("This document, to read.", "Running it", (Answer(200, "A page.", {"text/html": Lines}),)),
    "GET /docs/{filename}": Operation(
        "What the page is made of.",
        "Running it",
        (Answer(200, "A file.", {"text/css": Lines, "text/javascript": Lines, "image/svg+xml": Lines}),),
        parameters=(FILENAME,),
        raised=(errors.RouteNotFound,),
    ),
    **dialects.TABLE,
}

#: Paths that mean another one. Everything under ``/v1`` is under ``/api/v1``, too.
ALIASES: dict[str, str] = {
    **{f"/v1/generate/{mode}": f"/v1/{mode}" for mode in ("txt2img", "img2img", "inpaint")},
    "/": "/docs",
    "/generate/queue": "/v1/jobs",
    "/queue/status/{id}": "/v1/jobs/{id}",
    "/result/{id}": "/v1/jobs/{id}/result",
    "/image/{id}": "/v1/jobs/{id}/result",
    "/models": "/v1/models",
    "/loras": "/v1/loras",
    "/v1/loras/list": "/v1/loras",
    "/stream/generate/txt2img": "/v1/stream",
}

#: WebSockets, for which OpenAPI has no words: what each is for, the types of the first frame sent, and of the answers.
SOCKETS: dict[str, tuple[str, object, object]] = {
    "/v1/stream": (
        (
            "The first frame is a recipe, which may say binary and detach beside; then what becomes of it. A frame of "
            "type cancel calls the job off, and so does closing, unless it was detached."
        ),
        Draft,
        Event,
    ),
    "/v1/jobs/{id}/events": ("A job that exists: its present state, then each change.", None, Event),
}
