"""Holds what a server answers against its document: statuses, media types, headers, and bodies that are JSON."""

import functools
import json
from typing import Any

import httpx
import msgspec
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from starlette.routing import Match, Route

from daguerre.http.document.assembly import document
from daguerre.http.routes import ROUTES

DOCUMENT: dict[str, Any] = json.loads(msgspec.json.encode(document(ROUTES)))

#: Headers that HTTP itself speaks of.
USUAL = frozenset(["date", "content-type", "content-length", "connection", "transfer-encoding", "allow"])


def check(response: httpx.Response) -> None:
    """A hook for a client: fails the test that meets an answer which the document does not have."""
    request = response.request
    method = "GET" if request.method == "HEAD" else request.method
    scope = {"type": "http", "method": method, "path": request.url.path}
    route = next((route for route in ROUTES if route.matches(scope)[0] is Match.FULL), None)
    if not isinstance(route, Route):
        assert response.status_code in (400, 403, 404, 405), (request.method, request.url.path, response.status_code)
        return
    about = f"{method} {route.path} {response.status_code}"
    operation = DOCUMENT["paths"].get(route.path, {}).get(method.lower(), {})
    told = resolved(operation.get("responses", {}).get(str(response.status_code)))
    assert told is not None, f"{about} is not in the document: see http/document/table.py"
    undeclared = set(response.headers) - {name.lower() for name in told["headers"]} - USUAL
    assert not undeclared, f"{about}: headers {undeclared} are not in the document"
    media = response.headers.get("content-type", "").split(";")[0]
    assert media in told["content"], f"{about}: {media} is not in the document"
    if media.endswith("json") and request.method != "HEAD":
        response.read()
        _check_body(about, told["content"][media]["schema"], response.json())


def resolved(value: Any) -> Any:
    """What a reference refers to."""
    if not isinstance(value, dict) or "$ref" not in value:
        return value
    return functools.reduce(lambda at, part: at[part], value["$ref"].removeprefix("#/").split("/"), DOCUMENT)


def _check_body(about: str, schema: dict[str, Any], body: Any) -> None:
    error = next(validator(json.dumps(schema)).iter_errors(body), None)
    assert error is None, f"{about}: {error.message[:300]} at {list(error.absolute_path)}"


@functools.cache
def validator(schema: str) -> Draft202012Validator:
    """A validator that takes no field which the document does not name."""
    schemas = {name: _closed(each) for name, each in DOCUMENT["components"]["schemas"].items()}
    return Draft202012Validator({**json.loads(schema), "components": {"schemas": schemas}})


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    return {**schema, "additionalProperties": False} if "properties" in schema else schema
