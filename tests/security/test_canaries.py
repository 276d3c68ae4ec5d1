"""Secrets that can be told from all other text are in nothing that the server says or keeps."""

import base64
import hashlib
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import doors
import httpx
import probes
import pytest
from doors import Gated
from hub import serving_hub
from receiver import Receiver, receiving

from daguerre import settings as configuration
from daguerre.settings import Settings
from server import ROOT, Live, serving

log = logging.getLogger(__name__)

SMALL = {"prompt": "a lake", "width": 64, "height": 64, "steps": 1, "guidance_scale": 1}


def _spelled(secret: str) -> list[bytes]:
    """Ways in which a secret could stand somewhere; of a key its random end is the secret."""
    whole = secret.encode()
    forms = [whole, whole[:-6], base64.b64encode(b"me:" + whole), base64.b64encode(whole)]
    return [form for form in forms if len(form) > 12]


def _found(secrets: list[str], texts: dict[str, bytes]) -> list[str]:
    """Where one of them stands."""
    return [name for name, text in texts.items() for secret in secrets for form in _spelled(secret) if form in text]


def _files(*folders: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}


@dataclass
class Secrets:
    """Everything that is secret, or private, by what it is; and where it was used or could have come up."""

    canaries: dict[str, str]
    places: dict[str, bytes] = field(default_factory=dict)

    def hits(self) -> list[str]:
        """Where one stands that does not belong there."""
        return [
            f"{kind} in {place}"
            for place, text in self.places.items()
            for kind, canary in self.canaries.items()
            if not place.startswith(BELONGS.get(kind, ())) and any(form in text for form in _spelled(canary))
        ]


#: The beginnings of the places where these may be: with the job, and in what the job's owner gets.
BELONGS: dict[str, tuple[str, ...]] = {
    "prompt": ("file daguerre.db", "backup", "picture", "job", "events", "webhook"),
    "negative prompt": ("file daguerre.db", "backup", "picture", "job", "events", "webhook"),
    "metadata": ("file daguerre.db", "backup", "picture", "job", "events", "webhook"),
    "webhook's token": ("file daguerre.db", "backup"),
    "Idempotency-Key": ("file daguerre.db", "backup"),
}
#: Secrets that come with requests, good ones and bad ones.
CREDENTIALS = (
    *("API key", "monitoring key", "revoked key", "unknown key", "Hub token", "Hub token on no list"),
    *("JWT", "unsigned JWT", "password"),
)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Live, Path, Secrets, Receiver]]:
    """A server with every setting and variable that holds a secret, which logs all that it can."""
    folder = tmp_path_factory.mktemp("full")
    data, patched = folder / "outputs-data", pytest.MonkeyPatch()
    wanted: dict[str, doors.Wanted] = {"ada": (["generate", "models"], None), "prometheus": (["admin"], None)}
    keys = doors.make_keys(data, wanted | {"gone": (["generate"], None)})
    doors.revoke(data, "gone")
    canaries = {
        "API key": keys["ada"],
        "monitoring key": keys["prometheus"],
        "revoked key": keys["gone"],
        "unknown key": f"dgr_00000000_{'c' * 43}",
        "Hub token": doors.HUB_USER,
        "Hub token on no list": doors.HUB_OTHER,
        "JWT": doors.token(),
        "unsigned JWT": doors.unsigned(),
        "password": "canary-of-a-password",
        "cookie": "canary-of-a-cookie",
        "Proxy-Authorization": "canary-of-a-proxy",
        "Idempotency-Key": "canary-of-idempotency",
        "jwt_secret": doors.SECRET,
        "webhook_secret": "canary-of-webhooks-7f3a",
        "HF_TOKEN": "hf_CanaryOfTheOperator01",
        "DAGUERRE_API_KEY": f"dgr_99999999_{'d' * 43}",
        "OTEL_EXPORTER_OTLP_HEADERS": "canary-of-the-collector",
        "webhook's token": "canary-in-a-url",
        "prompt": "canarypromptabcdef",
        "negative prompt": "canarynegativeabcdef",
        "metadata": "canary-of-metadata",
        "name of an upload": "canary-of-a-file-name",
        "rule of moderation": "canaryforbiddenword",
    }
    (folder / "rules.toml").write_text(f'[gore]\nwords = ["{canaries["rule of moderation"]}"]\n')
    with doors.web_server() as hub, serving_hub() as models, receiving() as receiver, patched.context() as variables:
        variables.setenv("HF_TOKEN", canaries["HF_TOKEN"])
        variables.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"authorization={canaries['OTEL_EXPORTER_OTLP_HEADERS']}")
        settings = {
            "auth": "keys,hub,jwt",
            "hub_whoami": hub.address,
            "hub_users": "ada",
            "jwt_secret": doors.SECRET,
            "jwt_issuer": doors.ISSUER,
            "jwt_audience": doors.AUDIENCE,
            "webhook_secret": canaries["webhook_secret"],
            "private_hosts": "127.0.0.1",
            "allow_pull": "true",
            "hub_endpoint": models.address,
            "log_level": "debug",
            "log_dir": str(folder / "log"),
            "moderation_rules": str(folder / "rules.toml"),
            "traces_endpoint": f"{hub.address}v1/traces",
            "api_key": canaries["DAGUERRE_API_KEY"],
        }
        with serving(folder / "outputs", **settings) as live:
            while httpx.get(f"{live.address}/readyz").status_code != 200:
                time.sleep(0.1)
            yield live, folder, Secrets(canaries), receiver
            assert live.stop() == 0


def _use_credentials(live: Live, secrets: Secrets) -> None:
    """Each wherever one can stand, also where none should."""
    for kind in CREDENTIALS:
        secret = secrets.canaries[kind]
        tries = [("POST", path, doors.bearer(secret)) for path in POSTS]
        paths = (f"/v1/jobs?key={secret}", f"/v1/jobs/{secret}", f"/outputs/{secret}", f"/{secret}", "/health")
        ways = (doors.bearer(secret), {"x-api-key": secret}, doors.basic(secret), {"cookie": secret})
        tries += [("GET", path, headers) for path in paths for headers in ways]
        for number, (method, path, headers) in enumerate(tries):
            more = {"cookie": f"session={secrets.canaries['cookie']}"} if "cookie" not in headers else {}
            more |= {"proxy-authorization": f"Basic {secrets.canaries['Proxy-Authorization']}"}
            answer = _ask(live, method, path, {**headers, **more}, kind, secrets)
            secrets.places[f"answer to {kind}, {number} {method}"] = str(answer.headers).encode() + answer.content
        probes.shake(live.address, f"/v1/stream?key={secret}", doors.bearer(secret), [f"daguerre.{secret}"])
        broken = (f"GET /{secret} HTTP/1.1\r\nhost: {secret}\r\nconnection: close\r\n\r\n", f"{secret}\r\n\r\n")
        for number, request in enumerate(broken):
            secrets.places[f"answer to {kind}, broken {number}"] = probes.raw(live.port, request.encode())


POSTS = ("/generate", "/v1/jobs", "/v1/images/generations", "/sdapi/v1/txt2img", "/v1/models/load", "/nowhere")


def _ask(live: Live, method: str, path: str, headers: dict[str, str], kind: str, secrets: Secrets) -> httpx.Response:
    body = {"json": {"model_id": kind} if "load" in path else SMALL} if method == "POST" else {}
    return httpx.request(method, live.address + path, headers=headers, timeout=60, **body)  # type: ignore[arg-type]


def _paint(live: Live, secrets: Secrets, receiver: Receiver) -> None:
    """Private things in every field that has them, in each dialect and format; and jobs that are refused."""
    canaries, headers = secrets.canaries, doors.bearer(secrets.canaries["API key"])
    private = {"prompt": f"a {canaries['prompt']}", "negative_prompt": canaries["negative prompt"]}
    ours = SMALL | private | {"metadata": {"mine": canaries["metadata"]}, "webhook": receiver.url}
    with live.ask(headers=headers) as client:
        for form in ("png", "jpeg", "webp"):
            own = {"idempotency-key": f"{canaries['Idempotency-Key']}-{form}"}
            job = client.post("/v1/jobs", json=ours | {"format": form}, headers=own).json()
            while job["status"] in ("queued", "running"):
                time.sleep(0.05)
                job = client.get(job["links"]["self"]).json()
            assert job["status"] == "succeeded", job
            name = job["images"][0]["filename"]
            secrets.places[f"job {form}"] = str(job).encode()
            for kind, path in (("picture", f"/outputs/{name}"), ("thumbnail", f"/outputs/{name}/thumbnail")):
                answer = client.get(path)
                secrets.places[f"{kind} {form}"] = answer.content
                secrets.places[f"headers of {kind} {form}"] = str(answer.headers).encode()
            secrets.places[f"events {form}"] = client.get(f"/v1/jobs/{job['id']}/events").content
        painted = client.post("/generate", json=ours)
        secrets.places["headers of a painting"] = str(painted.headers).encode()
        for number, wrong in enumerate(({"steps": 0}, {"model": "none"}, {"prompt": canaries["rule of moderation"]})):
            secrets.places[f"refusal {number}"] = client.post("/generate", json=ours | wrong).content
        files = {"image": (canaries["name of an upload"], b"no picture", canaries["name of an upload"])}
        secrets.places["refusal of a form"] = client.post("/v1/images/edits", data=private, files=files).content
        for path in ("/v1/models", "/v1/capabilities", "/health", "/v1/usage", "/openapi.json", "/queue/status"):
            secrets.places[f"answer of {path}"] = client.get(path).content
        assert client.post("/v1/models/load", json={"model_id": "sdxl-base"}).status_code == 202
        while "error" not in (model := client.get("/v1/models/sdxl-base").json()):
            time.sleep(0.1)
        secrets.places["pull that failed"] = str(model).encode()
    other = httpx.get(f"{live.address}/v1/jobs", headers=doors.bearer(canaries["Hub token"]))
    secrets.places["list of another client"] = other.content
    for number, post in enumerate(receiver.wait_for(4)):
        secrets.places[f"webhook {number}"] = str(post.headers).encode() + post.body


def _keep(live: Live, folder: Path, secrets: Secrets) -> None:
    """What the server tells of itself, keeps, and shows to who may look at its process; and what the command tells."""
    metrics = httpx.get(f"{live.address}/metrics", headers=doors.bearer(secrets.canaries["monitoring key"]))
    assert metrics.status_code == 200
    secrets.places |= {"metrics": metrics.content, "log": "".join(live.log).encode()}
    secrets.places["command line"] = Path(f"/proc/{live.process.pid}/cmdline").read_bytes()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "rules.toml" and not path.is_relative_to(folder / "outputs"):
            secrets.places[f"file {path.name}"] = path.read_bytes()
    environment = {"DAGUERRE_JWT_SECRET": doors.SECRET, "DAGUERRE_WEBHOOK_SECRET": secrets.canaries["webhook_secret"]}
    environment |= {"DAGUERRE_DATA": str(folder / "outputs-data"), "DAGUERRE_OUTPUTS": str(folder / "outputs")}
    for words in (["config"], ["keys", "list"], ["backup", str(folder / "kept.tar")]):
        command = [sys.executable, "-m", "daguerre", *words]
        done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, check=True)
        secrets.places[f"command {words[0]}"] = done.stdout + done.stderr
    secrets.places["backup"] = (folder / "kept.tar").read_bytes()


def test_no_secret_turns_up_anywhere(full: tuple[Live, Path, Secrets, Receiver]) -> None:
    """Not in answers, log, files, metrics, pictures, errors, webhooks, backups, or what commands tell."""
    live, folder, secrets, receiver = full
    _use_credentials(live, secrets)
    _paint(live, secrets, receiver)
    _keep(live, folder, secrets)
    found, many = secrets.hits(), f"{len(secrets.canaries)} canaries in {len(secrets.places)} places"
    log.info("%s: %d found", many, len(found))
    assert not found, "\n".join(found)
    assert {name.partition(" ")[0] for name in secrets.places} >= {"answer", "file", "metrics", "picture", "webhook"}
    assert len(secrets.canaries) >= 20
    assert len(secrets.places) >= 250


def test_they_would_be_found(full: tuple[Live, Path, Secrets, Receiver]) -> None:
    """Where each belongs, the same search finds it: in the database, in pictures, in jobs."""
    secrets = full[2]
    everywhere = Secrets({kind: secrets.canaries[kind] for kind in BELONGS}, secrets.places)
    for kind, beginnings in BELONGS.items():
        for beginning in beginnings:
            texts = [text for place, text in everywhere.places.items() if place.startswith(beginning)]
            assert any(form in text for text in texts for form in _spelled(secrets.canaries[kind])), (kind, beginning)


def test_every_setting_that_is_secret_has_its_canary(full: tuple[Live, Path, Secrets, Receiver]) -> None:
    """What sounds like one is hidden where settings are shown."""
    assert set(full[2].canaries) >= configuration.SECRETS
    named = {name for name in Settings.__struct_fields__ if re.search("secret|token|password|api_key", name)}
    assert named == configuration.SECRETS


def test_what_is_kept_of_a_key_is_its_digest(gated: Gated) -> None:
    """So the search above would have found the key itself, had it been there."""
    kept = b"".join(_files(gated.data).values())
    assert hashlib.sha256(gated.keys["painter"].encode()).digest() in kept
    assert _found(["canary"], {"x": b"canary"}) == []  # too short to be told from other text
    assert _found([gated.keys["painter"]], {"x": b"key=" + gated.keys["painter"].encode()}) != []


def test_a_hub_that_fails_tells_no_token(tmp_path: Path) -> None:
    """Neither when it does not answer, nor when it answers with the token itself."""
    canary = "hf_CanaryInAnOutage01"
    with doors.web_server() as hub:
        hub.document = {"type": "user", "name": f"x{canary}", "error": canary}
        settings = {"auth": "hub", "hub_whoami": hub.address, "hub_users": "ada", "log_level": "debug"}
        with serving(tmp_path / "outputs", **settings) as live:
            answers = [httpx.get(f"{live.address}/v1/jobs", headers=doors.bearer(canary))]
            hub.status = 500
            second = canary.replace("01", "02")
            answers += [httpx.get(f"{live.address}/v1/jobs", headers=doors.bearer(second)) for _ in range(5)]
            hub.close()
            third = canary.replace("01", "03")
            answers.append(httpx.get(f"{live.address}/v1/jobs", headers=doors.bearer(third)))
            assert [answer.status_code for answer in answers] == [403, *[503] * 6]
            assert all(answer.headers["retry-after"] for answer in answers[1:])
            said = {"answers": b"".join(answer.content for answer in answers), "log": "".join(live.log).encode()}
            assert _found([canary, second, third], said) == []
