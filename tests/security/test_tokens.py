"""JWTs signed by a key set: rotation, outages, and every confusion of algorithms and keys that is known."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import Iterator
from typing import Any

import doors
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from daguerre.auth import tokens as tokens_module
from daguerre.auth.authenticator import Authenticator, check
from daguerre.auth.tokens import KeySet, Secret, Tokens
from daguerre.errors import AuthUnavailable, SettingsError, Unauthenticated
from daguerre.principal import Principal
from daguerre.settings import Settings

RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
SMALL_RSA = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505 - it is to be refused
CURVE = ec.generate_private_key(ec.SECP256R1())


def _rsa(key: rsa.RSAPrivateKey, kid: str, **more: Any) -> dict[str, Any]:
    return RSAAlgorithm.to_jwk(key.public_key(), as_dict=True) | {"kid": kid, "use": "sig", "alg": "RS256"} | more


def _curve(kid: str) -> dict[str, Any]:
    return ECAlgorithm.to_jwk(CURVE.public_key(), as_dict=True) | {"kid": kid}


@pytest.fixture
def issuer() -> Iterator[doors.WebServer]:
    """A server of keys."""
    with doors.web_server() as server:
        server.document = {"keys": [_rsa(RSA, "r"), _curve("e")]}
        yield server


def _identify(issuer: doors.WebServer, *credentials: str) -> list[Principal | type[Exception]]:
    """What becomes of each, one after the other."""

    async def scene() -> list[Principal | type[Exception]]:
        tokens = Tokens(KeySet(issuer.address), doors.ISSUER, doors.AUDIENCE)
        found: list[Principal | type[Exception]] = []
        for credential in credentials:
            try:
                found.append(await tokens.identify(credential))
            except (Unauthenticated, AuthUnavailable) as error:
                found.append(type(error))
        await tokens.close()
        return found

    return asyncio.run(scene())


def _signed(key: Any, algorithm: str, kid: str | None, **claims: Any) -> str:
    return doors.token(key, algorithm, None if kid is None else {"kid": kid}, **claims)


def test_both_kinds_of_keys(issuer: doors.WebServer) -> None:
    """RS256 with the RSA key, ES256 with the curve; the keys are read once."""
    good = Principal("jwt:carla", frozenset(["generate", "priority"]))
    scope = "generate priority email"
    found = _identify(issuer, _signed(RSA, "RS256", "r", scope=scope), _signed(CURVE, "ES256", "e", scope=scope))
    assert found == [good, good]
    assert len(issuer.asked) == 1


def _with_header(header: dict[str, Any], payload: dict[str, Any], key: bytes | None) -> str:
    """A JWT made by hand, signed by HMAC or not at all."""

    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    said = f"{part(header)}.{part(payload)}"
    mac = b"" if key is None else hmac.digest(key, said.encode(), hashlib.sha256)
    return f"{said}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


def _forgeries() -> dict[str, str]:
    claims = {
        "sub": "carla",
        "iss": doors.ISSUER,
        "aud": doors.AUDIENCE,
        "exp": int(time.time()) + 600,
        "scope": "generate",
    }
    pem = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    der = RSA.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    good = _signed(RSA, "RS256", "r")
    head, body, signature = good.split(".")
    return {
        "HMAC by the public key, PEM": _with_header({"alg": "HS256", "kid": "r"}, claims, pem),
        "HMAC by the public key, DER": _with_header({"alg": "HS256", "kid": "r"}, claims, der),
        "HMAC by nothing": _with_header({"alg": "HS256", "kid": "r"}, claims, b""),
        "none": _with_header({"alg": "none", "kid": "r"}, claims, None),
        "nOnE": _with_header({"alg": "nOnE", "kid": "r"}, claims, None),
        "no algorithm": _with_header({"kid": "r"}, claims, None),
        "algorithm is a list": _with_header({"alg": ["RS256"], "kid": "r"}, claims, None),
        "critical extension": _with_header({"alg": "HS256", "kid": "r", "crit": ["x"], "x": 1}, claims, pem),
        "stripped": f"{head}.{body}.",
        "another signature": f"{head}.{body}.{_signed(RSA, 'RS256', 'r', sub='x').split('.')[2]}",
        "another body": f"{head}.{_signed(RSA, 'RS256', 'r', sub='x').split('.')[1]}.{signature}",
        "another key of that id": _signed(OTHER_RSA, "RS256", "r"),
        "the other key's id": _signed(RSA, "RS256", "e"),
        "the curve by the RSA key's id": _signed(CURVE, "ES256", "r"),
        "a longer hash": _signed(RSA, "RS512", "r"),
        "another padding": _signed(RSA, "PS256", "r"),
        "unknown id": _signed(RSA, "RS256", "x"),
        "no id": _signed(RSA, "RS256", None),
        "a key that it brings along": doors.token(
            OTHER_RSA, "RS256", {"kid": "r", "jwk": RSAAlgorithm.to_jwk(OTHER_RSA.public_key(), as_dict=True)}
        ),
        "a place of keys of its own": doors.token(OTHER_RSA, "RS256", {"kid": "q", "jku": "http://127.0.0.1:1/"}),
        "a path as its id": doors.token(RSA, "RS256", {"kid": "../../dev/null"}),
        "foreign issuer": _signed(RSA, "RS256", "r", iss="https://evil.example"),
        "issuer with more behind": _signed(RSA, "RS256", "r", iss=f"{doors.ISSUER}.evil.example"),
        "issuer in capitals": _signed(RSA, "RS256", "r", iss=doors.ISSUER.upper()),
        "other audience": _signed(RSA, "RS256", "r", aud=["a", "b"]),
        "expired": _signed(RSA, "RS256", "r", exp=int(time.time()) - 60),
        "expires as a text": _signed(RSA, "RS256", "r", exp=str(int(time.time()) + 600)),
        "expires at infinity": _signed(RSA, "RS256", "r", exp=1e308),
        "expires in ten years": _signed(RSA, "RS256", "r", exp=int(time.time()) + 3653 * 86400),
        "expires never": _signed(RSA, "RS256", "r", exp=None),
        "expires true": _signed(RSA, "RS256", "r", exp=True),
        "not yet": _signed(RSA, "RS256", "r", nbf=int(time.time()) + 600),
        "subject is empty": _signed(RSA, "RS256", "r", sub=""),
        "subject is long": _signed(RSA, "RS256", "r", sub="x" * 300),
        "subject has lines": _signed(RSA, "RS256", "r", sub="a\nb"),
        "two dots": "..",
        "dots and text": "a.b.c",
        "not ASCII inside": "é.é.é",
    }


@pytest.mark.parametrize("kind", sorted(_forgeries()))
def test_forgeries(issuer: doors.WebServer, kind: str) -> None:
    """None is let in, and none breaks anything for a good one after it."""
    refused, good = _identify(issuer, _forgeries()[kind], _signed(RSA, "RS256", "r"))
    assert refused is Unauthenticated
    assert isinstance(good, Principal)


def test_audiences_may_be_several(issuer: doors.WebServer) -> None:
    """One of them is ours."""
    (found,) = _identify(issuer, _signed(RSA, "RS256", "r", aud=["another", doors.AUDIENCE]))
    assert isinstance(found, Principal)


@pytest.mark.parametrize("scope", [None, ["generate"], {"generate": True}, 7, "", "GENERATE", "generate,models"])
def test_scopes_are_words_in_a_text(issuer: doors.WebServer, scope: object) -> None:
    """Whatever else stands there allows nothing."""
    (found,) = _identify(issuer, _signed(RSA, "RS256", "r", scope=scope))
    assert found == Principal("jwt:carla", frozenset())


@pytest.mark.parametrize(
    "keys",
    [
        {},
        [],
        {"keys": {}},
        {"keys": ["r", None, 7]},
        {"keys": [{"kty": "RSA", "kid": "r"}]},
        {"keys": [{"kty": "RSA", "kid": "r", "n": "!!", "e": "AQAB"}]},
        {"keys": [{"kty": "oct", "kid": "r", "k": "AAAA"}]},
        {"keys": [_rsa(RSA, "r", use="enc")]},
        {"keys": [_rsa(RSA, "r", alg="RS512")]},
        {"keys": [_rsa(RSA, "r", d="AQAB")]},
        {"keys": [{**_rsa(RSA, "r"), "kid": ["r"]}]},
    ],
    ids=lambda keys: f"{len(repr(keys))} characters",
)
def test_keys_that_cannot_be_used_let_nobody_in(issuer: doors.WebServer, keys: object) -> None:
    """Of another kind, too short, for something else, or no keys at all; private ones have no business there."""
    issuer.document = keys
    assert _identify(issuer, _signed(RSA, "RS256", "r")) == [Unauthenticated]


def test_a_short_key_lets_nobody_in(issuer: doors.WebServer) -> None:
    """1024 bits can be broken."""
    issuer.document = {"keys": [_rsa(SMALL_RSA, "r")]}
    with pytest.warns(jwt.InsecureKeyLengthWarning):
        token = _signed(SMALL_RSA, "RS256", "r")
    assert _identify(issuer, token) == [Unauthenticated]


def test_a_new_key_is_found_and_an_unknown_one_not_sought_for_ever(
    issuer: doors.WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rotation takes effect with the first token of the new key; guesses cost one question in a while."""

    async def scene() -> None:
        tokens = Tokens(KeySet(issuer.address), doors.ISSUER, doors.AUDIENCE)
        await tokens.identify(_signed(RSA, "RS256", "r"))
        for number in range(20):
            with pytest.raises(Unauthenticated):
                await tokens.identify(_signed(OTHER_RSA, "RS256", f"guess{number}"))
        assert len(issuer.asked) == 1
        monkeypatch.setattr(tokens_module, "SEEK_EVERY", 0.0)  # that while is over
        issuer.document = {"keys": [_rsa(OTHER_RSA, "new")]}
        new = _signed(OTHER_RSA, "RS256", "new")
        found = await asyncio.gather(*(tokens.identify(new) for _ in range(20)))
        assert {each.client for each in found} == {"jwt:carla"}
        assert len(issuer.asked) == 2
        with pytest.raises(Unauthenticated):  # the old key is no longer there
            await tokens.identify(_signed(RSA, "RS256", "r"))
        await tokens.close()

    asyncio.run(scene())


def test_an_outage_is_survived_once_keys_are_known(issuer: doors.WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before that nobody can be told to be good or bad."""
    monkeypatch.setattr(tokens_module, "FRESH", 0.0)
    monkeypatch.setattr(tokens_module, "SEEK_EVERY", 0.0)

    async def scene() -> None:
        good = _signed(RSA, "RS256", "r")
        known = Tokens(KeySet(issuer.address), doors.ISSUER, doors.AUDIENCE)
        await known.identify(good)
        issuer.close()
        assert (await known.identify(good)).client == "jwt:carla"
        unknown = Tokens(KeySet(issuer.address), doors.ISSUER, doors.AUDIENCE)
        with pytest.raises(AuthUnavailable):
            await unknown.identify(good)
        await known.close()
        await unknown.close()

    asyncio.run(scene())


def test_a_secret_is_for_hs256_alone() -> None:
    """And for tokens that name any key, or none."""
    tokens = Tokens(Secret(doors.SECRET), doors.ISSUER, doors.AUDIENCE)
    assert asyncio.run(tokens.identify(doors.token(header={"kid": "any"}))).client == "jwt:carla"
    for algorithm in ("HS384", "HS512"):
        with pytest.raises(Unauthenticated):
            asyncio.run(tokens.identify(doors.token(doors.SECRET * 2, algorithm)))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"auth": "hub"}, "hub_users"),
        ({"auth": "jwt"}, "jwt_secret"),
        ({"auth": "keys,jwt", "jwt_secret": doors.SECRET, "jwt_jwks_url": "http://x/"}, "jwt_secret"),
        ({"auth": "jwt", "jwt_secret": "short", "jwt_issuer": "i", "jwt_audience": "a"}, "32"),
        ({"auth": "jwt", "jwt_secret": doors.SECRET, "jwt_audience": "a"}, "jwt_issuer"),
        ({"auth": "jwt", "jwt_secret": doors.SECRET, "jwt_issuer": "i"}, "jwt_audience"),
    ],
)
def test_a_way_that_lacks_something_stops_the_start(settings: dict[str, str], said: str) -> None:
    """It would let in nobody, or everybody."""
    with pytest.raises(SettingsError, match=said):
        check(Settings(**settings))  # type: ignore[arg-type]


def test_a_credential_goes_to_its_own_way_only(issuer: doors.WebServer) -> None:
    """A key or a JWT is never shown to the Hub, which is somebody else."""

    async def scene() -> None:
        settings = Settings(auth="hub,jwt", hub_whoami=issuer.address, hub_users=("ada",), jwt_secret=doors.SECRET)
        authenticator = Authenticator(settings, None)  # type: ignore[arg-type] # without keys there are no rows
        for credential in (doors.token(), f"dgr_00000000_{'x' * 43}", "password", ""):
            with pytest.raises(Unauthenticated):
                await authenticator.identify(credential)
        assert issuer.asked == []
        await authenticator.close()

    asyncio.run(scene())
