"""Owns what the tests of the gate come with: credentials, good and bad, and a Hub of their own."""

import base64
import contextlib
import json
import threading
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import jwt

from daguerre.auth import keys
from daguerre.principal import Scope
from daguerre.store.db import Database
from daguerre.store.keys import KeyRows
from server import Live

#: Users with a key each.
USERS = 50
SECRET = "canary-secret-of-the-issuer-0123456789abcdef"  # noqa: S105
ISSUER, AUDIENCE = "https://issuer.example", "daguerre"
#: Tokens that the Hub of the tests knows: of a user on the list, of a member of an organisation, of somebody else.
HUB_USER, HUB_MEMBER, HUB_OTHER = "hf_CanaryUser00001", "hf_CanaryMember001", "hf_CanaryOther0001"
ACCOUNTS: dict[str, dict[str, Any]] = {
    HUB_USER: {"type": "user", "name": "Ada", "orgs": []},
    HUB_MEMBER: {"type": "user", "name": "bea", "orgs": [{"name": "Studio", "roleInOrg": "read"}]},
    HUB_OTHER: {"type": "user", "name": "mallory", "orgs": [{"name": "elsewhere"}]},
}


#: Scopes, and days until a key expires.
Wanted = tuple[Collection[Scope], float | None]


class WebServer:
    """A web server of the test: what it answers with, and what it was asked, can be set and seen."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.status = 0  # answers with this whatever is asked, if it is not 0
        self.seconds = 0.0  # that an answer takes
        self.document: Any = None  # answers with this, if it is set; else as the Hub's whoami does
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                token = self.headers.get("authorization", "").removeprefix("Bearer ")
                outer.asked.append(token)
                time.sleep(outer.seconds)
                account = outer.document if outer.document is not None else ACCOUNTS.get(token)
                status = outer.status or (200 if account is not None else 401)
                body = json.dumps(account if status == 200 else {"error": "no"}).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}/"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends it; from then on its port refuses."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextlib.contextmanager
def web_server() -> Iterator[WebServer]:
    """A server that is ended at the end, if it was not before."""
    server = WebServer()
    try:
        yield server
    finally:
        if server._thread.is_alive():
            server.close()


def make_keys(data: Path, wanted: dict[str, Wanted]) -> dict[str, str]:
    """Keys in the database of that folder, by their names, each with its scopes and its days."""
    now, made = time.time(), {}
    database = Database(data / "daguerre.db", is_guest=True)
    rows = KeyRows(database)
    for name, (scopes, days) in wanted.items():
        row, made[name] = keys.make(name, scopes, None if days is None else now + days * 86400, now)
        rows.add(row).result()
    database.close()
    return made


def revoke(data: Path, name: str) -> None:
    """Revokes as the command does, from another process than the server's."""
    database = Database(data / "daguerre.db", is_guest=True)
    assert KeyRows(database).revoke(name, time.time()).result() == 1
    database.close()


def token(secret: Any = SECRET, algorithm: str = "HS256", header: dict[str, Any] | None = None, **claims: Any) -> str:
    """A JWT that is good but for what is said here; a claim that is None is left out."""
    about = {
        "sub": "carla",
        "iss": ISSUER,
        "aud": AUDIENCE,
        "exp": int(time.time()) + 600,
        "scope": "generate",
    } | claims
    present = {name: value for name, value in about.items() if value is not None}
    return jwt.encode(present, secret, algorithm, header)


def unsigned(**claims: Any) -> str:
    """A JWT whose algorithm is none."""
    return token(secret="", algorithm="none", **claims)


def bearer(credential: str) -> dict[str, str]:
    """The header that carries it."""
    return {"authorization": f"Bearer {credential}"}


def basic(password: str, name: str = "me") -> dict[str, str]:
    """The header that carries it as clients of AUTOMATIC1111's API send it."""
    return {"authorization": f"Basic {base64.b64encode(f'{name}:{password}'.encode()).decode()}"}


@dataclass
class Gated:
    """A server that lets in keys, tokens of a Hub, and JWTs; and the keys that there are."""

    live: Live
    data: Path
    keys: dict[str, str]
    hub: WebServer

    def ask(self, credential: str | None = None) -> httpx.Client:
        """A client, with a credential if one is given."""
        return self.live.ask(headers={} if credential is None else bearer(credential))
