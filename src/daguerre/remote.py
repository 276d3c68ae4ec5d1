"""Owns painting at a server for the command: events as progress, pictures as files."""

from collections.abc import Callable
from pathlib import Path

from msgspec import structs

from daguerre.answers import Event, Progressed, Queued, Started
from daguerre.client import BadAnswer, Client
from daguerre.recipe import Draft
from daguerre.store.files import FORMATS, Files


def generate(
    server: str, api_key: str | None, draft: Draft, out: Path, on_progress: Callable[[str, float], None]
) -> list[Path]:
    """Has a server paint, and writes and gives the files. ``out`` is a folder, or the file for a single picture.

    Raises:
        ClientError: the server refused, failed or was not there.
        OSError: a file cannot be written.
    """
    if draft.format is None and out.suffix in FORMATS:
        draft = structs.replace(draft, format=FORMATS[out.suffix])
    with Client(server, api_key=api_key) as client:
        painting = client.generate(draft, on_progress=lambda event: on_progress(*_shown(event)))
    if out.suffix and not out.is_dir() and len(painting.pictures) == 1:
        out.write_bytes(painting.data)
        return [out]
    pairs = zip(painting.job.images, painting.pictures, strict=True)
    return [_kept(out, image.filename, picture.data) for image, picture in pairs]


def _shown(event: Event) -> tuple[str, float]:
    match event:
        case Queued(position=position):
            return f"waiting, place {position}", 0.0
        case Started():
            return "painting", 0.0
        case Progressed(step=step, steps=steps, fraction=fraction):
            return f"step {step} of {steps}", fraction
    return "fetching", 1.0


def _kept(folder: Path, name: str, data: bytes) -> Path:
    try:
        return Files(folder).write(name, data)
    except FileExistsError:
        path = folder / name
        if path.read_bytes() == data:  # the server's own folder
            return path
        raise
    except ValueError:
        raise BadAnswer("the server gave a picture a name that no file may have") from None
