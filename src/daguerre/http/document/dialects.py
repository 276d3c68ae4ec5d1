"""Owns the table of the dialects' routes: what the document says of each."""

import dataclasses
from typing import Any

from daguerre import errors
from daguerre.http.dialects import a1111, a1111_lists, openai
from daguerre.http.document import bodies
from daguerre.http.document.operation import (
    ENDED,
    EVENTS,
    FORM,
    JSON,
    REFUSED,
    TRIES,
    UNREADABLE,
    Answer,
    Body,
    Envelope,
    Lines,
    Operation,
    Parameter,
)

OPENAI = Envelope(openai.failure, bodies.OpenAIError)
A1111 = Envelope(a1111.failure, bodies.SdError, ("X-Process-Time",))


def _images(summary: str, kind: Any, media: str) -> Operation:
    return Operation(
        summary,
        "OpenAI's images API",
        (Answer(200, "The pictures, or with stream an event for each.", _BODIES, ("X-Job-Id",)),),
        Body(kind, media),
        (TRIES,),
        (*REFUSED, *ENDED),
        OPENAI,
    )


_BODIES = {JSON: bodies.ImagesAnswer, EVENTS: Lines}


def _painted(summary: str, kind: Any) -> Operation:
    answer = Answer(200, "The pictures; none where the job was interrupted.", {JSON: bodies.SdPictures}, _PAINTED)
    return Operation(summary, _TAG, (answer,), Body(kind), raised=(*REFUSED, *ENDED), envelope=A1111)


_TAG = "AUTOMATIC1111's API"
_SKIP = Parameter("skip_current_image", "query", bool, "Whether to do without a preview of the picture.")
_PAINTED = ("X-Job-Id", "X-Process-Time")


def _timed(summary: str, kind: Any, body: Body | None = None, *raised: type[errors.DaguerreError]) -> Operation:
    answer = Answer(200, "Done.", {JSON: kind}, ("X-Process-Time",))
    return Operation(summary, _TAG, (answer,), body, raised=raised, envelope=A1111)


TABLE: dict[str, Operation] = {
    "POST /v1/images/generations": _images("Paint from text.", bodies.ImagesRequest, JSON),
    "POST /v1/images/edits": _images("Paint from a picture, or into one.", bodies.EditForm, FORM),
    "POST /v1/images/variations": _images("Paint a picture again, somewhat different.", bodies.VariationForm, FORM),
    "POST /sdapi/v1/txt2img": _painted("Paint from text.", bodies.SdTxt2Img),
    "POST /sdapi/v1/img2img": _painted("Paint from a picture, or into one.", bodies.SdImg2Img),
    "GET /sdapi/v1/progress": dataclasses.replace(
        _timed("How far the caller's jobs are.", bodies.SdProgress), parameters=(_SKIP,)
    ),
    "POST /sdapi/v1/interrupt": _timed("Call the caller's jobs off.", dict[str, Any]),
    "POST /sdapi/v1/skip": _timed("Call off the caller's job that is being painted.", None),
    "GET /sdapi/v1/options": _timed(
        "The settings.", bodies.SdOptions, None, errors.ModelNotFound, errors.ModelNotPulled, errors.CatalogError
    ),
    "POST /sdapi/v1/options": _timed(
        "Choose the checkpoint that paints for this client; other settings are ignored.",
        None,
        Body(bodies.SdChoice),
        *UNREADABLE,
        errors.ModelNotFound,
        errors.ModelNotPulled,
        errors.CatalogError,
    ),
    "POST /sdapi/v1/png-info": _timed(
        "What a picture says of its making.", bodies.SdInfo, Body(bodies.SdPicture), *UNREADABLE
    ),
    "GET /sdapi/v1/sd-models": _timed("The models.", list[bodies.SdModel]),
    "GET /sdapi/v1/samplers": _timed("The samplers.", list[bodies.SdSampler]),
    "GET /sdapi/v1/schedulers": _timed("The schedules of sigmas.", list[bodies.SdScheduler]),
    "GET /sdapi/v1/prompt-styles": _timed("The styles.", list[bodies.SdStyle]),
    "GET /sdapi/v1/memory": _timed("The machine's memory.", bodies.SdMemory),
    "GET /sdapi/v1/loras": _timed("The LoRAs.", list[bodies.SdLora]),
    "GET /sdapi/v1/embeddings": _timed("Textual inversions.", bodies.SdEmbeddings),
    "GET /sdapi/v1/cmd-flags": _timed("Flags of its command line: there are none.", dict[str, Any]),
    "GET /sdapi/v1/scripts": _timed("Scripts: there are none.", bodies.SdScripts),
    **{f"GET /sdapi/v1/{name}": _timed("What is not here.", list[Any]) for name in a1111_lists.ABSENT},
    **{f"POST /sdapi/v1/{name}": _timed("What is asked for happens by itself.", None) for name in a1111_lists.FRESH},
    **{
        f"POST /sdapi/v1/{name}": _timed("Models come and go as they are needed.", dict[str, Any])
        for name in a1111_lists.PLACED
    },
}
