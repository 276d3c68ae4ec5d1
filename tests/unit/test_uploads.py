"""Forms, as clients make them and as nobody should."""

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daguerre.errors import MalformedBody, UnsupportedMediaType
from daguerre.http.dialects.uploads import MAX_FIELD, MAX_FIELDS, MAX_FILES, Form, parse

_NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_TEXTS = st.dictionaries(_NAMES, st.text(st.characters(exclude_categories=["Cs"]), max_size=50), max_size=4)
_FILES = st.lists(st.tuples(_NAMES, st.binary(max_size=200)), min_size=1, max_size=4)


def _sent(texts: dict[str, str], files: list[tuple[str, bytes]]) -> Form:
    """What is read of a form as httpx sends it."""
    request = httpx.Request("POST", "http://x/", data=texts, files=[(name, ("a.png", data)) for name, data in files])
    return parse(request.headers["content-type"], request.read())


@given(texts=_TEXTS, files=_FILES)
def test_what_is_sent_is_read(texts: dict[str, str], files: list[tuple[str, bytes]]) -> None:
    """Any names, texts and files."""
    found = _sent(texts, files)
    # httpx spells quotes and line ends in names by percent signs, as browsers do (RFC 7578 leaves that open).
    plain = {_spelled(name): text for name, text in texts.items()}
    assert found.texts == plain
    assert found.files == {
        _spelled(name): [data for other, data in files if _spelled(other) == _spelled(name)] for name, _ in files
    }


def _spelled(name: str) -> str:
    return "".join(
        {'"': "%22", "\\": "\\"}.get(each, f"%{ord(each):02X}" if ord(each) < 32 and each != "\x1b" else each)
        for each in name
    )


FILE = (
    b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
    b"\x89PNG\r\n"
)
TEXT = b"--b\r\ncontent-disposition:form-data;name=prompt\r\n\r\na lake\r\n"
KIND = "multipart/form-data; boundary=b"


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (KIND, FILE + TEXT + b"--b--"),
        (KIND, FILE + TEXT + b"--b--\r\nan epilogue\r\n--b\r\n"),
        (KIND, b"a preamble\r\n" + FILE + TEXT + b"--b--\r\n"),
        ('Multipart/Form-Data; charset=utf-8; boundary="b"', FILE + TEXT + b"--b--\r\n"),
        (KIND, FILE.replace(b"--b", b"--b \t") + TEXT + b"--b--\r\n"),
        (KIND, FILE.replace(b'filename="a.png"', b"filename*=UTF-8''a.png") + TEXT + b"--b--\r\n"),
        (KIND, FILE.replace(b'"a.png"', b'"a\\";name=\\"x.png"') + TEXT + b"--b--\r\n"),
        (KIND, FILE.replace(b'"a.png"', b'""') + TEXT + b"--b--\r\n"),
    ],
)
def test_forms_of_many_kinds(kind: str, body: bytes) -> None:
    """What stands before and behind, in quotes or not, in capitals."""
    assert parse(kind, body) == Form({"prompt": "a lake"}, {"image": [b"\x89PNG"]})


def test_no_part_at_all() -> None:
    """Is a form, of nothing."""
    assert parse(KIND, b"--b--\r\n") == Form({}, {})


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (KIND, b""),
        (KIND, b"--b"),
        (KIND, b"--b\r\n"),
        (KIND, b"--b--x"[:3] + b"x--"),
        (KIND, FILE),
        (KIND, FILE + b"--c--"),
        (KIND, FILE.replace(b"\r\n", b"\n") + b"--b--"),
        (KIND, b"--b\r\n\r\n--b--"),
        (KIND, b"--b\r\n\r\na\r\n--b--"),
        (KIND, FILE.replace(b"form-data", b"attachment") + b"--b--"),
        (KIND, FILE.replace(b' name="image";', b"") + b"--b--"),
        (KIND, TEXT.replace(b"lake", b"\xff") + b"--b--"),
        (KIND, TEXT.replace(b"prompt", b"\xff") + b"--b--"),
        (KIND, TEXT.replace(b"lake", b"x" * MAX_FIELD) + b"--b--"),
        (KIND, b"".join(TEXT.replace(b"prompt", b"p%d" % each) for each in range(MAX_FIELDS + 1)) + b"--b--"),
        (KIND, FILE * (MAX_FILES + 1) + b"--b--"),
        ("multipart/form-data", FILE + b"--b--"),
        ("multipart/form-data; boundary=", FILE + b"--b--"),
        (f"multipart/form-data; boundary={'b' * 71}", FILE + b"--b--"),
        ("multipart/form-data; boundary=b\xe9", FILE + b"--b--"),
    ],
)
def test_what_is_no_form(kind: str, body: bytes) -> None:
    """Is told so."""
    with pytest.raises(MalformedBody):
        parse(kind, body)


@pytest.mark.parametrize("kind", ["", "text/plain", "multipart/mixed; boundary=b", "application/x-www-form-urlencoded"])
def test_other_types(kind: str) -> None:
    """Are not looked into."""
    with pytest.raises(UnsupportedMediaType):
        parse(kind, FILE + b"--b--")


@given(st.binary(max_size=300))
def test_any_bytes(body: bytes) -> None:
    """Are a form or none."""
    for content in (body, FILE[:60] + body, FILE + body + b"--b--"):
        try:
            parse(KIND, content)
        except MalformedBody:
            continue
