"""Owns what Grafana and the alert rules ask of Prometheus."""

import json
from collections.abc import Iterator
from typing import Any

import yaml  # type: ignore[import-untyped]

from server import ROOT

DEPLOY = ROOT / "deploy"


def board() -> dict[str, Any]:
    """Grafana's board."""
    found: dict[str, Any] = json.loads((DEPLOY / "grafana" / "daguerre.json").read_text())
    return found


def rules() -> list[dict[str, Any]]:
    """The alert rules."""
    groups = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def questions(window: str) -> Iterator[tuple[str, str]]:
    """Every expression of the board and of the rules, with where it stands; ``window`` is Grafana's for rates."""
    for panel in board()["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"].replace("$__rate_interval", window)
    for annotation in board()["annotations"]["list"]:
        yield annotation["name"], annotation["expr"]
    for rule in rules():
        yield rule["alert"], rule["expr"]
