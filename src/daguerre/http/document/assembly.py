"""Owns the assembly of the OpenAPI document, of the routes, the tables of operations and the Structs."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from starlette.routing import BaseRoute, Route

from daguerre.errors import DaguerreError
from daguerre.http.document import examples
from daguerre.http.document.operation import (
    ALWAYS,
    EVERYWHERE,
    GATED,
    HEADERS,
    PROBLEMS,
    REQUEST_ID,
    SENT,
    Answer,
    Body,
    Envelope,
    Lines,
    Operation,
    Parameter,
    Picture,
)
from daguerre.http.document.schemas import Json, Schemas, inline
from daguerre.http.document.table import ALIASES, SOCKETS, TABLE
from daguerre.http.scopes import OPEN, needed
from daguerre.version import __version__

_ABOUT = """\
A self-hosted image-generation server. Whatever `GET` serves, `HEAD` does. Errors are problems (RFC 9457) with a `code`
to rely on; where a path does not take a method, `405` says which it takes."""

#: Where credentials may stand; a server with ``auth = "none"`` asks for none.
SCHEMES: Json = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, a token of the Hub, or a JWT."},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "An API key."},
    "basic": {"type": "http", "scheme": "basic", "description": "An API key as the password."},
}

Kinds = tuple[type[DaguerreError], ...]
Raised = tuple[Envelope, type[DaguerreError]]


def canonical(path: str) -> str:
    """The path under which the tables know a route."""
    path = path.removeprefix("/api") if path.startswith("/api/v1") else path
    return ALIASES.get(path, path)


def described(routes: Iterable[BaseRoute]) -> Iterator[tuple[str, str, str]]:
    """Method, path and the key in the table of each HTTP route."""
    for route in routes:
        if isinstance(route, Route):
            for method in sorted((route.methods or set()) - {"HEAD"}):
                yield method, route.path, f"{method} {canonical(route.path)}"


def document(routes: Iterable[BaseRoute]) -> Json:
    """The OpenAPI 3.1 document of those routes that the tables know."""
    return _Assembly().document([each for each in described(routes) if each[2] in TABLE])


class _Assembly:
    """Gathers the components while the paths are made."""

    def __init__(self) -> None:
        frames = {frame for _, *frames in SOCKETS.values() for frame in frames if frame is not None}
        self._schemas = Schemas(frames.union(*map(_kinds, TABLE.values())))
        self._responses: Json = {}

    def document(self, routes: list[tuple[str, str, str]]) -> Json:
        paths: Json = defaultdict(dict)
        for method, path, key in routes:
            paths[path][method.lower()] = self._operation(method, path, TABLE[key])
        return {
            "openapi": "3.1.0",
            "info": {
                "title": "Daguerre",
                "version": __version__,
                "description": _ABOUT,
                "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            },
            "servers": [{"url": "/"}],
            "tags": [{"name": tag} for tag in dict.fromkeys(operation.tag for operation in TABLE.values())],
            "paths": paths,
            "x-websockets": {path: self._socket(*told) for path, told in SOCKETS.items()},
            "components": {
                "schemas": self._schemas.components,
                "responses": self._responses,
                "headers": {name: _header(*told) for name, told in HEADERS.items()},
                "parameters": {REQUEST_ID.name: _parameter(REQUEST_ID)},
                "securitySchemes": SCHEMES,
            },
            "security": [{}, *({name: []} for name in SCHEMES)],
        }

    def _operation(self, method: str, path: str, operation: Operation) -> Json:
        main = canonical(path)
        is_open = needed(main) == OPEN
        gated, sent = () if is_open else GATED, () if method == "GET" else SENT
        made: Json = {
            "operationId": re.sub(r"\W+", "_", f"{method} {path}".lower()).strip("_"),
            "summary": operation.summary,
            "tags": [operation.tag],
            "parameters": [
                {"$ref": f"#/components/parameters/{REQUEST_ID.name}"},
                *map(_parameter, operation.parameters),
            ],
            "responses": self._answers(operation, gated, sent),
        }
        if is_open:
            made["security"] = []
        if path != main:
            made["description"] = f"The same as {method} {main}."
        if operation.body is not None:
            made["requestBody"] = self._body(operation.body)
        return made

    def _body(self, body: Body) -> Json:
        schema = self._schemas.of(body.kind)
        if body.needed or body.refused:
            unwanted: Json = {name: {"type": "null"} for name in body.refused}
            schema = {"allOf": [schema, {"required": list(body.needed), "properties": unwanted}]}
        example = {} if body.example is None else {"example": dict(body.example)}
        return {"required": True, "content": {body.media: {"schema": schema, **example}}}

    def _answers(self, operation: Operation, gated: Kinds, sent: Kinds) -> Json:
        raised: dict[int, list[Raised]] = defaultdict(list)
        ours: tuple[Envelope, Kinds] = (PROBLEMS, (*EVERYWHERE, *sent))
        theirs: tuple[Envelope, Kinds] = (operation.envelope, (*operation.raised, *gated))
        for envelope, kinds in (ours, theirs):
            for kind in dict.fromkeys(kinds):
                raised[_told(envelope, kind).status_code].append((envelope, kind))
        answers = {answer.status: self._answer(answer) for answer in operation.answers}
        failures = {status: self._failure(status, kinds) for status, kinds in raised.items()}
        for status in answers.keys() & failures.keys():  # Starlette's own answers, in plain text
            failures[status] = _joined(answers[status], self._failed(raised[status]))
        return {str(status): made for status, made in sorted((answers | failures).items())}

    def _answer(self, answer: Answer) -> Json:
        return {
            "description": answer.description,
            "headers": _header_refs((*ALWAYS, *answer.headers)),
            "content": {
                media: {} if kind is Picture else {"schema": self._schemas.of(kind)}
                for media, kind in answer.bodies.items()
            },
        }

    def _failure(self, status: int, raised: list[Raised]) -> Json:
        """A reference to the answer that tells one of these errors, made when it is first asked for."""
        kinds = dict.fromkeys(envelope.kind.__name__ for envelope, _ in raised)
        name = ".".join((str(status), *kinds, *(examples.error(kind).code for _, kind in raised)))
        if name not in self._responses:
            self._responses[name] = self._failed(raised)
        return {"$ref": f"#/components/responses/{name}"}

    def _failed(self, raised: list[Raised]) -> Json:
        content: Json = {}
        headers = dict.fromkeys(ALWAYS)
        for envelope, kind in raised:
            response = _told(envelope, kind)
            headers |= dict.fromkeys(name for name in HEADERS if name.lower() in response.headers)
            headers |= dict.fromkeys(envelope.headers)
            media, schema = response.headers["content-type"], self._schemas.of(envelope.kind)
            entry = content.setdefault(media, {"schema": schema, "examples": {}})
            entry["examples"][examples.error(kind).code] = {"value": msgspec.json.decode(response.body)}
        said = dict.fromkeys(examples.error(kind).message for _, kind in raised)
        return {"description": " · ".join(said), "headers": _header_refs(headers), "content": content}

    def _socket(self, summary: str, sent: Any, received: Any) -> Json:
        made: Json = {"summary": summary, "receive": self._schemas.of(received)}
        return made if sent is None else {**made, "send": self._schemas.of(sent)}


def _kinds(operation: Operation) -> set[Any]:
    """The types of an operation's bodies that have schemas of their own."""
    found = {kind for answer in operation.answers for kind in answer.bodies.values()}
    found |= set() if operation.body is None else {operation.body.kind}
    return (found | {operation.envelope.kind, PROBLEMS.kind}) - {Picture, Lines, dict}


def _told(envelope: Envelope, kind: type[DaguerreError]) -> Any:
    """The answer that an error of this kind really gets."""
    return envelope.tell(examples.error(kind), examples.REQUEST_ID)


def _parameter(parameter: Parameter) -> Json:
    return {
        "name": parameter.name,
        "in": parameter.place,
        "required": parameter.place == "path",
        "description": parameter.description,
        "schema": inline(parameter.kind),
    }


def _header(description: str, example: str) -> Json:
    return {"description": description, "schema": {"type": "string"}, "example": example}


def _header_refs(names: Iterable[str]) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _joined(one: Json, other: Json) -> Json:
    return {
        "description": f"{one['description']} · {other['description']}",
        "headers": one["headers"] | other["headers"],
        "content": one["content"] | other["content"],
    }
