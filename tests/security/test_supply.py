"""What the image would hold, and what is in the tree: told by what is installed here and by the sources themselves."""

import ast
import re
import tomllib
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from server import ROOT

SOURCES = sorted((ROOT / "src" / "daguerre").rglob("*.py"))

#: Parsers of forms, other web frameworks and their front ends, forgers of tokens, scanners and what pickles.
UNWANTED = frozenset(
    {
        "python-multipart",
        "multipart",
        "httptools",
        "gradio",
        "flask",
        "fastapi",
        "django",
        "aiohttp",
        "tornado",
        "bottle",
    }
    | {"authlib", "python-jose", "picklescan", "dill", "cloudpickle", "joblib", "kernels"}
)
#: Fixed there: the advisories that reliability.md names.
LEAST = {
    "starlette": "1.3.1",
    "h11": "0.16",
    "websockets": "16",
    "pillow": "12.3",
    "pyjwt": "2.13",
    "torch": "2.10",
    "transformers": "5.3",
    "diffusers": "0.38",
}


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(wanted: Iterable[str]) -> dict[str, str]:
    """The versions of all that would be installed for these requirements, as far as it is installed here."""
    found: dict[str, str] = {}
    waiting = [Requirement(text) for text in wanted]
    while waiting:
        one = waiting.pop()
        name = _plain(one.name)
        if name in found or (one.marker is not None and not one.marker.evaluate({"extra": ""})):
            continue
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            found[name] = ""
            continue
        found[name] = distribution.version
        for text in distribution.requires or ():
            needed = Requirement(text)
            if needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in ("", *one.extras)):
                needed.marker = None
                waiting.append(needed)
    return found


def _dependencies() -> list[str]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        found: list[str] = tomllib.load(file)["project"]["dependencies"]
    return found


def test_nothing_is_installed_that_has_no_business_here() -> None:
    """No parser of forms beside ours, no second web framework, no reader of pickles, no scanner to rely on."""
    assert closure(_dependencies()).keys() & UNWANTED == set()


def test_what_is_installed_is_new_enough() -> None:
    """And what we ask for is."""
    found = closure(_dependencies())
    asked = {_plain(one.name): one.specifier for one in map(Requirement, _dependencies())}
    for name, least in LEAST.items():
        assert Version(found[name]) >= Version(least), name
        assert not asked[name].contains(str(Version(least).major - 1)), name


def test_an_unwanted_one_would_be_found() -> None:
    """Deep down as well: uvicorn's extra brings httptools, and Starlette's a parser of forms."""
    found = closure(["uvicorn[standard]", "starlette[full]"])
    assert {"httptools", "python-multipart"} <= found.keys() & UNWANTED


def unsafe(source: str) -> list[str]:
    """What a source has that has led to remote code, to open sockets, or to addresses made of headers."""
    return sorted({found for node in ast.walk(ast.parse(source)) for found in _unsafe(node)})


#: Modules that turn data into code, and names that do.
_MODULES = frozenset({"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "python_multipart", "picklescan"})
_NAMES = frozenset({"BaseHTTPMiddleware", "UploadFile", "StaticFiles", "ProxyHeadersMiddleware"})
_CALLS = frozenset({"eval", "exec", "__import__"})
_ATTRIBUTES = frozenset(
    {("torch", "load"), ("request", "url"), ("connection", "url"), ("socket", "url"), ("os", "system")}
)
#: Words that, given to a call, let it run what came along, or read what is no safetensors.
_WORDS = {"trust_remote_code": (True, False), "weights_only": (True, False), "shell": (True,), "allow_pickle": (True,)}


def _unsafe(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        module = getattr(node, "module", None) or ""
        names = [alias.name for alias in node.names]
        roots = {name.partition(".")[0] for name in ([module] if isinstance(node, ast.ImportFrom) else names)}
        yield from roots & _MODULES
        yield from _NAMES.intersection(names)
        yield from (f"{module}.{name}" for name in names if (module, name) in _ATTRIBUTES)
    if isinstance(node, ast.Attribute):
        owner = node.value.id if isinstance(node.value, ast.Name) else getattr(node.value, "attr", "")
        is_safe = owner == "torch" and not isinstance(node.value, ast.Name)  # safetensors has a module of that name
        if (owner, node.attr) in _ATTRIBUTES and not is_safe:
            yield f"{owner}.{node.attr}"
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _CALLS:
        yield node.func.id
    if isinstance(node, ast.keyword) and node.arg in _WORDS:
        value = node.value.value if isinstance(node.value, ast.Constant) else True
        if value in _WORDS[node.arg]:
            yield node.arg


def test_nothing_unsafe_is_in_the_tree() -> None:
    """No pickle, no torch.load, no remote code, no middleware that hides sockets, no address made of a header."""
    assert len(SOURCES) > 100
    assert {str(path): unsafe(path.read_text()) for path in SOURCES if unsafe(path.read_text())} == {}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import pickle", "pickle"),
        ("from pickle import loads", "pickle"),
        ("import torch\ntorch.load(path, weights_only=True)", "torch.load"),
        ("from torch import load", "torch.load"),
        ("kind.from_pretrained(path, trust_remote_code=is_trusted)", "trust_remote_code"),
        ("from starlette.middleware.base import BaseHTTPMiddleware as Base", "BaseHTTPMiddleware"),
        ("def f(request):\n    return request.url.path", "request.url"),
        ("self.request.url", "request.url"),
        ("import python_multipart.multipart", "python_multipart"),
        ("numpy.load(path, allow_pickle=True)", "allow_pickle"),
        ("eval(text)", "eval"),
        ("subprocess.run(text, shell=True)", "shell"),
    ],
)
def test_each_would_be_found(source: str, found: str) -> None:
    """However it is imported, and whatever it is called there."""
    assert found in unsafe(source)


def test_the_naive_servers_would_be_found() -> None:
    """They make these mistakes."""
    here = Path(__file__).parent
    assert {"pickle", "BaseHTTPMiddleware", "request.url"} <= set(unsafe((here / "naive_paint.py").read_text()))
    assert {"torch.load", "weights_only"} <= set(unsafe((here / "naive_files.py").read_text()))
