"""Owns credentials: where in a request they may stand, and reading them."""

import base64
import binascii

from starlette.types import Scope

from daguerre.errors import Unauthenticated

#: The subprotocol of a browser's WebSocket, which cannot send headers. Beside it the browser offers another one that is
#: this name, a dot, and the credential; the server chooses the first, so the credential goes one way only. An address
#: with the credential in it would be written into the logs of every proxy.
SUBPROTOCOL = "daguerre"


def read(scope: Scope) -> str:
    """The request's one credential. Basic's is its password: clients of AUTOMATIC1111's API can do nothing else.

    Raises:
        Unauthenticated: there is none; or several that differ, of which a proxy and we might choose another.
    """
    found = {_authorization(value) for name, value in scope["headers"] if name == b"authorization" and value.strip()}
    found |= {_text(value) for name, value in scope["headers"] if name == b"x-api-key" and value.strip()}
    prefix = f"{SUBPROTOCOL}."
    offered = [name for name in scope.get("subprotocols", ()) if name.startswith(prefix)]
    found |= {name.removeprefix(prefix) for name in offered}
    if not found:
        raise Unauthenticated("none")
    if len(found) > 1:
        raise Unauthenticated("several")
    return found.pop()


def _authorization(value: bytes) -> str:
    scheme, _, rest = _text(value).partition(" ")
    match scheme.lower():
        case "bearer":
            return rest.strip()
        case "basic":
            return _password(rest.strip())
    raise Unauthenticated("malformed")


def _password(encoded: str) -> str:
    try:
        name_and_password = base64.b64decode(encoded, validate=True).decode("ascii")
    except (binascii.Error, UnicodeDecodeError):
        raise Unauthenticated("malformed") from None
    return name_and_password.partition(":")[2]


def _text(value: bytes) -> str:
    try:
        return value.decode("ascii").strip()
    except UnicodeDecodeError:
        raise Unauthenticated("malformed") from None
