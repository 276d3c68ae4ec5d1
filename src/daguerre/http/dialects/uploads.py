"""Owns uploads: the fields and files of a multipart form (RFC 7578), read with care.

The body is there whole, within the body limit, and is cut at its boundary into no more parts than a form may have. File
names are not kept.
"""

import asyncio
import re
from collections.abc import Iterator
from dataclasses import dataclass

from starlette.requests import Request

from daguerre.errors import FieldError, InvalidRecipe, MalformedBody, UnsupportedMediaType
from daguerre.http.state import State

#: Files and fields that a form may have.
MAX_FILES, MAX_FIELDS = 16, 100
#: Bytes of a field that is text, and of the headers of a part.
MAX_FIELD, MAX_HEAD = 256 * 1024, 8 * 1024

_BOUNDARY = re.compile(rb"[\w'()+,./:=? -]{1,70}")  # RFC 2046, 5.1.1
_DISPOSITION = re.compile(rb"content-disposition[ \t]*:[ \t]*form-data[ \t]*((?:;.*)?)", re.IGNORECASE)
_PARAMETER = re.compile(rb';[ \t]*([\w!#$%&*+.^`|~-]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s;"]*))')


@dataclass(frozen=True, slots=True)
class Form:
    """A form: its texts, the last of each name, and its files in their order."""

    texts: dict[str, str]
    files: dict[str, list[bytes]]

    def only(self, *names: str) -> bytes | None:
        """The file that goes by one of these names, if there is one.

        Raises:
            InvalidRecipe: there are several.
        """
        found = [data for name in names for data in self.files.get(name, ())]
        if len(found) > 1:
            raise InvalidRecipe([FieldError(names[0], "one picture at a time")])
        return found[0] if found else None


async def read_form(request: Request[State]) -> Form:
    """The form in a request's body, which the body limit has bounded already.

    Raises:
        UnsupportedMediaType, MalformedBody
    """
    content_type, body = request.headers.get("content-type", ""), await request.body()
    return await asyncio.get_running_loop().run_in_executor(request.state["codec"], parse, content_type, body)


def parse(content_type: str, body: bytes) -> Form:
    """The form in a body.

    Raises:
        UnsupportedMediaType, MalformedBody
    """
    if content_type.split(";")[0].strip().lower() != "multipart/form-data":
        raise UnsupportedMediaType("the body must be multipart/form-data")
    boundary = _parameters(content_type.encode("latin-1")).get(b"boundary", b"")
    if not _BOUNDARY.fullmatch(boundary):
        raise MalformedBody("the form has no boundary")
    form = Form({}, {})
    for part in _parts(body, boundary):
        _add(form, part)
    return form


def _parameters(line: bytes) -> dict[bytes, bytes]:
    """What stands behind the semicolons of a header, without quotes."""
    return {key.lower(): re.sub(rb"\\(.)", rb"\1", quoted) or bare for key, quoted, bare in _PARAMETER.findall(line)}


def _parts(body: bytes, boundary: bytes) -> Iterator[bytes]:
    """What stands between the boundaries; each part has the end of its boundary's line in front."""
    mark = b"\r\n--" + boundary
    at = len(mark) - 2 if body.startswith(mark[2:]) else _place(body, mark, 0) + len(mark)
    while not body.startswith(b"--", at):
        end = _place(body, mark, at)
        yield body[at:end]
        at = end + len(mark)


def _place(body: bytes, mark: bytes, start: int) -> int:
    place = body.find(mark, start)
    if place < 0:
        raise MalformedBody("the form is cut off")
    return place


def _add(form: Form, part: bytes) -> None:
    end = part.find(b"\r\n\r\n", 0, MAX_HEAD)
    if end < 0 or part[: part.find(b"\r\n")].strip():
        raise MalformedBody("a part of the form has no headers, or they are too long")
    name, is_file = _disposition(part[:end])
    content = part[end + 4 :]
    if is_file:
        form.files.setdefault(name, []).append(content)
    elif len(content) <= MAX_FIELD:
        form.texts[name] = _text(content)
    else:
        raise MalformedBody(f"a field of the form has more than {MAX_FIELD} bytes")
    if len(form.texts) > MAX_FIELDS or sum(map(len, form.files.values())) > MAX_FILES:
        raise MalformedBody(f"the form has more than {MAX_FIELDS} fields or {MAX_FILES} files")


def _disposition(head: bytes) -> tuple[str, bool]:
    """The name of a part, and whether it is a file: what has a file name is one."""
    for line in head.split(b"\r\n"):
        found = _DISPOSITION.fullmatch(line)
        if found is not None:
            given = _parameters(found[1])
            if b"name" in given:
                return _text(given[b"name"]), not given.keys().isdisjoint((b"filename", b"filename*"))
    raise MalformedBody("a part of the form has no name")


def _text(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise MalformedBody("a field of the form is not UTF-8") from None
