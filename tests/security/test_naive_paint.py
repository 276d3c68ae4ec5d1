"""Each trial finds what it is there to find: in naive servers, loaders and settings."""

import asyncio
import base64
import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import badfiles
import httpx
import naive_files
import naive_paint
import pytest
import safetensors.torch
import trials
import trials_input
from hub import serving_hub
from huggingface_hub import constants, hf_hub_download
from starlette.types import Message, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

import naive


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its pictures, with one of them, and what it should not serve."""
    outputs = tmp_path_factory.mktemp("naive") / "outputs"
    outputs.mkdir()
    trials.plant(outputs)
    (outputs / "a.png").write_bytes(os.urandom(9000))
    return outputs


@pytest.fixture(scope="module")
def port(folder: Path) -> Iterator[int]:
    """A naive server that paints."""
    with naive.served(naive_paint.painting(folder)) as port:
        yield port


@pytest.fixture(scope="module")
def address(port: int) -> str:
    """Its address."""
    return f"http://127.0.0.1:{port}"


def _has(found: list[str], *parts: str) -> None:
    for part in parts:
        assert any(part in each for each in found), (part, found)


def test_files(port: int) -> None:
    """Read through ``..``, through links, and as they lie there; and broken by names that no file has."""
    found = trials.traversals(port)
    _has(found, "200 /outputs/..%2fsecret.toml", "200 /outputs/link.png", "200 /outputs/daguerre.toml", "500 /outputs/")
    _has(found, "200 /outputs/a.svg")


def test_headers_of_pictures(address: str) -> None:
    """All are lacking that are not there by themselves."""
    found = trials.unprotected(address, "/outputs/a.png")
    _has(found, "x-content-type-options", "content-security-policy", "content-disposition")


def test_ranges(port: int) -> None:
    """Thousands of them take seconds; strange ones are a failure."""
    found = trials.ranges(port, "/outputs/a.png", time.process_time)
    _has(found, "bytes=0-0,2-2", "bytes=a-b: 500")


def test_what_a_picture_tells(address: str, folder: Path) -> None:
    """The key with which it was asked for, and where it was painted."""
    answer = httpx.post(f"{address}/generate", json=trials.SMALL, headers={"authorization": "Bearer the-canary"})
    assert trials.told(answer.content, ["the-canary", str(folder)]) == ["request", "the-canary", str(folder)]


def test_pages_of_other_sites(address: str) -> None:
    """Any page may paint, by a plain form, and open sockets."""
    found = trials.crossings(address, ["/generate"])
    _has(found, "/generate https://evil.example text/plain: 200", "/generate None text/plain: 200")
    _has(found, "/generate null application/json: 200", "WS https://evil.example")


def test_hosts(port: int) -> None:
    """Every name is its own."""
    assert len(trials.foreign_hosts(port)) >= 8


def test_bodies(address: str) -> None:
    """The last of two keys wins; what is no JSON, or too deep, is a failure."""
    found = trials_input.bodies(address, time.process_time)
    _has(found, '"prompt": "b"}\': 200', "b'{': 500", "[[[[")


def test_numbers(address: str) -> None:
    """Taken as they come, or a failure."""
    _has(
        trials_input.numbers(address),
        "steps = 1e400: 200",
        "seed = 1844",
        "width = -5: 500",
        "guidance_scale = NaN: 200",
    )


def test_bounds() -> None:
    """A number, a list and a text that anything may be."""
    text, number = {"type": "string"}, {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "null"}]}
    schema = {
        "properties": {"n": number, "all": {"type": "array", "items": text}, "image": text, "ok": {"enum": ["a"]}}
    }
    assert trials_input.unbounded(schema, "x", frozenset({"image"})) == ["x.n", "x.all", "x.all"]


def test_addresses(address: str) -> None:
    """It goes wherever it is sent."""
    _has(trials_input.fetched(address), "connected to")


def test_paths_in_fields(address: str, tmp_path: Path) -> None:
    """It writes wherever it is told."""
    _has(trials_input.written(address, tmp_path), str(tmp_path / "save_path.png"))


def test_pickles(address: str, tmp_path: Path) -> None:
    """They run."""
    _has(trials_input.unpickled(address, tmp_path / "canary"), "it ran: canary")


def test_forms(address: str) -> None:
    """Those that are long take seconds."""
    long = "a megabyte of almost boundaries"
    _has(trials_input.forms(address, time.process_time, [long, "no end"]), f"{long}: 200", "no end: 200")


def test_large_bodies(address: str) -> None:
    """There is no limit."""
    assert len(trials_input.oversized(address, 1 << 20)) == 2


def test_formats(address: str) -> None:
    """All that Pillow knows."""
    _has(trials_input.strange_formats(address), "GIF /generate: 200", "TIFF /generate: 200", "EPS", "PSD")


def test_shapes(address: str) -> None:
    """A picture that is all bomb; one whose longer side has no room."""
    found = trials_input.odd_shapes(address, [(0, 0), (4000, 1), (2**31 - 1, 2**31 - 1)])
    _has(found, "0x0 /generate: 500", "4000x1 /generate: 500", "2147483647x2147483647 /generate: 500")


def test_prompts_in_headers(address: str) -> None:
    """What is not Latin-1 is a failure, and line ends break the connection."""
    _has(trials.broken_answers(address), "'🌅': 500", "X-")


def test_series(address: str) -> None:
    """One for each path that anybody asks for."""
    assert len(trials.new_series(address)) >= 20


def test_sockets(address: str) -> None:
    """uvicorn as it comes agrees to a compressor, and takes 16 MB at once."""
    assert trials.deflated(address) == ["permessage-deflate"]
    assert trials.large_frames(address, 1 << 21) == [str(1 << 21)]


def test_half_a_request(port: int) -> None:
    """uvicorn as it comes waits for ever."""
    assert len(trials.half_open(port, 2.5)) == len(trials.HALVES)


def test_a_crowd(port: int) -> None:
    """uvicorn as it comes serves everybody."""
    assert trials.crowd(port, 60) == ["80 at once"]


# Whose word is taken


def test_the_address_that_a_client_gives_itself() -> None:
    """Where every proxy is trusted, it is the client's address (``test_addresses.py``)."""
    seen: list[str] = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        seen.append(scope["client"][0])

    async def nothing(*_: Message) -> Any:
        raise AssertionError

    headers = [(b"x-forwarded-for", b"127.0.0.1")]
    scope = {"type": "http", "scheme": "http", "client": ("203.0.113.9", 1), "headers": headers}
    asyncio.run(ProxyHeadersMiddleware(app, trusted_hosts="*")(scope, nothing, nothing))  # type: ignore[arg-type]
    assert seen == ["127.0.0.1"]


def test_a_key_that_is_not_set() -> None:
    """As LitServe's, read before it was there: what is compared with nothing lets everybody in."""

    def lets_in(given: str | None, key: str | None) -> bool:
        return not key or given == key

    assert lets_in(None, None)  # test_keys_without_any_key_let_nobody_in


def test_a_line_of_the_log() -> None:
    """The standard library's formatter writes what it is given (``test_log.py``)."""
    record = logging.LogRecord("a", 20, "", 1, 'x\r\n{"level": "critical"}', (), None)
    assert len(logging.Formatter("%(message)s").format(record).splitlines()) == 2


# Weights


def test_loading_by_suffix(tmp_path: Path) -> None:
    """Every spelling but one is unpickled (``test_weights.py``)."""
    from test_weights import SPELLINGS

    ran = 0
    for number, spelling in enumerate(SPELLINGS):
        canary = tmp_path / f"canary{number}"
        path = tmp_path / f"evil{spelling}"
        path.write_bytes(badfiles.disguises(canary)["as torch saves"](b""))
        with contextlib.suppress(Exception):  # it ran, and then was no tensor
            naive_files.load(path)
        ran += canary.exists()
    assert ran >= 25


@pytest.mark.parametrize("way", [naive_files.load_somehow, naive_files.load_part])
def test_a_second_loader(tmp_path: Path, way: Callable[[Path], Any]) -> None:
    """What the safe loader refuses, or what lies beside it, the other one runs."""
    part, canary = tmp_path / "unet", tmp_path / "canary"
    part.mkdir()
    for name in ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"):
        content = (
            badfiles.disguises(canary)["as torch saves"](b"")
            if way is naive_files.load_somehow or name.endswith("bin")
            else b"torn"
        )
        (part / name).write_bytes(content)
    way(part / "diffusion_pytorch_model.safetensors" if way is naive_files.load_somehow else part)
    assert canary.exists()


def test_code_that_a_model_brings(tmp_path: Path) -> None:
    """It runs where it is trusted (``test_bad_files.py``)."""
    (tmp_path / "model_index.json").write_text('{"unet": ["my_unet", "MyUNet"]}')
    (tmp_path / "my_unet.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'canary')!r})\n")
    naive_files.load_model(tmp_path)
    assert (tmp_path / "canary").exists()


def test_shards_elsewhere(tmp_path: Path) -> None:
    """A name that is a path is followed."""
    (tmp_path / "unet").mkdir()
    (tmp_path / "secret").write_bytes(b"the canary")
    assert naive_files.shards(tmp_path / "unet", {"weight_map": {"a": "../secret"}}) == [b"the canary"]


def test_numbers_that_are_none(tmp_path: Path) -> None:
    """The format's own library reads NaN, and a header of 9 MB, without a word."""
    import torch

    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"a.weight": torch.ones(8)}, path)
    good = path.read_bytes()
    for kind in ("not a number", "infinite", "a header of 9 MB that is there"):
        path.write_bytes(badfiles.CORRUPT[kind](good))
        assert safetensors.torch.load_file(path)


def test_a_bit_of_a_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub compares sizes (``test_a_file_one_bit_off_is_refused``)."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "a.safetensors").write_bytes(os.urandom(5000))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with serving_hub() as hub:
        hub.repositories["tests/far"], hub.flipped = folder, {"a.safetensors"}
        got = hf_hub_download(
            "tests/far", "a.safetensors", endpoint=hub.address, local_dir=tmp_path / "got", token=False
        )
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (Path(got), folder / "a.safetensors")]
    assert digests[0] != digests[1]


def test_where_a_hub_redirects_to(tmp_path: Path) -> None:
    """A client that follows redirects asks this machine's neighbours (``test_hubclient.py``)."""
    with serving_hub() as neighbour, serving_hub() as hub:
        for each in (hub, neighbour):
            each.repositories["tests/far"] = tmp_path
        (tmp_path / "a.json").write_text("{}")
        hub.elsewhere = neighbour.address
        answer = httpx.get(f"{hub.address}/tests/far/resolve/main/a.json", follow_redirects=True)
        assert answer.status_code == 200
        assert neighbour.asked == {"tests/far"}


def test_base64_that_is_none() -> None:
    """The standard library's reader leaves out what it does not know, unless it is told to be strict."""
    assert base64.b64decode("aGV!!!sbG8=") == b"hello"
