"""Webhooks: told once the job has ended, signed, tried again, kept over deaths of the process, never in the way."""

import importlib.util
import itertools
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from receiver import Post, receiving

from server import ROOT, Live, serving

SECRET = "canary-of-webhooks-7f3a"  # noqa: S105 - looked for below, where it must not be
FIELDS: dict[str, Any] = {"prompt": "a lake", "width": 64, "height": 64, "steps": 2}
SETTINGS = {"webhook_secret": SECRET, "webhook_wait": "0.2", "private_hosts": "127.0.0.1"}


@pytest.fixture(scope="module")
def hooked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server with webhooks, which may go to 127.0.0.1."""
    with serving(tmp_path_factory.mktemp("hooked") / "outputs", **SETTINGS, webhook_timeout="2") as live:
        live.wait_ready()
        yield live
        assert live.stop() == 0


@pytest.fixture(scope="module")
def guide(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The receiver's part as the guide has it."""
    text = (ROOT / "docs" / "guides" / "webhooks.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    path = tmp_path_factory.mktemp("guide") / "verification.py"
    path.write_text(code)
    spec = importlib.util.spec_from_file_location("verification", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _submit(live: Live, url: str, **fields: Any) -> str:
    answer = httpx.post(f"{live.address}/v1/jobs", json={**FIELDS, "webhook": url, **fields}, timeout=30)
    assert answer.status_code == 202, answer.text
    assert url not in answer.text  # a URL may hold a token, and whoever knows a job's id may see the job
    return str(answer.json()["id"])


def test_the_job_is_posted_when_it_has_succeeded(hooked: Live) -> None:
    """Its body is the job as its route gives it."""
    with receiving() as receiver:
        job_id = _submit(hooked, receiver.url, metadata={"mine": 7})
        (post,) = receiver.wait_for(1)
        assert json.loads(post.body) == httpx.get(f"{hooked.address}/v1/jobs/{job_id}").json()
        job = json.loads(post.body)
        assert (job["status"], job["metadata"]) == ("succeeded", {"mine": 7})
        assert post.headers["content-type"] == "application/json"
        assert post.headers["daguerre-delivery"] == job_id
        assert post.headers["host"] == f"127.0.0.1:{receiver.port}"
        time.sleep(1)
        assert len(receiver.posts) == 1


def test_the_verification_of_the_guide_verifies(hooked: Live, guide: ModuleType) -> None:
    """What we send; and nothing that was changed, that another secret signed, or that is old."""
    with receiving() as receiver:
        _submit(hooked, receiver.url)
        (post,) = receiver.wait_for(1)
    header = post.headers["daguerre-signature"]
    assert guide.is_genuine(header, post.body, SECRET)
    moment, digest = re.fullmatch(r"t=(\d+),v1=([0-9a-f]{64})", header).groups()  # type: ignore[union-attr]
    assert abs(int(moment) - time.time()) < 60
    assert not guide.is_genuine(header, post.body + b" ", SECRET)
    assert not guide.is_genuine(header, post.body, SECRET + "x")
    assert not guide.is_genuine(f"t={int(moment) + 1},v1={digest}", post.body, SECRET)
    assert not guide.is_genuine(header, post.body, SECRET, now=int(moment) + 301)
    for broken in ("", "t=,v1=", "v1=" + digest, f"t={moment}", f"t={moment},v1=é", "t=x,v1=y", f"t={'9' * 5000},v1=0"):
        assert not guide.is_genuine(broken, post.body, SECRET)


def test_other_ends_are_told_too(tmp_path: Path) -> None:
    """A job that runs out of time, or is called off."""
    with receiving() as receiver, serving(tmp_path / "outputs", **SETTINGS, run_timeout="0.5") as live:
        live.wait_ready()
        for number, ends in enumerate([("failed", "timeout"), ("cancelled", "cancelled")]):
            job_id = _submit(live, receiver.url, steps=150, width=512, height=512, count=8)
            if ends[0] == "cancelled":
                httpx.delete(f"{live.address}/v1/jobs/{job_id}")
            job = json.loads(receiver.wait_for(number + 1)[number].body)
            assert (job["id"], job["status"], job["error"]["code"]) == (job_id, *ends)


def test_a_synchronous_request_may_have_one_as_well(hooked: Live) -> None:
    """The picture goes to the client, the job to the receiver."""
    with receiving() as receiver:
        answer = httpx.post(f"{hooked.address}/generate", json={**FIELDS, "webhook": receiver.url}, timeout=30)
        (post,) = receiver.wait_for(1)
        assert post.headers["daguerre-delivery"] == answer.headers["x-job-id"]
        assert b"canary" not in answer.content


def test_it_is_tried_again_until_it_arrives(hooked: Live) -> None:
    """With growing waits, under one id, each time signed anew."""
    with receiving() as receiver:
        receiver.status = lambda number: (500, 302, 404, 204)[number]
        job_id = _submit(hooked, receiver.url)
        posts = receiver.wait_for(4)
        assert {post.headers["daguerre-delivery"] for post in posts} == {job_id}
        assert len({post.body for post in posts}) == 1
        waits = [after.at - before.at for before, after in itertools.pairwise(posts)]
        assert all(wait >= 0.1 * 3**number for number, wait in enumerate(waits))
        time.sleep(1)
        assert len(receiver.posts) == 4


def test_tries_are_bounded(tmp_path: Path) -> None:
    """Then it is given up, and nothing more is owed, by the next process neither."""
    with receiving() as receiver:
        receiver.status = lambda _: 503
        with serving(tmp_path / "outputs", **SETTINGS, webhook_tries="2") as live:
            live.wait_ready()
            _submit(live, receiver.url)
            receiver.wait_for(2)
            time.sleep(1)
            assert live.stop() == 0
            assert any("given up after 2 tries" in line for line in live.log)
            assert not any("canary" in line for line in live.log)
        with serving(tmp_path / "outputs", **SETTINGS) as live:
            live.wait_ready()
            time.sleep(0.5)
        assert len(receiver.posts) == 2


@pytest.mark.parametrize("death", ["SIGTERM", "SIGKILL"])
def test_what_is_owed_outlives_the_process(tmp_path: Path, death: str) -> None:
    """The receiver is down, the server ends; when both are there again it is delivered, once, under the same id."""
    with receiving() as receiver:
        port, url = receiver.port, receiver.url
    with serving(tmp_path / "outputs", **SETTINGS) as live:
        live.wait_ready()
        job_id = _submit(live, url)
        _wait_for_the_end(live, job_id)
        if death == "SIGTERM":
            assert live.stop() == 0
        else:
            live.process.kill()
            live.process.wait()
    with receiving(port) as receiver, serving(tmp_path / "outputs", **SETTINGS) as live:
        (post,) = receiver.wait_for(1)
        assert (post.headers["daguerre-delivery"], json.loads(post.body)["status"]) == (job_id, "succeeded")
        time.sleep(1)
        assert len(receiver.posts) == 1
        assert live.stop() == 0


def test_kills_lose_no_webhook(tmp_path: Path) -> None:
    """Whatever the process was doing: all that was accepted is told in the end; twice at most now and then."""
    with receiving() as receiver:
        ids: list[str] = []
        for pause in (0.1, 0.6):
            with serving(tmp_path / "outputs", **SETTINGS) as live:
                live.wait_ready()
                ids += [_submit(live, receiver.url, seed=seed) for seed in range(4)]
                time.sleep(pause)
                live.process.kill()
        with serving(tmp_path / "outputs", **SETTINGS) as live:
            for job_id in ids:
                _wait_for_the_end(live, job_id)
            end = time.monotonic() + 30
            while _told(receiver.posts) != set(ids) and time.monotonic() < end:
                time.sleep(0.05)
        assert _told(receiver.posts) == set(ids)
        assert {json.loads(post.body)["status"] for post in receiver.posts} == {"succeeded"}


def _told(posts: list[Post]) -> set[str]:
    return {post.headers["daguerre-delivery"] for post in posts}


def _wait_for_the_end(live: Live, job_id: str) -> None:
    end = time.monotonic() + 60
    while httpx.get(f"{live.address}/v1/jobs/{job_id}").json()["finished_at"] is None:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_slow_receivers_hold_up_nobody(hooked: Live) -> None:
    """Dozens of posts to one that never answers: jobs go on, the server answers, and another receiver is told."""
    with receiving() as slow, receiving() as quick:

        def hang(_number: int) -> int:
            time.sleep(2.5)
            return 200

        slow.status = hang
        ids = [_submit(hooked, slow.url) for _ in range(24)]
        last = _submit(hooked, quick.url)
        for job_id in (*ids, last):
            _wait_for_the_end(hooked, job_id)
        assert httpx.get(f"{hooked.address}/livez", timeout=5).status_code == 200
        assert _told(quick.wait_for(1)) == {last}
        assert len(slow.posts) <= len(ids) + 8


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/",
        "example.com/hook",
        "http://user:secret@example.com/",
        "http://example.com:22/",
        "http://10.0.0.1/",
        "http://2130706434/",
        "http://[::1]/",
        "http://169.254.169.254/latest/meta-data",
        "http://example.com/ x",
        "",
        7,
    ],
)
def test_a_url_that_cannot_be_is_told_at_once(hooked: Live, url: object) -> None:
    """By the field's name, without the URL."""
    answer = httpx.post(f"{hooked.address}/v1/jobs", json={**FIELDS, "webhook": url})
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == ["webhook"]
    assert "secret" not in answer.text


def test_a_private_receiver_is_not_reached_unless_it_is_allowed(tmp_path: Path) -> None:
    """By a name, which is known only when it is resolved; the job itself is none the worse."""
    settings = SETTINGS | {"private_hosts": ""}
    with receiving() as receiver, serving(tmp_path / "outputs", **settings) as live:
        live.wait_ready()
        job_id = _submit(live, receiver.url.replace("127.0.0.1", "localhost"))
        _wait_for_the_end(live, job_id)
        end = time.monotonic() + 20
        while not any("given up after 1 tries" in line for line in live.log) and time.monotonic() < end:
            time.sleep(0.05)
        assert any("not public" in line for line in live.log)
        assert receiver.posts == []


def test_without_a_secret_there_are_none(live: Live) -> None:
    """It is said so, rather than a webhook that nobody can verify."""
    answer = httpx.post(f"{live.address}/v1/jobs", json={**FIELDS, "webhook": "https://example.com/"})
    assert answer.status_code == 422
    assert "webhook_secret" in answer.json()["errors"][0]["message"]


def test_dialects_have_none(hooked: Live) -> None:
    """The field is ignored as any other that they do not know."""
    with receiving() as receiver:
        body = {**FIELDS, "size": "64x64", "webhook": receiver.url}
        for path in ("/v1/images/generations", "/sdapi/v1/txt2img"):
            assert httpx.post(hooked.address + path, json=body, timeout=30).status_code == 200
        time.sleep(0.5)
        assert receiver.posts == []


def test_the_secret_is_in_no_file_and_no_log(hooked: Live) -> None:
    """Nor is the URL in a picture: it may hold a token."""
    with receiving() as receiver:
        _wait_for_the_end(hooked, _submit(hooked, receiver.url))
        receiver.wait_for(1)
        assert SECRET.encode() not in receiver.posts[0].body
    assert not any("canary" in line for line in hooked.log)
    data = hooked.outputs.with_name(f"{hooked.outputs.name}-data")
    files = [path for folder in (hooked.outputs, data) for path in folder.rglob("*") if path.is_file()]
    assert files
    for path in files:
        assert SECRET.encode() not in path.read_bytes(), path.name
        if path.parent == hooked.outputs:
            assert b"canary-in-a-url" not in path.read_bytes()


def test_config_hides_the_secret(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As it hides every secret."""
    from daguerre import cli

    (tmp_path / "daguerre.toml").write_text(f'webhook_secret = "{SECRET}"\n')
    cli.show_config(tmp_path / "daguerre.toml")
    shown = capsys.readouterr().out
    assert "webhook_secret = (hidden)  # daguerre.toml" in shown
    assert SECRET not in shown
    assert os.linesep in shown
