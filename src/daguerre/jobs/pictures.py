"""Owns finished pictures: pixels to a file that says how it was made, under the name that a job's picture has."""

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime

from daguerre import imaging, infotext
from daguerre.job import Image, SafetyResult
from daguerre.recipe import Recipe
from daguerre.store.files import Files, thumbnail_name

log = logging.getLogger(__name__)

#: Of the JPEGs that previews are.
PREVIEW_QUALITY = 80
#: Seconds between two looks for files whose time is over, at most.
LOOK_EVERY = 600.0


async def expire_for_ever(files: Files, ttl: float) -> None:
    """Removes picture files that are older than so many seconds, from time to time."""
    while True:
        try:
            await asyncio.to_thread(files.drop_older, time.time() - ttl)
        except OSError as error:
            log.warning("picture files whose time is over could not be removed: %s", error.strerror)
        await asyncio.sleep(max(1.0, min(ttl, LOOK_EVERY)))


def encode(pixels: imaging.Pixels, recipe: Recipe, seed: int, safety: SafetyResult | None = None) -> bytes:
    """The picture as bytes in the recipe's format, with its recipe inside."""
    return imaging.encode(pixels, recipe.format, recipe.quality, infotext.chunks(recipe, seed, safety))


def preview(pixels: Callable[[], imaging.Pixels]) -> bytes:
    """A small JPEG of what is there so far; ``pixels`` may have to wait for it."""
    return imaging.encode(pixels(), "jpeg", PREVIEW_QUALITY, {})


def keep(
    files: Files, pixels: imaging.Pixels, recipe: Recipe, job_id: str, index: int, safety: SafetyResult | None = None
) -> tuple[Image, float]:
    """Encodes and writes picture ``index`` of a job; gives it, and the seconds that it took.

    Raises:
        OSError: it could not be written.
    """
    began = time.perf_counter()
    seed = recipe.seed + index
    data = encode(pixels, recipe, seed, safety)
    name = files.name(datetime.now(UTC), recipe.model, job_id, index if recipe.count > 1 else None, recipe.format)
    files.write(name, data)
    height, width, _ = pixels.shape
    image = Image(name, seed, width, height, recipe.format, len(data), hashlib.sha256(data).hexdigest(), safety)
    return image, time.perf_counter() - began


def thumbnail(files: Files, name: str) -> bytes | None:
    """The thumbnail of a picture, made when it is first asked for; nothing where there is no such picture."""
    small, picture = thumbnail_name(name), files.find(name)
    if picture is None:
        return None
    try:
        kept = files.thumbnails.find(small)
        if kept is not None:
            return kept.read_bytes()
        data = imaging.thumbnail(picture.read_bytes())
    except FileNotFoundError:  # removed meanwhile
        return None
    with contextlib.suppress(OSError):  # another was faster, or the disk is full: it can be made again
        files.thumbnails.write(small, data)
    if files.find(name) is None:
        files.thumbnails.drop([small])
    return data
