"""The OpenAPI document: it is valid, says all that there is, and nothing else."""

from typing import Any

import pytest
from declared import DOCUMENT, resolved
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from openapi_spec_validator import validate
from starlette.routing import WebSocketRoute

from daguerre.http.dialects import a1111
from daguerre.http.document.assembly import canonical, described
from daguerre.http.document.bodies import SdImg2Img
from daguerre.http.document.table import SOCKETS, TABLE
from daguerre.http.problems import STATUSES
from daguerre.http.routes import ROUTES
from daguerre.recipe import ALIASES, Draft

OPERATIONS = [
    (f"{method} {path}", told) for path, methods in DOCUMENT["paths"].items() for method, told in methods.items()
]


def test_it_is_valid() -> None:
    """By the OpenAPI initiative's schema of 3.1."""
    validate(DOCUMENT)


def test_every_route_is_in_the_table_and_the_reverse() -> None:
    """A route added or taken away without its row in http/document fails here, by its name."""
    routes = {key for _, _, key in described(ROUTES)}
    assert routes - set(TABLE) == set(), "these routes have no row in http/document/table.py"
    assert set(TABLE) - routes == set(), "these rows of http/document/table.py have no route"
    sockets = {canonical(route.path) for route in ROUTES if isinstance(route, WebSocketRoute)}
    assert sockets == set(SOCKETS)


def test_every_route_is_in_the_document() -> None:
    """Each method of each path, aliases too, under a name of its own."""
    assert {name for name, _ in OPERATIONS} == {f"{method.lower()} {path}" for method, path, _ in described(ROUTES)}
    names = [told["operationId"] for _, told in OPERATIONS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("name", "told"), OPERATIONS, ids=[name for name, _ in OPERATIONS])
def test_an_operation_is_told_whole(name: str, told: dict[str, Any]) -> None:
    """Path parameters, a body where one is read, an answer that is none of errors, and problems with examples."""
    parameters = {resolved(each)["name"] for each in told["parameters"] if resolved(each)["in"] == "path"}
    assert parameters == {part.strip("{}") for part in name.split("/") if part.startswith("{")}
    assert min(told["responses"]) == "200" or told["responses"].keys() >= {"202"}
    for status, reference in told["responses"].items():
        answer = resolved(reference)
        assert answer["description"]
        assert "X-Request-Id" in answer["headers"]
        for media, body in answer["content"].items():
            if int(status) >= 400 and media != "text/plain":
                assert body["examples"], (status, media)
                for each in body["examples"].values():
                    _check(body["schema"], each["value"])
    for body in told.get("requestBody", {}).get("content", {}).values():
        if "example" in body:
            _check(body["schema"], body["example"])


@pytest.mark.parametrize("name", sorted(set(DOCUMENT["components"]["schemas"]) - {"Status"}))
def test_every_schema_has_an_example_that_holds(name: str) -> None:
    """And says what it is."""
    schema = DOCUMENT["components"]["schemas"][name]
    assert schema["description"]
    assert schema["examples"]
    for example in schema["examples"]:
        _check({"$ref": f"#/components/schemas/{name}"}, example)


def test_all_that_can_be_said_in_a_recipe_is_in_its_schema() -> None:
    """Each field of a draft, each other name of one, and the short forms."""
    fields = set(DOCUMENT["components"]["schemas"]["Draft"]["properties"])
    assert fields == {*Draft.__struct_fields__, *ALIASES, "resolution", "lora_path", "lora_scale"}
    assert set(a1111.FIELDS) <= set(SdImg2Img.__struct_fields__)


def test_every_problem_is_in_the_document() -> None:
    """Each error that a client can meet is told of at some route, but for those that no route of the document has."""
    elsewhere = {"method_not_allowed", "pull_failed", "url_refused", "fetch_failed"}
    told = {
        code
        for answer in DOCUMENT["components"]["responses"].values()
        for body in answer["content"].values()
        for code in body["examples"]
    }
    assert {kind.code for kind in STATUSES} - elsewhere - told == set()


def _check(schema: dict[str, Any], value: Any) -> None:
    Draft202012Validator({**schema, "components": DOCUMENT["components"]}).validate(value)
