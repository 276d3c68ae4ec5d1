"""A real Prometheus, configured as ours is, asks a server with keys; what the board and the rules ask, it answers."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import questions
import yaml  # type: ignore[import-untyped]

from server import ROOT, Live, serving

pytestmark = pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs prometheus (Debian: prometheus)")

PAINT = {"prompt": "a red circle", "width": 64, "height": 64, "steps": 3}
#: What there are no series of without an error of the server's or a start within the last minute.
OFTEN_EMPTY = {"Starts", *(rule["alert"] for rule in questions.rules())}


def _key(live: Live, scope: str) -> str:
    """Made as docs/guides/monitoring.md says."""
    data = live.outputs.with_name(f"{live.outputs.name}-data")
    command = [sys.executable, "-m", "daguerre", "keys", "create", scope, "--scope", scope]
    environment = os.environ | {"DAGUERRE_DATA": str(data)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout


def _configure(folder: Path, target: str, key: str) -> Path:
    """What compose mounts, but for the target, the key's place and its patience."""
    (folder / "key").write_text(key)
    shutil.copy(questions.DEPLOY / "prometheus" / "alerts.yml", folder)
    text = (questions.DEPLOY / "prometheus" / "prometheus.yml").read_text()
    assert "daguerre:8000" in text
    text = text.replace("/run/secrets/daguerre_metrics_key", str(folder / "key"))
    path = folder / "prometheus.yml"
    path.write_text(text.replace("daguerre:8000", target).replace(": 15s", ": 1s"))
    return path


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """It has asked often enough for rates, while pictures were painted."""
    folder = tmp_path_factory.mktemp("prometheus")
    with serving(tmp_path_factory.mktemp("outputs"), auth="keys") as live, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        free.close()
        configuration = _configure(folder, f"127.0.0.1:{live.port}", _key(live, "admin"))
        command = ["prometheus", f"--config.file={configuration}", f"--storage.tsdb.path={folder / 'tsdb'}"]
        with (folder / "log").open("w") as log:
            process = subprocess.Popen([*command, f"--web.listen-address={address}"], stderr=log)
        try:
            with httpx.Client(base_url=f"http://{address}/api/v1", timeout=30) as client:
                _paint_until_it_has_asked(client, live)
                yield client
        finally:
            process.terminate()
            process.wait(20)


def _paint_until_it_has_asked(client: httpx.Client, live: Live) -> None:
    painter = {"authorization": f"Bearer {_key(live, 'generate').strip()}"}
    lora = {"loras": [{"name": "balloon", "weight": 0.5}]}
    end = time.monotonic() + 90
    while httpx.get(f"{live.address}/readyz", timeout=10).status_code != 200:
        time.sleep(0.1)
    while time.monotonic() < end:
        for fields in (PAINT, PAINT | lora):
            assert httpx.post(f"{live.address}/generate", json=fields, headers=painter, timeout=60).status_code == 200
        try:
            found = _ask(client, "count_over_time(image_generation_duration_seconds_count[30s])")
        except httpx.ConnectError:  # it is starting
            continue
        if found and float(found[0]["value"][1]) >= 5:
            return
    raise AssertionError(client.get("/targets").text)


def _ask(client: httpx.Client, expression: str) -> list[dict[str, Any]]:
    answer = client.get("/query", params={"query": expression.replace("$job", ".*").replace("$model", ".*")}).json()
    assert answer["status"] == "success", answer
    found: list[dict[str, Any]] = answer["data"]["result"]
    return found


def test_it_reads_the_metrics_with_its_key(prometheus: httpx.Client) -> None:
    """And the one target is the one that was named."""
    (target,) = prometheus.get("/targets").json()["data"]["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")


def test_every_question_is_answered(prometheus: httpx.Client) -> None:
    """Without an error, and those of the board with something to show."""
    empty = {where for where, expression in questions.questions("30s") if not _ask(prometheus, expression)}
    assert empty <= OFTEN_EMPTY
    (painted,) = _ask(prometheus, "sum(rate(daguerre_images_total[30s]))")
    assert float(painted["value"][1]) > 0


def test_scaling_is_told_numbers(prometheus: httpx.Client) -> None:
    """KEDA's queries, and those that the adapter's rules become; here an instance is what is a pod there."""
    k8s = questions.DEPLOY / "k8s"
    keda = yaml.safe_load((k8s / "keda" / "scaledobject.yaml").read_text())
    queries = [trigger["metadata"]["query"] for trigger in keda["spec"]["triggers"]]
    for rule in yaml.safe_load((k8s / "hpa" / "prometheus-adapter.yaml").read_text())["rules"]["custom"]:
        query = rule["metricsQuery"].replace("<<.Series>>", rule["seriesQuery"].partition("{")[0])
        queries.append(query.replace("<<.LabelMatchers>>", 'job="daguerre"').replace("<<.GroupBy>>", "instance"))
    for query in queries:
        (found,) = _ask(prometheus, query)
        assert 0 <= float(found["value"][1]) < 60, query


def test_the_rules_are_in_force_and_nothing_is_wrong(prometheus: httpx.Client) -> None:
    """None of them fires on a server that is well."""
    (group,) = prometheus.get("/rules").json()["data"]["groups"]
    assert [rule["name"] for rule in group["rules"]] == [rule["alert"] for rule in questions.rules()]
    assert {rule["health"] for rule in group["rules"]} == {"ok"}
    # What holds for a moment is pending: the event loop of a busy machine, say.
    assert [rule["name"] for rule in group["rules"] if rule["state"] == "firing"] == []
