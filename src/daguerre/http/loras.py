"""Owns the routes of LoRAs: what there is, where it is, reading it ahead and letting go of it."""

from starlette.requests import Request
from starlette.responses import Response

from daguerre.answers import LoraList, WireLora
from daguerre.errors import FieldError, InvalidRecipe
from daguerre.http import wire
from daguerre.http.exchange import as_json
from daguerre.http.state import State
from daguerre.job import Failure
from daguerre.loras import Lora


async def loras(request: Request[State]) -> Response:
    """``GET /v1/loras``: all LoRAs of the catalogue that can be used."""
    return as_json(LoraList("list", [_wire(request, lora) for lora in request.state["loras"].loras]))


async def load(request: Request[State]) -> Response:
    """``POST /v1/loras/load``: 202 while it is on its way to host memory, 200 when it is there."""
    lora, is_there = request.state["loras"].load(await _named(request))
    return as_json(_wire(request, lora), 200 if is_there else 202)


async def unload(request: Request[State]) -> Response:
    """``POST /v1/loras/unload``: 409 while jobs need it."""
    return as_json(_wire(request, request.state["loras"].unload(await _named(request))))


async def _named(request: Request[State]) -> str:
    """The one field that these routes take."""
    fields = wire.read_object(request.headers.get("content-type", ""), await request.body())
    errors = [FieldError(name[:80], "unknown field") for name in fields if name != "name"]
    name = fields.get("name")
    if not isinstance(name, str) or not name.isprintable():
        errors.append(FieldError("name", "required: the name of a LoRA"))
    if errors:
        raise InvalidRecipe(errors)
    return str(name)


def _wire(request: Request[State], lora: Lora) -> WireLora:
    status = request.state["loras"].status(lora)
    return WireLora(
        name=lora.name,
        object="lora",
        family=lora.family,
        state=status.place,
        default_weight=lora.default_weight,
        trigger_words=lora.trigger_words,
        rank=lora.rank,
        bytes=lora.bytes,
        description=lora.description,
        error=Failure(status.error.code, status.error.message) if status.error is not None else None,
    )
