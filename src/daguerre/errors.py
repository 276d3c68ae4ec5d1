"""Owns the error tree: everything that Daguerre itself raises.

::

    DaguerreError
    ├── SettingsError              a setting is unknown, or has a value that cannot be
    ├── CatalogError               a folder or an entry of the catalogue cannot be used
    ├── PullFailed                 a model could not be fetched from the Hub
    ├── FetchFailed                what a URL names could not be had
    ├── BackupFailed               a backup could not be made, or not put back
    ├── DataInUse                  another process has the data folder
    ├── BadRequest                 what the client sent cannot be served
    │   ├── MalformedBody          not JSON, not UTF-8, nested too deep
    │   ├── InvalidRecipe          fields of a recipe are wrong; each is named
    │   │   └── LoraMisfit         those that name LoRAs which are broken, or made for another model
    │   ├── BodyTooLarge
    │   ├── UnsupportedMediaType
    │   ├── NotAcceptable
    │   ├── MalformedRequest       what came is not HTTP
    │   ├── RequestTimeout         the request itself arrived too slowly
    │   ├── HostNotAllowed
    │   ├── KeyReused              an Idempotency-Key came with two different requests
    │   ├── LoraIncompatible       a LoRA is broken, or made for another model
    │   ├── UrlRefused             a URL that this server will not go to
    │   ├── PromptRefused          the prompt matches a rule of the operator's
    │   └── ModelBusy              a model that is painted with cannot be unloaded
    ├── AccessRefused              who asks may not
    │   ├── Unauthenticated        no credentials, or none that are valid
    │   ├── Forbidden              valid ones that do not reach this far
    │   └── OriginNotAllowed       a page of another site asks
    ├── NotFound
    │   ├── RouteNotFound
    │   ├── MethodNotAllowed
    │   ├── ModelNotFound
    │   ├── ModelNotPulled         the catalogue knows it, but its files are not on this machine
    │   ├── LoraNotFound
    │   ├── JobNotFound
    │   └── ResultExpired          the job is known, its result is no longer kept
    ├── Unavailable                try again later; carries ``retry_after``
    │   ├── QueueFull
    │   ├── NotReady               the model is still loading, or the engine is dead
    │   ├── StorageFailed          what must be durable could not be written
    │   ├── ModerationFailed       prompts cannot be checked
    │   ├── SafetyCheckFailed      the job's picture could not be checked, and so is not shown
    │   ├── DiskLow
    │   ├── RateLimited            the client has used up what it may use in a minute
    │   ├── ClientLimit            the client has as many unfinished jobs as it may have
    │   ├── AuthUnavailable        whoever could say whether the credentials are valid does not answer
    │   └── Draining               the server is going down
    └── JobEnded                   a job ended without a picture
        ├── NoPicture              told to whoever asks for the picture later
        ├── JobCancelled
        ├── JobTimeout
        └── JobFailed
            ├── BadOutput          NaN pixels
            ├── ImageRefused       a safety checker saw in the picture what is not to be shown
            ├── Poisoned           the server died while painting it, again and again
            └── OutOfMemory

A leaf has a ``code`` that clients may rely on; which HTTP status belongs to it is said in ``http/problems.py``.
Messages are written for the client: no path, no address, no text of somebody else's exception.
"""

from typing import Literal

import msgspec


class FieldError(msgspec.Struct, frozen=True):
    """One field of a request that is wrong, and what it may be."""

    field: str
    message: str


class DaguerreError(Exception):
    """The root; a class without a ``code`` of its own is never raised."""

    code = "internal_error"

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())
        self.message = str(self)


class SettingsError(DaguerreError):
    """A setting is unknown or has a value that cannot be."""

    code = "bad_setting"


class CatalogError(DaguerreError):
    """An entry of the catalogue cannot be used."""

    code = "bad_catalog"


class PullFailed(DaguerreError):
    """The model could not be fetched from the Hub."""

    code = "pull_failed"


class FetchFailed(DaguerreError):
    """Nobody answers there in HTTP."""

    code = "fetch_failed"


class BackupFailed(DaguerreError):
    """The backup could not be made, or not put back."""

    code = "backup_failed"


class DataInUse(DaguerreError):
    """Another Daguerre has this data folder."""

    code = "data_in_use"


class BadRequest(DaguerreError):
    """The request cannot be served as it was sent."""


class MalformedBody(BadRequest):
    """The body is not a JSON object in UTF-8."""

    code = "malformed_body"


class InvalidRecipe(BadRequest):
    """Fields of the recipe are wrong."""

    code = "invalid_recipe"

    def __init__(self, errors: list[FieldError]) -> None:
        super().__init__("; ".join(f"{error.field}: {error.message}" for error in errors))
        self.errors = errors


class LoraMisfit(InvalidRecipe):
    """LoRAs of the recipe are broken, or do not fit its model."""

    code = "lora_incompatible"


class BodyTooLarge(BadRequest):
    """The body is larger than this server takes."""

    code = "body_too_large"


class UnsupportedMediaType(BadRequest):
    """The body must be application/json."""

    code = "unsupported_media_type"


class NotAcceptable(BadRequest):
    """Nothing that this route answers with is accepted by the client."""

    code = "not_acceptable"


class MalformedRequest(BadRequest):
    """The request is not HTTP that can be read."""

    code = "malformed_request"


class RequestTimeout(BadRequest):
    """The request did not arrive in time."""

    code = "request_timeout"


class HostNotAllowed(BadRequest):
    """This server does not answer to that host name."""

    code = "host_not_allowed"


class KeyReused(BadRequest):
    """This Idempotency-Key has come with another request before."""

    code = "idempotency_key_reused"


class ModelBusy(BadRequest):
    """Jobs are waiting for the model, or are painted with it."""

    code = "model_busy"


class LoraIncompatible(BadRequest):
    """The LoRA is broken, or does not fit the model."""

    code = "lora_incompatible"


class AccessRefused(DaguerreError):
    """Who asks may not do this."""


#: What can be wrong with credentials.
Reason = Literal["none", "several", "malformed", "unknown", "revoked", "expired", "forged", "foreign"]


class Unauthenticated(AccessRefused):
    """Credentials are needed here, and none came that are valid."""

    code = "unauthenticated"

    def __init__(self, reason: Reason) -> None:
        super().__init__()
        self.reason = reason  # for the log: a client is not told what is wrong with its guess


class Forbidden(AccessRefused):
    """These credentials do not allow this."""

    code = "forbidden"

    def __init__(self, message: str | None = None, scopes: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.scopes = scopes  # any of which would do


class OriginNotAllowed(AccessRefused):
    """Pages of that origin may not use this server."""

    code = "origin_not_allowed"


class UrlRefused(BadRequest):
    """This server does not go to that URL."""

    code = "url_refused"


class PromptRefused(BadRequest):
    """The prompt matches a rule of this server's operator."""

    code = "prompt_refused"

    def __init__(self, category: str) -> None:
        super().__init__(f"the prompt is refused by a rule of this server; its category: {category}")
        self.category = category


class NotFound(DaguerreError):
    """There is nothing of that name."""


class RouteNotFound(NotFound):
    """There is no such route."""

    code = "not_found"


class MethodNotAllowed(NotFound):
    """This route does not take that method."""

    code = "method_not_allowed"


class ModelNotFound(NotFound):
    """There is no model of that name."""

    code = "model_not_found"

    def __init__(self, name: str, known: list[str]) -> None:
        super().__init__(f"there is no model {name!r}; known models: {', '.join(known) or 'none'}")


class LoraNotFound(NotFound):
    """There is no LoRA of that name."""

    code = "lora_not_found"

    def __init__(self, name: str, known: list[str]) -> None:
        shown = ", ".join(known[:20]) + (", …" if len(known) > 20 else "")
        super().__init__(f"there is no LoRA {name!r}; known LoRAs: {shown or 'none'}")


class ModelNotPulled(NotFound):
    """The model is in the catalogue, but its files are not on this machine."""

    code = "model_not_pulled"

    def __init__(self, name: str) -> None:
        super().__init__(f"model {name!r} is not on this machine; whoever runs it can say: daguerre pull {name}")


class JobNotFound(NotFound):
    """There is no job of that id."""

    code = "job_not_found"


class ResultExpired(NotFound):
    """The job's result is no longer kept."""

    code = "expired"


class Unavailable(DaguerreError):
    """The server cannot take this now; ``retry_after`` is in seconds."""

    def __init__(self, message: str | None = None, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class QueueFull(Unavailable):
    """The queue is full."""

    code = "queue_full"


class NotReady(Unavailable):
    """The server is not ready."""

    code = "not_ready"


class StorageFailed(Unavailable):
    """The job could not be written down, so it was not accepted."""

    code = "storage_failed"


class ModerationFailed(Unavailable):
    """Prompts cannot be checked now, so none is taken."""

    code = "moderation_failed"


class SafetyCheckFailed(Unavailable):
    """The picture could not be checked, so it is not shown."""

    code = "safety_check_failed"


class DiskLow(Unavailable):
    """There is too little room on the server's disk for more pictures."""

    code = "disk_low"


class RateLimited(Unavailable):
    """The client has asked for more than it may in this time."""

    code = "rate_limited"


class ClientLimit(Unavailable):
    """The client has as many unfinished jobs as it may have."""

    code = "client_limit"


class AuthUnavailable(Unavailable):
    """Whether the credentials are valid cannot be found out now."""

    code = "auth_unavailable"


class Draining(Unavailable):
    """The server is shutting down."""

    code = "draining"


class JobEnded(DaguerreError):
    """The job ended without a picture."""


class JobCancelled(JobEnded):
    """The job was cancelled."""

    code = "cancelled"


class JobTimeout(JobEnded):
    """The job ran out of time."""

    code = "timeout"


class JobFailed(JobEnded):
    """The model failed while making the picture; the server's log says why."""

    code = "generation_failed"


class NoPicture(JobEnded):
    """The job failed, for a reason that is told as it was then."""

    def __init__(self, reason: DaguerreError) -> None:
        super().__init__(reason.message)
        self.code = reason.code


class BadOutput(JobFailed):
    """The picture came out black or as not-a-number; the usual cause is a VAE run in float16."""

    code = "bad_output"


class ImageRefused(JobFailed):
    """This server's safety checker sees in the picture what it does not show."""

    code = "image_refused"


class Poisoned(JobFailed):
    """The server died each time while it painted this job."""

    code = "poison"


class OutOfMemory(JobFailed):
    """The device ran out of memory; try a smaller picture."""

    code = "out_of_memory"
