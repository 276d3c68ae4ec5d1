"""Reads the files that people deploy with: their environments, their paths, their objects."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
K8S = ROOT / "deploy" / "k8s"

Object = dict[str, Any]


def dockerfile() -> list[tuple[str, str]]:
    """The Dockerfile's instructions with their arguments, lines that are continued joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(line.partition(" ")[0], line.partition(" ")[2].strip()) for line in lines if line.strip()]


def last_stage() -> list[tuple[str, str]]:
    """What becomes the image."""
    found = dockerfile()
    begin = max(i for i, (instruction, _) in enumerate(found) if instruction == "FROM")
    return found[begin:]


def image_environment() -> dict[str, str]:
    """The variables of the image."""
    pairs = [pair for instruction, rest in last_stage() if instruction == "ENV" for pair in shlex.split(rest)]
    return dict(pair.split("=", 1) for pair in pairs)


def compose_text() -> str:
    """compose.yaml with every variable at its default."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (ROOT / "compose.yaml").read_text())


def compose() -> Object:
    """compose.yaml as Docker would read it without any variable set."""
    read: Object = yaml.safe_load(compose_text())
    return read


def manifests(folder: str = "") -> Iterator[tuple[Path, Object]]:
    """Every Kubernetes object, by its file."""
    for path in sorted((K8S / folder).rglob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            if "kind" in document and document["kind"] != "Kustomization":
                yield path, document


def objects(kind: str, folder: str = "") -> list[Object]:
    """The Kubernetes objects of a kind."""
    return [found for _, found in manifests(folder) if found["kind"] == kind]


def unit() -> dict[str, list[str]]:
    """The directives of the systemd unit; those that may come again and again have several values."""
    found: dict[str, list[str]] = {}
    for line in (ROOT / "deploy" / "systemd" / "daguerre.service").read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            name, value = line.split("=", 1)
            found.setdefault(name, []).append(value)
    return found


def unit_environment() -> dict[str, str]:
    """The variables that the unit sets."""
    return dict(value.split("=", 1) for value in unit()["Environment"])


def seconds(text: str) -> int:
    """A duration as compose spells it: 40s."""
    return int(text.removesuffix("s"))
