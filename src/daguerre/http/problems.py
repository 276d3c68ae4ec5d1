"""Owns problems: every error as an RFC 9457 answer. Nothing that the machine would rather keep to itself gets in."""

import math

import msgspec
from starlette.responses import Response
from starlette.types import Send

from daguerre import errors
from daguerre.answers import Problem
from daguerre.errors import DaguerreError, Forbidden, InvalidRecipe, Unauthenticated, Unavailable

#: The HTTP status and title of every error that a client can meet.
STATUSES: dict[type[DaguerreError], tuple[int, str]] = {
    errors.MalformedBody: (400, "Malformed body"),
    errors.InvalidRecipe: (422, "Invalid recipe"),
    errors.LoraMisfit: (422, "LoRA does not fit"),
    errors.BodyTooLarge: (413, "Body too large"),
    errors.UnsupportedMediaType: (415, "Unsupported media type"),
    errors.NotAcceptable: (406, "Not acceptable"),
    errors.MalformedRequest: (400, "Malformed request"),
    errors.RequestTimeout: (408, "Request timeout"),
    errors.HostNotAllowed: (400, "Host not allowed"),
    errors.Unauthenticated: (401, "Not authenticated"),
    errors.Forbidden: (403, "Not allowed"),
    errors.OriginNotAllowed: (403, "Origin not allowed"),
    errors.RouteNotFound: (404, "Not found"),
    errors.MethodNotAllowed: (405, "Method not allowed"),
    errors.ModelNotFound: (404, "Model not found"),
    errors.JobNotFound: (404, "Job not found"),
    errors.ResultExpired: (410, "Result expired"),
    errors.KeyReused: (422, "Idempotency-Key reused"),
    errors.StorageFailed: (503, "Storage failed"),
    errors.SafetyCheckFailed: (503, "Picture not checked"),
    errors.DiskLow: (503, "Disk low"),
    errors.LoraNotFound: (404, "LoRA not found"),
    errors.LoraIncompatible: (422, "LoRA does not fit"),
    errors.ModelNotPulled: (404, "Model not on this machine"),
    errors.UrlRefused: (422, "URL refused"),
    errors.FetchFailed: (502, "Fetch failed"),
    errors.PromptRefused: (422, "Prompt refused"),
    errors.ModerationFailed: (503, "Moderation failed"),
    errors.QueueFull: (503, "Queue full"),
    errors.NotReady: (503, "Not ready"),
    errors.RateLimited: (429, "Too much in this time"),
    errors.ClientLimit: (429, "Too many jobs"),
    errors.AuthUnavailable: (503, "Credentials cannot be checked"),
    errors.Draining: (503, "Shutting down"),
    errors.NoPicture: (409, "Job failed"),
    errors.JobCancelled: (409, "Job cancelled"),
    errors.JobTimeout: (504, "Out of time"),
    errors.JobFailed: (500, "Generation failed"),
    errors.BadOutput: (500, "Bad output"),
    errors.ImageRefused: (422, "Image refused"),
    errors.OutOfMemory: (500, "Out of memory"),
    errors.Poisoned: (500, "Poisoned"),
    errors.ModelBusy: (409, "Model busy"),
    errors.PullFailed: (502, "Model could not be fetched"),
    errors.CatalogError: (500, "Model cannot be loaded"),
    errors.DaguerreError: (500, "Internal error"),
}

CONTENT_TYPE = "application/problem+json"


def answer(error: DaguerreError, request_id: str) -> Response:
    """The answer for an error of ours."""
    status, title = next(STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES)
    problem = Problem(
        type=f"urn:daguerre:problem:{error.code}",
        title=title,
        status=status,
        detail=error.message,
        code=error.code,
        request_id=request_id,
        errors=tuple(error.errors) if isinstance(error, InvalidRecipe) else (),
    )
    headers = challenge(error)
    if isinstance(error, Unavailable):
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    return Response(msgspec.json.encode(problem), status, headers, CONTENT_TYPE)


async def deny(send: Send, response: Response) -> None:
    """Refuses a WebSocket before it is one, with the answer that HTTP would have had (ASGI's denial response)."""
    start = {"status": response.status_code, "headers": response.raw_headers}
    await send({"type": "websocket.http.response.start", **start})
    await send({"type": "websocket.http.response.body", "body": bytes(response.body)})


def challenge(error: DaguerreError, scheme: str = "Bearer") -> dict[str, str]:
    """What a refused client is told of the credentials that would do (RFC 6750, 3)."""
    if isinstance(error, Unauthenticated):
        return {"www-authenticate": f'{scheme} realm="daguerre"'}
    if isinstance(error, Forbidden) and error.scopes and scheme == "Bearer":
        scopes = " ".join(error.scopes)
        return {"www-authenticate": f'Bearer realm="daguerre", error="insufficient_scope", scope="{scopes}"'}
    return {}
