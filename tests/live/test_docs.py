"""The document and its page as they are served."""

import re

import httpx
import pytest
from declared import DOCUMENT


def test_the_document_is_served(client: httpx.Client) -> None:
    """As it is made."""
    assert client.get("/openapi.json").json() == DOCUMENT


def test_the_page_needs_nothing_from_elsewhere(client: httpx.Client) -> None:
    """It may run its own script and ask this server, and each part that it names is there."""
    page = client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers.get_list("content-security-policy")
    assert len(policy) == 1
    assert policy[0].startswith("default-src 'none'; script-src 'self'; ")
    assert "unsafe" not in policy[0]
    parts = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert sorted(parts) == ["/docs/docs.css", "/docs/docs.js", "/docs/icon.svg", "/openapi.json"]
    for part in parts:
        answer = client.get(part)
        assert answer.status_code == 200
        assert "://" not in answer.text.replace("https://json-schema.org", "").replace("http://www.w3.org/2000/svg", "")
    assert "style=" not in page.text
    assert " on" not in re.sub(r">[^<]*<", "><", page.text), "handlers in attributes would not run"


def test_the_page_is_what_a_visitor_finds(client: httpx.Client) -> None:
    """At the root, with its policy."""
    root, page = client.get("/"), client.get("/docs")
    assert (root.status_code, root.content) == (200, page.content)
    assert root.headers["content-security-policy"] == page.headers["content-security-policy"]


@pytest.mark.parametrize("name", ["x", "docs.py", "..%2fversion.py", "%2e%2e", "docs.html%00"])
def test_the_page_has_no_other_parts(client: httpx.Client, name: str) -> None:
    """Nothing else of the package can be had."""
    assert client.get(f"/docs/{name}").status_code == 404


def test_other_answers_keep_their_policy(client: httpx.Client) -> None:
    """What is no page may still run nothing."""
    assert client.get("/ping").headers["content-security-policy"].startswith("default-src 'none'; frame-ancestors")
