"""The alert rules by Prometheus' own tool: valid, and each seen to fire and not to."""

import shutil
import subprocess
from pathlib import Path

import pytest
import recipes
import yaml

RULES = recipes.ROOT / "deploy" / "prometheus" / "alerts.yml"
CASES = Path(__file__).with_name("alerts.test.yml")
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian: prometheus)")


def _promtool(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60)


def _rules() -> list[recipes.Object]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def test_every_alert_has_its_case() -> None:
    """In which it is not there at first, and then is there once."""
    cases = [case["alert_rule_test"] for case in yaml.safe_load(CASES.read_text())["tests"]]
    assert [case[0]["alertname"] for case in cases] == [rule["alert"] for rule in _rules()]
    for before, then in cases:
        assert before["alertname"] == then["alertname"]
        assert ("exp_alerts" in before, len(then["exp_alerts"])) == (False, 1)


@needs_promtool
def test_prometheus_takes_the_configuration(tmp_path: Path) -> None:
    """As compose mounts it; the key's file, which is not here, lies elsewhere."""
    key = tmp_path / "key"
    key.write_text("")
    text = (RULES.parent / "prometheus.yml").read_text()
    (tmp_path / "prometheus.yml").write_text(text.replace("/run/secrets/daguerre_metrics_key", str(key)))
    shutil.copy(RULES, tmp_path)
    done = _promtool("check", "config", tmp_path / "prometheus.yml")
    assert done.returncode == 0, done.stderr
    assert f"{len(_rules())} rules found" in done.stdout


@needs_promtool
def test_prometheus_takes_the_job_of_the_guide(tmp_path: Path) -> None:
    """For Kubernetes: it keeps the pods' one port, by the labels and names that the manifests have."""
    guide = (recipes.ROOT / "docs" / "guides" / "monitoring.md").read_text()
    text = guide.partition("```yaml\n")[2].partition("```")[0]
    read = yaml.safe_load(text)
    (job,) = read["scrape_configs"]
    # Debian's promtool was built without it.
    assert job.pop("kubernetes_sd_configs") == [{"role": "pod"}]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(read))
    done = _promtool("check", "config", "--syntax-only", tmp_path / "prometheus.yml")
    assert done.returncode == 0, done.stderr
    for kind in ("Deployment", "StatefulSet"):
        (found,) = recipes.objects(kind)
        template = found["spec"]["template"]
        name = template["metadata"]["labels"]["app.kubernetes.io/name"]
        (port,) = template["spec"]["containers"][0]["ports"]
        assert job["relabel_configs"][0]["regex"] == f"{name};{port['name']}"


@needs_promtool
def test_the_alerts_fire_when_they_should() -> None:
    """With the words that a person gets to read."""
    done = _promtool("test", "rules", CASES)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_alerts_that_never_fire_are_seen(tmp_path: Path) -> None:
    """Each by its name: the cases above can fail."""
    found = yaml.safe_load(RULES.read_text())
    for rule in found["groups"][0]["rules"]:
        rule["expr"] = f"({rule['expr']}) < -1"
    (tmp_path / "alerts.yml").write_text(yaml.safe_dump(found))
    (tmp_path / "cases.yml").write_text(CASES.read_text().replace("../../deploy/prometheus/alerts.yml", "alerts.yml"))
    done = _promtool("test", "rules", tmp_path / "cases.yml")
    assert done.returncode == 1
    for rule in _rules():
        assert f"alertname: {rule['alert']}," in done.stderr + done.stdout
