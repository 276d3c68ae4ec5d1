"""The ``openai`` package against a server with keys: its errors, its retries, its asynchronous client."""

import asyncio
import base64
import contextlib
import io
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import doors
import httpx
import openai
import pytest
from PIL import Image

from server import Live, serving

SMALL: dict[str, Any] = {"prompt": "a lake", "size": "64x64", "extra_body": {"steps": 2, "seed": 3}}
LONG: dict[str, Any] = {"prompt": "a forest", "width": 512, "height": 512, "steps": 150, "seed": 1}


@dataclass(frozen=True, slots=True)
class Gate:
    """A server where each client may have one unfinished job, one is painted at a time, and one may wait."""

    live: Live
    keys: dict[str, str]
    open: contextlib.ExitStack

    def sdk(self, key: str, **options: Any) -> openai.OpenAI:
        """The package's client."""
        made = openai.OpenAI(base_url=f"{self.live.address}/v1", api_key=self.keys.get(key, key), **options)
        return self.open.enter_context(made)

    def begun(self, *keys: str) -> Callable[[], object]:
        """A long job of each of these clients, the first one running, and what calls them off."""
        jobs = {}
        for key in keys:
            client = self.open.enter_context(self.live.ask(headers=doors.bearer(self.keys[key])))
            path = jobs[client] = client.post("/v1/jobs", json=LONG).json()["links"]["self"]
            while len(jobs) == 1 and client.get(path).json()["status"] == "queued":
                time.sleep(0.02)
        return lambda: [client.delete(path) for client, path in jobs.items()]


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    """One for all tests."""
    outputs: Path = tmp_path_factory.mktemp("sdk")
    wanted: dict[str, doors.Wanted] = {name: (["generate"], None) for name in ("ada", "bea", "cleo")}
    keys = doors.make_keys(outputs.with_name(f"{outputs.name}-data"), wanted | {"keeper": (["models"], None)})
    settings = {"auth": "keys", "max_runs": "1", "queue_limit": "1", "client_limit": "1"}
    with serving(outputs, **settings) as live, contextlib.ExitStack() as stack:
        while httpx.get(f"{live.address}/readyz").status_code != 200:
            time.sleep(0.1)
        yield Gate(live, keys, stack)


def _size(b64: str | None) -> tuple[int, int]:
    with Image.open(io.BytesIO(base64.b64decode(b64 or ""))) as image:
        return image.size


def test_models(gate: Gate) -> None:
    """Listed, retrieved, and not found."""
    sdk = gate.sdk("keeper", max_retries=0)
    (model,) = (model for model in sdk.models.list() if model.id == "demo-xl")
    assert (model.object, model.owned_by) == ("model", "daguerre")
    assert sdk.models.retrieve("demo-xl").created == model.created
    with pytest.raises(openai.NotFoundError) as caught:
        sdk.models.retrieve("nobodys")
    assert caught.value.code == "model_not_found"


def test_who_is_not_let_in(gate: Gate) -> None:
    """Each by its class, at once: asking again would not help."""
    with pytest.raises(openai.AuthenticationError) as stranger:
        gate.sdk("nobody's").images.generate(**SMALL)
    with pytest.raises(openai.PermissionDeniedError) as keeper:
        gate.sdk("keeper").images.generate(**SMALL)
    for caught in (stranger, keeper):
        assert caught.value.request_id
        assert caught.value.response.request.headers["x-stainless-retry-count"] == "0"


@pytest.mark.parametrize(
    ("before", "kind", "code"),
    [
        (("ada",), openai.RateLimitError, "client_limit"),
        (("bea", "cleo"), openai.InternalServerError, "queue_full"),
    ],
)
def test_who_is_to_ask_again(gate: Gate, before: tuple[str, ...], kind: type[openai.APIStatusError], code: str) -> None:
    """Is told when; the package does, and gets the picture as soon as there is room."""
    call_off = gate.begun(*before)
    with pytest.raises(kind) as caught:
        gate.sdk("ada", max_retries=0).images.generate(**SMALL)
    assert (caught.value.code, caught.value.response.headers["x-should-retry"]) == (code, "true")
    assert float(caught.value.response.headers["retry-after"]) >= 1
    later = threading.Timer(0.5, call_off)
    later.start()
    answer = gate.sdk("ada", max_retries=20).images.with_raw_response.generate(**SMALL)
    later.join()
    assert answer.retries_taken > 0
    assert _size((answer.parse().data or ())[0].b64_json) == (64, 64)


def test_who_has_no_time(gate: Gate) -> None:
    """Is told by his own client; and is let in again when the job that he gave up has been called off."""
    fields = {"prompt": "a forest", "size": "512x512", "extra_body": {"steps": 150}}
    with pytest.raises(openai.APITimeoutError):
        gate.sdk("ada", max_retries=0, timeout=0.5).images.generate(**fields)
    assert gate.sdk("ada", max_retries=30).images.generate(**SMALL).data


def test_a_stream_that_is_called_off(gate: Gate) -> None:
    """Once headers are sent an error is an event, which the package raises."""
    sdk = gate.sdk("bea", max_retries=0)
    fields: dict[str, Any] = {"prompt": "a forest", "size": "256x256", "extra_body": {"steps": 150, "seed": 2}}
    kinds = []

    def read(client: httpx.Client) -> None:
        for event in sdk.images.generate(**fields, stream=True, partial_images=3):
            kinds.append(event.type)
            client.post("/sdapi/v1/interrupt")

    with gate.live.ask(headers=doors.bearer(gate.keys["bea"])) as client, pytest.raises(openai.APIError) as caught:
        read(client)
    assert set(kinds) == {"image_generation.partial_image"}
    assert caught.value.code == "cancelled"


def test_the_asynchronous_client(gate: Gate) -> None:
    """Pictures, streams, edits from a list, variations and models, one after another."""
    png = io.BytesIO()
    Image.new("RGB", (64, 64), "blue").save(png, "PNG")
    start = ("start.png", png.getvalue())

    async def all_of_it() -> None:
        address, few = f"{gate.live.address}/v1", {"steps": 2, "seed": 3}
        async with openai.AsyncOpenAI(base_url=address, api_key=gate.keys["cleo"], max_retries=0) as sdk:
            painted = await sdk.images.generate(**SMALL)
            assert _size((painted.data or ())[0].b64_json) == (64, 64)
            stream = await sdk.images.generate(**SMALL, stream=True)
            assert [event.type async for event in stream] == ["image_generation.completed"]
            edited = await sdk.images.edit(image=[start], prompt="a lake", extra_body=few, n=2)
            assert [_size(image.b64_json) for image in edited.data or ()] == [(64, 64)] * 2
            editing = await sdk.images.edit(image=start, prompt="a lake", extra_body=few, stream=True)
            assert [event.type async for event in editing] == ["image_edit.completed"]
            with pytest.warns(DeprecationWarning, match="deprecated"):
                varied = await sdk.images.create_variation(image=start, response_format="url")
            assert (varied.data or ())[0].url
            assert "demo-xl" in [model.id async for model in sdk.models.list()]

    asyncio.run(all_of_it())


def test_what_cannot_be_done_is_said(gate: Gate) -> None:
    """An edit by marks on a layer of its own would else be painted as if they were not there."""
    png = io.BytesIO()
    Image.new("RGBA", (64, 64)).save(png, "PNG")
    sdk = gate.sdk("ada", max_retries=0)
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.images.edit(image=png.getvalue(), prompt="a lake", markup=png.getvalue())
    assert caught.value.param == "markup"
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.images.edit(image=[png.getvalue()] * 2, prompt="a lake")
    assert caught.value.param == "image"
