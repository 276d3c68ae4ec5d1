"""Requests by chance: by the OpenAPI document, and by a corpus of what breaks servers. None is answered with a 5xx.

A full queue (503 with Retry-After) is an answer; a death, a traceback or a path in one, and memory that grows are not.
"""

import base64
import itertools
import logging
import re
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from corpus import Corpus, Wish
from declared import DOCUMENT
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from oddities import PICTURES, SMALL
from schemathesis import GenerationMode

from daguerre.http.document.assembly import canonical
from server import ROOT, Live, serving

log = logging.getLogger(__name__)

#: Bytes that the server may take, at the peak, beyond what it has when it has painted once in each way.
GROWTH = 256 * 1024 * 1024
#: The demo model, with sizes and steps of which thousands are painted in a minute or two.
CATALOG = """
[models.demo-xl]
steps = 1
guidance_scale = 1
native_size = [64, 64]
max_area = 16384
[styles.sketch]
prompt = "sketch of {prompt}"
"""
#: What an answer never holds.
SECRETS = re.compile(rf"Traceback|{re.escape(str(ROOT))}|/weights/|site-packages|(?<![A-Za-z0-9+/])0x[0-9a-f]{{8}}")
#: Fields of which what is in bounds takes long, and what is taken instead.
SLOW = {"steps": 2, "num_inference_steps": 2, "count": 2, "n": 2, "num_images": 2, "batch_size": 2, "n_iter": 1}
OPERATIONS = [found.ok() for found in schemathesis.openapi.from_dict(DOCUMENT).get_all_operations()]  # type: ignore[union-attr]
#: Those that are not others under another path.
MAIN = [operation for operation in OPERATIONS if canonical(operation.path) == operation.path]


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server of its own; that it lives, is ready, ends cleanly and has logged no failure is told at the end."""
    weights = tmp_path_factory.mktemp("weights")
    (weights / "demo-xl").symlink_to(ROOT / "weights" / "demo-xl")
    (weights / "catalog.toml").write_text(CATALOG)
    options = {"body_limit": str(4 * 1024 * 1024), "receive_timeout": "10", "result_ttl": "60", "weights": str(weights)}
    with serving(tmp_path_factory.mktemp("outputs"), **options) as live:
        live.wait_ready()
        _paint_once(live)
        yield live
        live.wait_ready()
        assert live.stop() == 0
        assert not [line for line in live.log if "Traceback" in line or "ERROR" in line], "".join(live.log)[-20_000:]


def _paint_once(live: Live) -> None:
    """From text, from a picture and into one: what the engine takes for itself belongs to what there is before."""
    picture = base64.b64encode(PICTURES[0]).decode()
    with live.ask() as client:
        start = {"image": picture, "strength": 1.0}
        for images in ({}, start, {**start, "mask": picture}):
            client.post("/generate", json={**SMALL, **images}).raise_for_status()


class Driver:
    """Makes requests and holds every answer against what is promised."""

    def __init__(self, live: Live) -> None:
        self.statuses: Counter[int] = Counter()
        self.names: list[str] = []
        self._failures: list[str] = []
        self._live = live
        self._clients: dict[int, httpx.Client] = {}
        Path(f"/proc/{live.process.pid}/clear_refs").write_text("5")  # the peak begins anew
        self._base = live.memory_peak()

    def ask(self, wish: Wish) -> None:
        """One request and its answer."""
        headers = [(name.encode(), value.encode()) for name, value in wish.headers.items()]
        try:
            url = self._live.address + wish.path
            answer = self._client().request(wish.method, url, content=wish.body, headers=headers)
            self._check(wish, answer)
        except (httpx.InvalidURL, httpx.LocalProtocolError):
            return  # nobody can send that
        except (AssertionError, httpx.TransportError) as error:
            about = f"{wish.method} {wish.path[:200]} {str(wish.headers)[:300]} {wish.body[:300]!r}"
            self._failures.append(f"{about}: {error!r}"[:1500])

    def _check(self, wish: Wish, answer: httpx.Response) -> None:
        self.statuses[answer.status_code] += 1
        is_full = answer.status_code == 503 and "retry-after" in answer.headers and "queue_full" in answer.text
        assert answer.status_code < 500 or is_full, f"{answer.status_code}: {answer.text[:300]}"
        if answer.headers.get("content-type", "").endswith("json"):
            found = SECRETS.search(answer.text)
            assert found is None or found[0].encode() in wish.body, found
        self.names += re.findall(r"/v1/jobs/[0-9a-f-]{36}\b|/outputs/[^\"]+", answer.text[:4000])[:1]

    def _client(self) -> httpx.Client:
        """This thread's own. It keeps connections for less time than the server: else one is closed as it is used."""
        thread = threading.get_ident()
        if thread not in self._clients:
            self._clients[thread] = self._live.ask(limits=httpx.Limits(keepalive_expiry=2.0))
        return self._clients[thread]

    def close(self, least: float) -> None:
        """Holds what was seen, so many answers at least, against what is promised of all together."""
        for client in self._clients.values():
            client.close()
        grown = self._live.memory_peak() - self._base
        assert not self._failures, "\n".join([f"{len(self._failures)} of {self.statuses}", *self._failures[:20]])
        assert grown <= GROWTH, f"{grown >> 20} MB"
        assert self.statuses.total() >= least
        log.info("%s answers: %s; %s MB more", self.statuses.total(), sorted(self.statuses.items()), grown >> 20)


SHORT = pytest.mark.timeout(900)
LONG = [pytest.mark.long, pytest.mark.timeout(4 * 3600)]


@pytest.mark.parametrize(
    ("operations", "cases"),
    [pytest.param(MAIN, 8, marks=SHORT), pytest.param(OPERATIONS, 250, marks=LONG)],
    ids=["short", "long"],
)
def test_by_the_document(fuzzed: Live, operations: list[Any], cases: int) -> None:
    """So many requests of each operation that hold to its schemas, and as many that do not."""
    driver = Driver(fuzzed)
    for operation, mode in itertools.product(operations, GenerationMode):
        if mode is GenerationMode.NEGATIVE and not _takes_anything(operation):
            continue

        @settings(
            max_examples=cases,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: Any) -> None:
            driver.ask(_wish(case))

        try:
            ask()
        except Unsatisfiable:
            assert mode is GenerationMode.NEGATIVE, operation.label  # any text is a name, if not one that is known
    driver.close(cases * len(operations))


def _takes_anything(operation: Any) -> bool:
    """Whether anything but the request's own name is taken, which could be wrong."""
    return bool(operation.body) or len(list(operation.iter_parameters())) > 1


def _wish(case: Any) -> Wish:
    """The request that schemathesis would send, but for what takes long."""
    if isinstance(case.body, dict):
        case.body = {name: _quick(name, value) for name, value in case.body.items()}
    request = requests.Request(**case.as_transport_kwargs(base_url="http://x")).prepare()
    body: Any = request.body or b""
    headers = {
        name: value if isinstance(value, str) else value.decode("latin-1") for name, value in request.headers.items()
    }
    return Wish(str(request.method), request.path_url, headers, body.encode() if isinstance(body, str) else body)


def _quick(name: str, value: Any) -> Any:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return SLOW[name] if name in SLOW and is_whole and SLOW[name] < value <= 150 else value


@pytest.mark.parametrize(
    "wishes", [pytest.param(4450, marks=SHORT), pytest.param(160_000, marks=LONG)], ids=["short", "long"]
)
def test_by_the_corpus(fuzzed: Live, wishes: int) -> None:
    """Four at a time; what the server gave out is asked for again."""
    driver, corpus = Driver(fuzzed), Corpus(seed=wishes)
    coming = itertools.islice(corpus, wishes)
    with ThreadPoolExecutor(4) as pool:
        for batch in iter(lambda: list(itertools.islice(coming, 40)), []):
            list(pool.map(driver.ask, batch))
            corpus.given.extend(name.rpartition("/")[2] for name in driver.names[-4:])
            driver.names.clear()
    driver.close(0.98 * wishes)
