"""What the deployment says of metrics, against what a server exports."""

import re
from pathlib import Path

import pytest
import recipes
import yaml

metrics = pytest.importorskip("daguerre.telemetry.metrics", reason="there are no metrics yet")
ROOT = recipes.ROOT


def _exported() -> set[str]:
    """The series that a server has from its first moment on."""
    from daguerre.telemetry.counters import Counters

    text = metrics.Metrics(Counters()).text()
    text = text.decode() if isinstance(text, bytes) else text
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, flags=re.MULTILINE))
    suffixes = {"histogram": ("_bucket", "_sum", "_count")}
    return {name + suffix for name, kind in kinds.items() for suffix in suffixes.get(kind, ("",))}


def test_scaling_asks_for_what_is_exported() -> None:
    """Every series in the adapter's rules and in KEDA's queries."""
    adapter = (recipes.K8S / "hpa" / "prometheus-adapter.yaml").read_text()
    (keda,) = recipes.objects("ScaledObject")
    queries = [trigger["metadata"]["query"] for trigger in keda["spec"]["triggers"]]
    asked = set(re.findall(r"\b(?:image_generation|daguerre)_\w+", " ".join([adapter, *queries])))
    made = {rule["name"]["as"] for rule in yaml.safe_load(adapter)["rules"]["custom"] if "name" in rule}
    assert asked - made
    assert asked - made <= _exported()


def test_what_compose_mounts_is_there() -> None:
    """Prometheus' configuration, Grafana's board and its provisioning, at the places where they look."""
    services = recipes.compose()["services"]
    mounted = dict(
        volume.split(":")[:2]
        for name in ("prometheus", "grafana")
        for volume in services[name]["volumes"]
        if volume.startswith("./")
    )
    for source in mounted:
        assert (ROOT / source).exists(), source
    places = set(mounted.values())
    provisioning = ROOT / "deploy" / "grafana" / "provisioning"
    for path in (provisioning / "dashboards").iterdir():
        for provider in yaml.safe_load(path.read_text())["providers"]:
            assert any(Path(place).parent == Path(provider["options"]["path"]) for place in places)
    targets = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    assert targets[0]["static_configs"][0]["targets"] == ["daguerre:8000"]
