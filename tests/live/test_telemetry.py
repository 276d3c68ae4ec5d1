"""What a real server tells of itself: log lines, metrics, a client's totals; and that telling never stops it."""

import contextlib
import gzip
import json
import os
import pty
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.parser import text_string_to_metric_families

from server import ROOT, Live, serving

PAINT: dict[str, Any] = {"prompt": "a red circle", "width": 64, "height": 64, "steps": 3, "seed": 5}

#: What a prompt would have to become to be seen as a line of its own.
FORGED = 'a circle\r\n{"level": "critical", "message": "forged"}\n\x1b[2J\u2028\x85forged'


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server of our own: what it counts is ours."""
    with serving(tmp_path_factory.mktemp("outputs"), log_level="debug") as live:
        live.wait_ready()
        yield live
        assert live.stop() == 0


def _series(address: str) -> dict[str, float]:
    """Every series that is exported, by name and labels."""
    answer = httpx.get(f"{address}/metrics", timeout=30)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return {
        f"{sample.name}{json.dumps(sample.labels, sort_keys=True)}": sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def _lines(log: list[str]) -> list[dict[str, Any]]:
    """Every line of the log; each has to be an object by itself."""
    return [json.loads(line) for line in log]


def _wait_for_lines(live: Live, job_id: str, status: str) -> list[dict[str, Any]]:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        found = [line for line in _lines(live.log) if line.get("job_id") == job_id]
        if any(line["status"] == status for line in found):
            return found
        time.sleep(0.02)
    raise AssertionError(live.log)


def test_a_job_leaves_a_line_for_each_of_its_states(quiet: Live) -> None:
    """With the request that it came with; its prompt, which tries to forge one, is in none."""
    fields = {**PAINT, "prompt": FORGED, "prompt_syntax": "plain", "metadata": {"a\nb": FORGED}}
    answer = httpx.post(f"{quiet.address}/generate", json=fields, headers={"x-request-id": "the-request"}, timeout=60)
    assert answer.status_code == 200
    lines = _wait_for_lines(quiet, answer.headers["x-job-id"], "succeeded")
    assert [line["status"] for line in lines] == ["queued", "running", "succeeded"]
    assert {line["request_id"] for line in lines} == {"the-request"}
    done = lines[-1]
    assert (done["client"], done["model_id"], done["seed"], done["error"]) == ("127.0.0.1", "demo-xl", 5, None)
    latency = done["latency_ms"]
    assert set(latency) == {"queue", "encode", "denoise", "decode", "png", "total"}
    assert all(value >= 0 for value in latency.values())
    assert latency["denoise"] + latency["decode"] <= latency["total"]
    assert (done["vram_peak_mb"], done["safety_filter_result"]) == (None, None)
    assert "forged" not in "".join(quiet.log)


def test_a_failed_and_a_cancelled_job_say_why(quiet: Live) -> None:
    """Their last line has the error's code; the client's name for the request cannot forge one either."""
    with quiet.ask() as client:
        headers = {"x-request-id": "a b\tc"}
        job = client.post("/v1/jobs", json={**PAINT, "steps": 150}, headers=headers).json()
        client.delete(f"/v1/jobs/{job['id']}")
    last = _wait_for_lines(quiet, job["id"], "cancelled")[-1]
    assert last["error"] == "cancelled"
    assert re.fullmatch(r"[0-9a-f-]{36}", last["request_id"])


@contextlib.contextmanager
def _collecting() -> Iterator[tuple[str, list[bytes]]]:
    """A collector of traces: its address, and what has been sent to it."""
    received: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            is_packed = self.headers.get("content-encoding") == "gzip"
            received.append(gzip.decompress(body) if is_packed else body)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", received
        server.shutdown()


def test_prompts_are_logged_where_a_setting_says_so(tmp_path: Path) -> None:
    """As one string of one line; the file in LOG_DIR has the same lines as standard error; traces never have them."""
    folder = tmp_path / "logs"
    with (
        _collecting() as (endpoint, traces),
        serving(tmp_path / "outputs", log_prompts="true", log_dir=str(folder), traces_endpoint=endpoint) as live,
    ):
        answer = httpx.post(
            f"{live.address}/generate",
            json={**PAINT, "prompt": FORGED, "prompt_syntax": "plain"},
            timeout=60,
        )
        assert answer.status_code == 200
        lines = _wait_for_lines(live, answer.headers["x-job-id"], "succeeded")
        assert {line["prompt"] for line in lines} == {FORGED}
        assert not any(line["message"] == "forged" for line in _lines(live.log))
        assert live.stop() == 0
    assert (folder / "daguerre.log").read_text() == "".join(live.log)
    request = ExportTraceServiceRequest.FromString(b"".join(traces))
    spans = [span for one in request.resource_spans for scope in one.scope_spans for span in scope.spans]
    assert {span.name for span in spans} == {"job", "queue", "encode", "denoise", "decode", "png"}
    assert answer.headers["x-job-id"] in str(spans)
    assert "forged" not in str(request)


def test_metrics_count_what_was_painted(quiet: Live) -> None:
    """Two pictures of one prompt: two requests, one of them from the cache, each step and each phase."""
    before = _series(quiet.address)
    with quiet.ask() as client:
        for seed in (1, 2):
            fields = {**PAINT, "prompt": "a lake that nobody else asks for", "seed": seed}
            assert client.post("/generate", json=fields).status_code == 200
        assert client.post("/generate", json={**PAINT, "model": "nobody"}).status_code == 404
    after = _series(quiet.address)

    def more(name: str, **labels: str) -> float:
        series = f"{name}{json.dumps(labels, sort_keys=True)}"
        return after[series] - before.get(series, 0)

    assert more("image_generation_requests_total", model="demo-xl", mode="txt2img") == 2
    assert more("image_generation_duration_seconds_count", model="demo-xl") == 2
    assert more("daguerre_prompt_cache_requests_total", outcome="miss") == 1
    assert more("daguerre_prompt_cache_requests_total", outcome="hit") == 1
    assert more("tokens_consumed_total") > 0
    assert more("daguerre_steps_total", model="demo-xl") == 6
    assert more("daguerre_forward_rows_count") == 6
    assert more("daguerre_forward_rows_sum") == 12
    assert 0 < more("daguerre_forward_seconds_total") < more("image_generation_duration_seconds_sum", model="demo-xl")
    for phase in ("queue", "encode", "denoise", "decode", "png"):
        assert more("daguerre_phase_seconds_count", phase=phase, model="demo-xl") == 2
    assert more("daguerre_http_requests_total", method="POST", route="/generate", status="200") == 2
    assert more("daguerre_http_requests_total", method="POST", route="/generate", status="404") == 1
    assert after['daguerre_jobs{"state": "running"}'] == 0
    assert after["daguerre_ready{}"] == 1
    assert after["daguerre_event_loop_lag_seconds_count{}"] > 0


def _odd_requests(live: Live, round_: int) -> None:
    """Whatever a client may write where a label could come from."""
    odd = f"odd{round_}"
    with live.ask() as client:
        for number in range(20):
            client.request(f"ODD{number}{odd.upper()}", "/generate")
            client.get(f"/{odd}/{number}")
            client.get(f"/v1/jobs/{odd}{number}")
            client.get(f"/outputs/{odd}{number}.png")
            client.post(f"/v1/models/{odd}{number}")
            client.get("/health", headers={"host": f"{odd}{number}.example"})
            client.post("/generate", json={**PAINT, "model": f"{odd}{number}", "style": f"{odd}\n{number}"})
            client.post("/generate", json={**PAINT, "scheduler": f"{odd}{number}"})
            client.post("/v1/jobs", json={**PAINT, "loras": [{"name": f"{odd}{number}"}]})
            client.post("/v1/images/generations", json={"prompt": "x", "size": f"{odd}{number}"})
            client.get("/v1/jobs", params={"status": f"{odd}{number}"})
    for number in range(5):
        upgrade = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
        _raw(
            live, f"GET /{odd}{number} HTTP/1.1\r\nhost: a\r\n{upgrade}sec-websocket-key: {'A' * 22}==\r\n\r\n".encode()
        )
        _raw(live, f"GET /%0a%22%7d{odd}{number} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
        _raw(live, f"{odd}{number}{{}}\r\n\r\n".encode())


def _raw(live: Live, data: bytes) -> None:
    with socket.create_connection(("127.0.0.1", live.port), timeout=10) as raw:
        raw.sendall(data)
        raw.recv(1000)


def test_odd_requests_add_no_series(quiet: Live) -> None:
    """A second round of what no label may come from finds every series there; nothing odd is in any."""
    _odd_requests(quiet, 1)
    before = _series(quiet.address)
    _odd_requests(quiet, 2)
    after = _series(quiet.address)
    assert set(after) == set(before)
    assert len(after) < 1500
    assert "odd" not in "".join(after).lower()
    assert after['daguerre_http_requests_total{"method": "other", "route": "/generate", "status": "405"}'] == 40


def test_a_client_s_totals_are_kept(tmp_path: Path) -> None:
    """They are those of what it was given, and the next process knows them."""
    for number in (1, 2):
        with serving(tmp_path / "outputs") as live:
            with live.ask() as client:
                fields = {**PAINT, "count": 2}
                assert client.post("/generate", json=fields, headers={"accept": "application/json"}).status_code == 200
                told = client.get("/v1/usage").json()
                assert client.get("/api/v1/usage").json() == told
            assert told["client"] == "127.0.0.1"
            assert (told["jobs"], told["images"], told["steps"]) == (number, 2 * number, 6 * number)
            assert told["pixels"] == number * 2 * 64 * 64
            assert told["device_seconds"] > 0
            assert told["since"].startswith("20")
            assert live.stop() == 0


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def _start(tmp_path: Path, shell: str, **options: Any) -> tuple["subprocess.Popen[bytes]", str]:
    """A server that cannot tell its address; gives its process once it paints."""
    port = _free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DAGUERRE_")}
    environment |= {"DAGUERRE_DATA": str(tmp_path / "data"), "DAGUERRE_OUTPUTS": str(tmp_path / "outputs")}
    environment |= {name: str(value) for name, value in options.pop("settings", {}).items()}
    command = ["/bin/sh", "-c", f'exec "$0" -m daguerre serve --port {port} {shell}', sys.executable]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, **options)
    address = f"http://127.0.0.1:{port}"
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(f"{address}/readyz").status_code == 200:
                return process, address
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    process.kill()
    raise AssertionError(process.wait())


def test_a_server_with_nowhere_to_log_paints(tmp_path: Path) -> None:
    """Standard error is closed, and the folder for logs is a file."""
    (tmp_path / "file").write_text("no folder")
    process, address = _start(tmp_path, "2>&-", settings={"LOG_DIR": tmp_path / "file" / "logs"})
    try:
        assert httpx.post(f"{address}/generate", json=PAINT, timeout=60).status_code == 200
        assert _series(address)["daguerre_log_lines_dropped_total{}"] > 3
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


def test_a_server_whose_log_disk_is_full_paints(tmp_path: Path) -> None:
    """Standard error hears of it once."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "daguerre.log").symlink_to("/dev/full")
    with serving(tmp_path / "outputs", log_dir=str(tmp_path / "logs")) as live:
        live.wait_ready()
        with live.ask() as client:
            assert client.post("/generate", json=PAINT).status_code == 200
        assert _series(live.address)["daguerre_log_lines_dropped_total{}"] > 3
        assert live.stop() == 0
    assert sum("log lines cannot be written to daguerre.log" in line for line in live.log) == 1


def test_a_server_whose_log_nobody_reads_paints_and_stops(tmp_path: Path) -> None:
    """Standard error is a pipe that is full from the beginning: nothing at all can be written to it."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(writer, True)
    process, address = _start(tmp_path, "", stderr=writer)
    os.close(writer)
    try:
        with httpx.Client(base_url=address, timeout=60) as client:
            for seed in range(3):
                assert client.post("/generate", json={**PAINT, "seed": seed}).status_code == 200
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(reader)


def test_a_terminal_shows_running_jobs_below_the_log(tmp_path: Path) -> None:
    """Text for a person, with a bar while a job runs that is gone when it has ended."""
    main, other = pty.openpty()
    process, address = _start(tmp_path, "", stderr=other)
    os.close(other)
    seen = bytearray()

    def read() -> None:
        while True:
            try:
                seen.extend(os.read(main, 65536))
            except OSError:
                return

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        fields = {**PAINT, "width": 256, "height": 256, "steps": 60}
        assert httpx.post(f"{address}/generate", json=fields, timeout=100).status_code == 200
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        reader.join(5)
        os.close(main)
    told = seen.decode()
    assert re.search(r"[0-9a-f]{8} [█░]{24} \d+/60 \d+ s demo-xl\r\n", told), told
    assert re.search(
        r"\d\d:\d\d:\d\d INFO    job \S+ succeeded \(demo-xl, txt2img, 256×256, 60 steps, seed 5\)\r\n", told
    )
    assert "█" not in told.rpartition("succeeded")[2]
