"""Owns uploads: the fields and files of a multipart form, read with care."""

from dataclasses import dataclass

from python_multipart.exceptions import MultipartParseError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from daguerre.errors import FieldError, InvalidRecipe, MalformedBody, UnsupportedMediaType
from daguerre.http.state import State

#: Files and fields that a form may have.
MAX_FILES, MAX_FIELDS = 16, 100
#: Bytes of a field that is text.
MAX_FIELD = 256 * 1024


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
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "multipart/form-data":
        raise UnsupportedMediaType("the body must be multipart/form-data")
    texts: dict[str, str] = {}
    files: dict[str, list[bytes]] = {}
    try:
        async with request.form(max_files=MAX_FILES, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD) as form:
            for name, value in form.multi_items():
                if isinstance(value, UploadFile):
                    files.setdefault(name, []).append(await value.read())
                else:
                    texts[name] = value
    except (HTTPException, MultipartParseError, LookupError, ValueError):  # Starlette's own, and its parser's
        raise MalformedBody("the form cannot be read") from None
    return Form(texts, files)
