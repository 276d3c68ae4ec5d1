"""Owns the probes: what an intruder tries. Each gives the tries that came through; against Daguerre there are none.

Against a naive server there are some: ``test_naive.py`` shows that each probe can fail.
"""

import asyncio
import itertools
import socket
import time
from collections.abc import Iterable, Mapping
from typing import Any

import doors
import httpx
from starlette.routing import BaseRoute, Route, WebSocketRoute
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.sync.client import connect

#: Routes that need no credentials.
OPEN = ("/ping", "/livez", "/readyz", "/openapi.json", "/", "/docs", "/docs/{filename}")


def bad_credentials(keys: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Headers with every kind of bad credentials, by kind."""
    good, now = keys["painter"], int(time.time())
    forged = good[:-8] + ("A" * 8 if not good.endswith("A" * 8) else "B" * 8)
    signed = doors.token().rpartition(".")[0]
    return {
        "none": {},
        "empty": {"authorization": ""},
        "malformed": doors.bearer("dgr_x"),
        "malformed basic": {"authorization": "Basic ***"},
        "another scheme": {"authorization": f"Digest {good}"},
        "not ASCII": {"authorization": "Bearer clé"},
        "huge": doors.bearer("x" * 8000),
        "unknown key": doors.bearer(f"dgr_00000000_{'A' * 43}"),
        "forged key": doors.bearer(forged),
        "the id alone": doors.bearer(good[:13]),
        "expired key": doors.bearer(keys["expired"]),
        "revoked key": doors.bearer(keys["revoked"]),
        "revoked key as a password": doors.basic(keys["revoked"]),
        "key as a user name": doors.basic("", good),
        "under-scoped key": doors.bearer(keys["nobody"]),
        "two that differ": {**doors.bearer(good), "x-api-key": keys["keeper"]},
        "cookie": {"cookie": f"key={good}; authorization={good}"},
        "unknown Hub token": doors.bearer("hf_NobodyKnowsThis1"),
        "Hub account on no list": doors.bearer(doors.HUB_OTHER),
        "JWT without algorithm": doors.bearer(doors.unsigned()),
        "JWT without signature": doors.bearer(f"{signed}."),
        "JWT of another secret": doors.bearer(doors.token("another-secret-that-is-long-enough-012345")),
        "JWT of another algorithm": doors.bearer(doors.token(algorithm="HS384", secret=doors.SECRET * 2)),
        "JWT of a foreign issuer": doors.bearer(doors.token(iss="https://evil.example")),
        "JWT for another audience": doors.bearer(doors.token(aud="somebody else")),
        "JWT that has expired": doors.bearer(doors.token(exp=now - 60)),
        "JWT that is not valid yet": doors.bearer(doors.token(nbf=now + 600)),
        "JWT for ever": doors.bearer(doors.token(exp=None)),
        "JWT of no issuer": doors.bearer(doors.token(iss=None)),
        "JWT of no audience": doors.bearer(doors.token(aud=None)),
        "JWT of nobody": doors.bearer(doors.token(sub=None)),
        "JWT without scopes": doors.bearer(doors.token(scope=None)),
        "JWT with a key of its own": doors.bearer(
            doors.token("a-key-that-the-token-brings-along-012345", header={"jwk": {"kty": "oct", "k": "AAAA"}})
        ),
    }


def walk(address: str, routes: Iterable[BaseRoute], params: Mapping[str, str], headers: Mapping[str, str]) -> list[str]:
    """Every method of every route, and every socket; gives those that were neither 401 nor 403."""
    passed = []
    with httpx.Client(base_url=address, timeout=10) as client:
        for route in routes:
            assert isinstance(route, Route | WebSocketRoute)
            path = route.path_format.format(**params)
            if route.path in OPEN:
                continue
            if isinstance(route, WebSocketRoute):
                status = shake(address, path, headers)
                passed += [f"WS {path}: {status}"] if status not in (401, 403) else []
                continue
            for method in sorted(route.methods or ()):
                body = {"json": {"prompt": "x"}} if method == "POST" else {}
                status = client.request(method, path, headers=dict(_sendable(headers)), **body).status_code  # type: ignore[arg-type]
                passed += [f"{method} {path}: {status}"] if status not in (401, 403) else []
    return passed


def _sendable(headers: Mapping[str, str]) -> Iterable[tuple[str, bytes]]:
    return ((name, value.encode()) for name, value in headers.items())


def shake(address: str, path: str, headers: Mapping[str, str], subprotocols: list[str] | None = None) -> int:
    """Opens a WebSocket; the status that the handshake was answered with, 101 if it is open."""
    url = address.replace("http", "ws", 1) + path
    try:
        with connect(url, additional_headers=dict(headers), subprotocols=subprotocols, open_timeout=10):  # type: ignore[arg-type]
            return 101
    except InvalidStatus as error:
        return error.response.status_code
    except (WebSocketException, UnicodeEncodeError):
        return 401  # this client cannot even send it


def raw(port: int, *requests: bytes, seconds: float = 5.0) -> bytes:
    """Sends bytes as they are; everything that comes back until the server closes."""
    found = b""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        try:
            for request in requests:
                connection.sendall(request)
            while chunk := connection.recv(65536):
                found += chunk
        except OSError:  # closed by the other side, or nothing more came
            pass
    return found


#: Ways to spell GET /v1/jobs that a check of paths, or a proxy before us, may read as another path.
SPELLINGS = (
    "/v1/jobs",
    "//v1/jobs",
    "///v1///jobs",
    "/v1//jobs",
    "/v1/jobs/",
    "/v1/jobs//",
    "/./v1/jobs",
    "/v1/./jobs",
    "/v1/x/../jobs",
    "/ping/../v1/jobs",
    "/ping/%2e%2e/v1/jobs",
    "/ping/..%2fv1/jobs",
    "/ping%2f..%2fv1%2fjobs",
    "/%76%31/jobs",
    "/v1%2fjobs",
    "/%2fv1/jobs",
    "/v1/jobs%20",
    "/v1/jobs%00",
    "/v1/jobs%0a",
    "/v1/jobs;/ping",
    "/v1/jobs?/ping",
    "/v1/jobs?path=/ping",
    "/v1/jobs#/ping",
    "/V1/Jobs",
    "/v1\\jobs",
    "/api/v1/jobs",
    "/api//v1/jobs",
    "/api/api/v1/jobs",
    "http://localhost/v1/jobs",
    "http://localhost//v1/jobs",
    "http://evil.example/v1/jobs",
    "//localhost/v1/jobs",
    "*",
    "",
)

METHODS = ("GET", "HEAD", "POST", "OPTIONS", "TRACE", "CONNECT", "PATCH", "PUT", "DELETE", "get", "PROPFIND", "GETX")

#: Headers by which some servers let a request be another one, or another's.
DISGUISES = (
    "X-HTTP-Method-Override: GET",
    "X-Method-Override: POST",
    "X-Original-URL: /v1/jobs",
    "X-Rewrite-URL: /v1/jobs",
    "X-Forwarded-For: 127.0.0.1",
    "X-Forwarded-User: admin",
    "X-Remote-User: admin",
    "X-Forwarded-Prefix: /ping",
    "Forwarded: for=127.0.0.1",
    "X-Real-IP: 127.0.0.1",
    "X-Forwarded-Host: localhost/ping#",
    "Authorization:",
    "X-Daguerre-Client: admin",
)


def tricky() -> dict[str, str]:
    """Requests without credentials: spellings, methods and disguises, by what is tried."""
    tried = {
        f"{method} {target}": f"{method} {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
        for target in SPELLINGS
        for method in METHODS
    }
    for path in ("/v1/jobs", "/ping"):
        tried |= {
            f"{path} {line}": f"GET {path} HTTP/1.1\r\nhost: localhost\r\n{line}\r\nconnection: close\r\n\r\n"
            for line in DISGUISES
        }
    # An address that is put together from the Host header reads /ping here.
    for host in ("localhost/ping?", "localhost/ping#", "localhost:80/ping?x=", "x@localhost/ping;"):
        tried[f"host {host}"] = f"GET /v1/jobs HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"
    tried["HTTP/1.0"] = "GET /v1/jobs HTTP/1.0\r\n\r\n"
    tried["HTTP/0.9"] = "GET /v1/jobs\r\n\r\n"
    return tried


def tricks(port: int) -> list[str]:
    """Sends them; gives those that were answered with what is behind."""
    return [name for name, request in tricky().items() if _reached(raw(port, request.encode()))]


def _reached(answer: bytes) -> bool:
    """Whether a list of jobs, or a page of anything but the open routes, came back."""
    head, _, body = answer.partition(b"\r\n\r\n")
    status = head.split(b" ")[1:2]
    is_good = bool(status) and status[0][:1] in (b"2", b"3")
    return b'"data"' in answer or (is_good and body not in (b"", b'{"status":"ok"}'))


def smuggled(port: int, key: str) -> list[str]:
    """Requests with an ambiguous end, the second hidden in the first; gives those of which the second was answered.

    A proxy that reads the end otherwise would send another client's request, and credentials, into ours.
    """
    hidden = f"GET /v1/jobs HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\nconnection: close\r\n\r\n"
    chunked, size = "transfer-encoding: chunked", len(hidden)
    first = "POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    tried = {
        "length and chunked": f"{first}content-length: {size + 5}\r\n{chunked}\r\n\r\n0\r\n\r\n{hidden}",
        "chunked and length": f"{first}{chunked}\r\ncontent-length: {size + 5}\r\n\r\n0\r\n\r\n{hidden}",
        "two lengths": f"{first}content-length: 0\r\ncontent-length: {size}\r\n\r\n{hidden}",
        "a list of lengths": f"{first}content-length: 0, {size}\r\n\r\n{hidden}",
        "a signed length": f"{first}content-length: +0\r\n\r\n{hidden}",
        "a length in hex": f"{first}content-length: 0x0\r\n\r\n{hidden}",
        "a negative length": f"{first}content-length: -1\r\n\r\n{hidden}",
        "chunked spelled": f"{first}transfer-encoding: xchunked\r\n\r\n0\r\n\r\n{hidden}",
        "chunked twice": f"{first}transfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n{hidden}",
        "chunked then identity": f"{first}{chunked}\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\n{hidden}",
        "a space before the colon": f"{first}transfer-encoding : chunked\r\n\r\n0\r\n\r\n{hidden}",
        "a folded header": f"{first}transfer-encoding:\r\n chunked\r\nx: \r\n y\r\n\r\n0\r\n\r\n{hidden}",
        "a bare line feed": f"{first}x: y\ncontent-length: {size}\r\n\r\n{hidden}",
        "a bare return": f"{first}x: y\rcontent-length: {size}\r\n\r\n{hidden}",
        "a chunk size with a sign": f"{first}{chunked}\r\n\r\n+0\r\n\r\n{hidden}",
        "a chunk size too long": f"{first}{chunked}\r\n\r\n{'0' * 40}\r\n\r\n{hidden}",
        "a NUL in a header": f"{first}x: a\0b\r\ncontent-length: 0\r\n\r\n{hidden}",
    }
    return [name for name, request in tried.items() if b'"data"' in raw(port, request.encode(), seconds=2)]


#: Every way to a job by its id, and to its picture by its name.
WAYS = (
    ("GET", "/v1/jobs/{id}"),
    ("GET", "/v1/jobs/{id}/result"),
    ("GET", "/v1/jobs/{id}/events"),
    ("DELETE", "/v1/jobs/{id}"),
    ("POST", "/v1/jobs/{id}/cancel"),
    ("GET", "/queue/status/{id}"),
    ("GET", "/result/{id}"),
    ("GET", "/image/{id}"),
    ("GET", "/status/{id}"),
    ("GET", "/outputs/{filename}"),
    ("GET", "/outputs/{filename}/thumbnail"),
    ("GET", "/api/v1/jobs/{id}"),
    ("GET", "/api/v1/jobs/{id}/result"),
    ("GET", "/api/v1/jobs/{id}/events"),
    ("DELETE", "/api/v1/jobs/{id}"),
    ("POST", "/api/v1/jobs/{id}/cancel"),
)


async def crosswise(address: str, keys: Mapping[str, str], jobs: list[dict[str, Any]]) -> list[str]:
    """Each user at each other's job by two of the ways, all ways in turns; gives what was not answered 404."""
    ways = itertools.cycle(WAYS[1:])
    passed: list[str] = []
    async with httpx.AsyncClient(base_url=address, timeout=60) as client:

        async def attempt(intruder: int, method: str, path: str) -> None:
            answer = await client.request(method, path, headers=doors.bearer(keys[f"user{intruder}"]))
            if answer.status_code != 404:
                passed.append(f"user{intruder} {method} {path}: {answer.status_code}")

        for intruder in range(len(jobs)):
            tries = []
            for owner, job in enumerate(jobs):
                for method, path in (WAYS[0], next(ways)) if owner != intruder else ():
                    named = path.format(id=job["id"], filename=job["images"][0]["filename"])
                    tries.append(attempt(intruder, method, named))
            await asyncio.gather(*tries)
    return passed
