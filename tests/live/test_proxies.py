"""The guide's proxies in front of a server, as the guide has them but for ports and certificates."""

import base64
import datetime as dt
import os
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from websockets.sync.client import connect

from server import ROOT, Live, serving

GUIDE = (ROOT / "docs" / "guides" / "proxy.md").read_text()
NAME = "paint.example"
PAINT = {"prompt": "a red circle", "width": 64, "height": 64, "steps": 3}


def _block(kind: str, **replaced: str) -> str:
    text = GUIDE.partition(f"```{kind}\n")[2].partition("```")[0]
    for name, other in replaced.items():
        text = text.replace(name, other)
    return text


def _certify(folder: Path) -> None:
    """A key, and a certificate that it has signed itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    now = dt.datetime.now(dt.UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(now - dt.timedelta(days=1)).not_valid_after(now + dt.timedelta(days=1))
    made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
    signed = made.sign(key, hashes.SHA256())
    (folder / "fullchain.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "privkey.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, *plain))


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


class Proxied:
    """A server behind nginx, and what it takes to ask it by its name."""

    def __init__(self, live: Live, port: int, certificate: Path) -> None:
        self.live, self.port = live, port
        self.tls = ssl.create_default_context(cafile=str(certificate))
        self.origin = f"https://{NAME}:{port}"

    def ask(self, method: str, path: str, **options: object) -> httpx.Response:
        """One request to the name, which leads here."""
        headers = {"host": f"{NAME}:{self.port}", **options.pop("headers", {})}  # type: ignore[dict-item]
        with httpx.Client(base_url=f"https://127.0.0.1:{self.port}", verify=self.tls, timeout=60) as client:
            return client.request(method, path, headers=headers, extensions={"sni_hostname": NAME}, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxied]:
    """nginx in the foreground, with nothing of its own but what it needs to run at all."""
    if shutil.which("nginx") is None:
        pytest.skip("needs nginx")
    folder, port = tmp_path_factory.mktemp("nginx"), _free_port()
    _certify(folder)
    settings = {"allowed_hosts": NAME, "trusted_proxies": "127.0.0.1"}
    with serving(tmp_path_factory.mktemp("outputs"), **settings) as live:
        live.wait_ready()
        moved = {"listen 443": f"listen 127.0.0.1:{port}", "127.0.0.1:8000": f"127.0.0.1:{live.port}"}
        guide = _block("nginx", **moved, **{f"/etc/ssl/{NAME}": str(folder)})
        paths = "\n".join(
            f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        text = f"daemon off; pid {folder}/pid; error_log {folder}/log; events {{}}\nhttp {{ access_log off;\n{paths}\n"
        (folder / "nginx.conf").write_text(f"{text}{guide}}}\n")
        process = subprocess.Popen(["nginx", "-c", str(folder / "nginx.conf")], stderr=subprocess.PIPE, text=True)
        try:
            _wait_for(port, process)
            yield Proxied(live, port, folder / "fullchain.pem")
        finally:
            process.terminate()
            process.communicate(timeout=20)


def _wait_for(port: int, process: "subprocess.Popen[str]") -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        assert process.poll() is None, process.communicate()
        with socket.socket() as door:
            if door.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError("nginx does not listen")


def test_pictures_and_their_addresses(proxied: Proxied) -> None:
    """What OpenAI's clients are given leads back here, by TLS and this port."""
    assert proxied.ask("POST", "/generate", json=PAINT).content.startswith(b"\x89PNG")
    asked = {"prompt": "a red circle", "size": "64x64", "steps": 2, "response_format": "url"}
    url = proxied.ask("POST", "/v1/images/generations", json=asked).json()["data"][0]["url"]
    assert url.startswith(f"{proxied.origin}/outputs/")
    assert proxied.ask("GET", url.removeprefix(proxied.origin)).content.startswith(b"\x89PNG")


def test_pages_of_its_own_and_of_others(proxied: Proxied) -> None:
    """The port belongs to the origin."""
    for origin, status in ((proxied.origin, 200), (f"https://{NAME}", 403), ("https://other.example", 403)):
        assert proxied.ask("POST", "/generate", json=PAINT, headers={"origin": origin}).status_code == status
    refused = proxied.ask("GET", "/v1/models", headers={"host": "other.example"})
    assert (refused.status_code, refused.json()["code"]) == (400, "host_not_allowed")


def test_streams_come_as_they_are_made(proxied: Proxied) -> None:
    """Steps one by one, long before the last: on a WebSocket, and as server-sent events."""
    address = f"wss://{NAME}:{proxied.port}/stream/generate/txt2img"
    door = socket.create_connection(("127.0.0.1", proxied.port))
    with connect(address, sock=door, ssl=proxied.tls, origin=proxied.origin, max_size=None) as stream:  # type: ignore[arg-type]
        stream.send('{"prompt": "a lake", "width": 64, "height": 64, "steps": 5}')
        kinds = [str(frame).partition('"type":"')[2].partition('"')[0] for frame in stream]
    assert (kinds[0], kinds[-1], kinds.count("progress")) == ("accepted", "completed", 5)
    job = proxied.ask("POST", "/v1/jobs", json=PAINT | {"steps": 100}).json()
    events, options = f"{job['links']['events']}", {"host": f"{NAME}:{proxied.port}"}
    with (
        httpx.Client(base_url=f"https://127.0.0.1:{proxied.port}", verify=proxied.tls, timeout=60) as client,
        client.stream("GET", events, headers=options, extensions={"sni_hostname": NAME}) as answer,
    ):
        next(line for line in answer.iter_lines() if line == "event: progress")
        status = httpx.get(proxied.live.address + job["links"]["self"], timeout=10).json()["status"]
    assert status == "running", "the first event came when the job had ended"
    httpx.delete(proxied.live.address + job["links"]["self"], timeout=10)


def test_large_bodies(proxied: Proxied) -> None:
    """Those that Daguerre takes pass; what is too large is refused in its own words."""
    picture = base64.b64encode(os.urandom(18 * 1024 * 1024)).decode()
    taken = proxied.ask("POST", "/generate", json=PAINT | {"image": picture})
    assert (taken.status_code, taken.json()["errors"][0]["field"]) == (422, "image")
    refused = proxied.ask("POST", "/generate", json=PAINT | {"image": picture + picture})
    assert (refused.status_code, refused.json()["code"]) == (413, "body_too_large")


def test_what_is_the_operator_s(proxied: Proxied) -> None:
    """Metrics and probes are not for the proxy's clients, however they are spelt."""
    for path in ("/metrics", "/health", "/readyz", "/%6detrics", "/x/../metrics", "/metrics?a"):
        assert proxied.ask("GET", path).status_code == 404, path
    assert proxied.ask("GET", "/livez").status_code == 200
    assert httpx.get(f"{proxied.live.address}/metrics", timeout=10).status_code == 200


@pytest.mark.skipif(shutil.which("caddy") is None, reason="needs caddy")
def test_caddy_reads_the_guide(tmp_path: Path) -> None:
    """Without a complaint."""
    (tmp_path / "Caddyfile").write_text(_block("text"))
    command = ["caddy", "adapt", "--validate", "--config", str(tmp_path / "Caddyfile"), "--adapter", "caddyfile"]
    environment = os.environ | {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert '"reverse_proxy"' in done.stdout
