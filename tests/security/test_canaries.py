"""Secrets that can be told from all other text are in nothing that the server says or keeps."""

import base64
import hashlib
from pathlib import Path

import doors
import httpx
import probes
from doors import Gated

from server import serving

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


def _used(gated: Gated, secrets: list[str]) -> dict[str, bytes]:
    """Uses each secret wherever one can stand, also where none should; gives the answers."""
    said: dict[str, bytes] = {}
    with gated.live.ask() as client:
        for number, secret in enumerate(secrets):
            for headers in (doors.bearer(secret), {"x-api-key": secret}, doors.basic(secret), {"cookie": secret}):
                for method, path in (
                    ("POST", "/generate"),
                    ("POST", "/v1/jobs"),
                    ("POST", "/v1/images/generations"),
                    ("POST", "/sdapi/v1/txt2img"),
                    ("POST", "/v1/models/load"),
                    ("GET", f"/v1/jobs?key={secret}"),
                    ("GET", f"/v1/jobs/{secret}"),
                    ("GET", f"/outputs/{secret}"),
                    ("GET", f"/{secret}"),
                    ("GET", "/health"),
                ):
                    if method == "POST" and "authorization" not in headers:
                        continue
                    json = SMALL if method == "POST" else None
                    answer = client.request(method, path, headers=headers, json=json)
                    name = f"{number} {sorted(headers)} {method} {path.replace(secret, 'SECRET')}"
                    said[name] = str(answer.headers).encode() + answer.content
            probes.shake(gated.live.address, f"/v1/stream?key={secret}", doors.bearer(secret), [f"daguerre.{secret}"])
            probes.raw(
                gated.live.port, f"GET /{secret} HTTP/1.1\r\nhost: {secret}\r\nconnection: close\r\n\r\n".encode()
            )
            probes.raw(gated.live.port, f"{secret}\r\n\r\n".encode())
    return said


def test_no_secret_turns_up_anywhere(gated: Gated) -> None:
    """Keys, tokens, passwords and the issuer's secret: not in answers, log, database, its log, or pictures."""
    good = [gated.keys["painter"], doors.HUB_USER, doors.token()]
    bad = [gated.keys["revoked"], f"dgr_00000000_{'c' * 43}", doors.HUB_OTHER, doors.unsigned(), "a-password-of-mine"]
    texts = _used(gated, good + bad)
    texts |= _files(gated.data, gated.live.outputs) | {"log": "".join(gated.live.log).encode()}
    assert _found([*good, *bad, doors.SECRET], texts) == []
    assert len(gated.live.log) > 5
    assert any(name.endswith("daguerre.db") for name in texts)
    assert any(name.endswith(".png") for name in texts)


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
