"""Owns the schemas: JSON Schema of the Structs on the wire, with an example each."""

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from daguerre.http.document import examples
from daguerre.http.document.operation import Lines
from daguerre.recipe import ALIASES, Draft, LoraWish

Json = dict[str, Any]

_REF = "#/components/schemas/{name}"


class Schemas:
    """The schemas of some types, as references to ``components`` where a type has a name."""

    def __init__(self, kinds: Iterable[Any]) -> None:
        order = sorted(set(kinds), key=str)
        schemas, self.components = msgspec.json.schema_components(order, ref_template=_REF)
        self._of = dict(zip(order, schemas, strict=True))
        for kind in _structs():
            if kind.__name__ in self.components:
                self.components[kind.__name__]["examples"] = [examples.example(kind)]
        _widen(self.components[Draft.__name__], self.components[LoraWish.__name__]["properties"])

    def of(self, kind: Any) -> Json:
        """The schema of a type."""
        if kind is Lines:
            return {"type": "string"}
        return {"type": "object"} if kind is dict else dict(self._of[kind])


def inline(kind: Any) -> Json:
    """A schema that needs no component."""
    (schema,), components = msgspec.json.schema_components([kind], ref_template=_REF)
    return next(iter(components.values())) if "$ref" in schema else schema


def _structs() -> Iterator[type[msgspec.Struct]]:
    """All Structs that there are."""
    waiting: list[type[msgspec.Struct]] = list(msgspec.Struct.__subclasses__())
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        yield kind


def _widen(recipe: Json, lora: Json) -> None:
    """A recipe as it is read: null is the same as absent, and fields have other names beside their own."""
    fields: Json = recipe["properties"]
    for name in set(fields) - {"prompt"}:
        if {"type": "null"} not in fields[name].get("anyOf", ()):
            fields[name] = {"anyOf": [fields[name], {"type": "null"}]}
    for alias, name in ALIASES.items():
        fields[alias] = {**fields[name], "description": f"The same as {name}."}
    for name, own in (("lora_path", "name"), ("lora_scale", "weight")):
        described = {"description": f"The {own} of a single LoRA."}
        fields[name] = {**described, "anyOf": [lora[own], {"type": "null"}]}
    size = {"type": "string", "pattern": "^[0-9]{1,5}[x×][0-9]{1,5}$"}
    fields["resolution"] = {"description": 'Width and height: "512x768".', "anyOf": [size, {"type": "null"}]}
    recipe["additionalProperties"] = False
