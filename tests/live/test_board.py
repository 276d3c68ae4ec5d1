"""Grafana's board and the alert rules against the metrics that a real server exports after a picture."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import promql_parser
import pytest
import questions
import yaml  # type: ignore[import-untyped]
from prometheus_client.parser import text_string_to_metric_families
from questions import DEPLOY

from server import Live

#: What Prometheus itself knows, and puts on every series.
ITS_OWN, ITS_LABELS = {"up": set[str]()}, {"job", "instance"}


@pytest.fixture(scope="module")
def exported(live: Live) -> dict[str, set[str]]:
    """The labels of every series after a picture, by name."""
    fields = {"prompt": "a red circle", "width": 64, "height": 64, "steps": 2}
    assert httpx.post(f"{live.address}/generate", json=fields, timeout=60).status_code == 200
    assert httpx.get(f"{live.address}/metrics", timeout=10).status_code == 200
    text = httpx.get(f"{live.address}/metrics", timeout=10).text
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def _parts(node: Any) -> Iterator[Any]:
    """A parsed expression and everything in it."""
    yield node
    for name in ("lhs", "rhs", "expr", "vector_selector", "args", "param"):
        inner = getattr(node, name, None)
        for child in inner if isinstance(inner, list) else (inner,):
            if child is not None and not isinstance(child, str):
                yield from _parts(child)


def _asked(expression: str) -> tuple[set[str], set[str]]:
    """The names of metrics in an expression, and all labels that it selects or groups by."""
    names, labels = set(), set()
    for part in _parts(promql_parser.parse(expression)):
        if isinstance(part, promql_parser.VectorSelector):
            names.add(part.name or "")
            labels |= {matcher.name for matcher in part.matchers.matchers}
        if isinstance(part, promql_parser.AggregateExpr) and part.modifier is not None:
            labels |= set(part.modifier.labels)
    return names, labels


@pytest.mark.parametrize(("where", "expression"), list(questions.questions("5m")))
def test_every_question_can_be_answered(where: str, expression: str, exported: dict[str, set[str]]) -> None:
    """It parses; the server exports each metric in it; and one of these has each label that it asks for."""
    names, labels = _asked(expression)
    assert names, where
    known = exported | ITS_OWN
    assert names <= known.keys(), (where, names - known.keys())
    assert labels <= ITS_LABELS.union(*(known[name] for name in names)), (where, labels)


def test_the_question_s_parts_are_found() -> None:
    """The test above would see a metric or a label that is not there, wherever it stands."""
    expression = 'topk(3, sum by (x) (rate(a_total{y="1"}[5m])) / on (z) (b > 2)) or histogram_quantile(0.9, c_bucket)'
    names, labels = _asked(expression)
    assert names == {"a_total", "b", "c_bucket"}
    assert labels == {"x", "y"}
    with pytest.raises(ValueError, match=r"."):
        promql_parser.parse("sum(rate(a[5m])")


def test_every_metric_of_ours_is_on_the_board(exported: dict[str, set[str]]) -> None:
    """A metric that nobody sees is none; bucket, sum and count are one."""
    seen = set().union(*(_asked(expression)[0] for _, expression in questions.questions("5m")))
    seen |= set(re.findall(r"label_values\((\w+),", json.dumps(questions.board()["templating"])))
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exported if not name.startswith("process_")}
    assert families <= {re.sub(r"_(bucket|sum|count)$", "", name) for name in seen}


def test_the_board_is_whole() -> None:
    """Each panel has its own number, place and source; each legend names labels that its question keeps."""
    panels = questions.board()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(places)
    for panel in panels:
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        for target in panel.get("targets", ()):
            assert target["datasource"] == panel["datasource"]
            legend = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            grouped = re.findall(r"by \(([^)]*)\)", target["expr"])
            if grouped:
                kept = {label.strip() for label in ",".join(grouped).split(",")}
                assert legend <= kept, panel["title"]


def test_alerts_say_what_to_do() -> None:
    """Each has a name of its own, a severity, a sentence and what to look at."""
    rules = questions.rules()
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"].endswith(".")
        assert len(rule["annotations"]["description"]) > 20


def test_the_pieces_point_at_each_other() -> None:
    """Prometheus reads the rules and asks the port that the server has; Grafana asks Prometheus."""
    prometheus = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    assert [Path(DEPLOY / "prometheus" / name).is_file() for name in prometheus["rule_files"]] == [True]
    (job,) = prometheus["scrape_configs"]
    assert job["static_configs"][0]["targets"] == ["daguerre:8000"]
    assert job.get("metrics_path", "/metrics") == "/metrics"
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "daguerre.yaml").read_text())["providers"]
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"
