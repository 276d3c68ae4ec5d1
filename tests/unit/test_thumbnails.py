"""Thumbnails: small, silent of how they were made, made once, and gone with their picture."""

import io
import threading
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from daguerre import imaging
from daguerre.job import new_id
from daguerre.jobs.pictures import thumbnail
from daguerre.recipe import Format
from daguerre.store.files import Files, thumbnail_name

NOW = datetime(2026, 11, 21, 3, 15, 22, tzinfo=UTC)


def _picture(width: int, height: int, format: Format = "png") -> bytes:  # noqa: A002 - the recipe's word
    ramp = np.linspace(0, 255, width * height * 3).reshape(height, width, 3).astype(np.uint8)
    return imaging.encode(ramp, format, 90, {"parameters": "canary of the prompt", "daguerre": '{"canary": 1}'})


def _kept(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / ".thumbnails").glob("*"))


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
@pytest.mark.parametrize(("size", "small"), [((1024, 512), (256, 128)), ((384, 2048), (48, 256)), ((64, 64), (64, 64))])
def test_it_is_the_picture_small(format: Format, size: tuple[int, int], small: tuple[int, int]) -> None:  # noqa: A002
    """In its shape and colours, never larger, without a word of the recipe."""
    data = _picture(*size, format)
    made = imaging.thumbnail(data)
    assert b"canary" not in made
    assert b"EXIF" not in made
    with Image.open(io.BytesIO(made)) as image, Image.open(io.BytesIO(data)) as picture:
        assert (image.format, image.size) == ("WEBP", small)
        difference = np.asarray(image, float) - np.asarray(picture.convert("RGB").resize(small), float)
    assert abs(difference).mean() < 4


def test_it_is_made_once(tmp_path: Path) -> None:
    """Of many who ask at the same time each gets it, and one file is there."""
    files, together, got = Files(tmp_path), threading.Barrier(8), []
    files.write("a.png", _picture(512, 512))

    def ask() -> None:
        together.wait()
        got.append(thumbnail(files, "a.png"))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 8
    assert len(set(got)) == 1
    assert _kept(tmp_path) == ["a.webp"]
    assert (tmp_path / ".thumbnails" / "a.webp").read_bytes() == got[0] == thumbnail(files, "a.png")


@pytest.mark.parametrize("name", ["missing.png", "../a.png", ".thumbnails", ".thumbnails/a.webp", "a.webp", ""])
def test_of_what_is_no_picture_there_is_none(tmp_path: Path, name: str) -> None:
    """Not even where there is a thumbnail of that name."""
    files = Files(tmp_path)
    files.write("a.png", _picture(64, 64))
    thumbnail(files, "a.png")
    assert thumbnail(files, name) is None
    assert files.find(name) is None


def test_it_goes_with_its_picture(tmp_path: Path) -> None:
    """Whether the picture is dropped by its name or by its job; those of others stay."""
    files, ids = Files(tmp_path), [new_id() for _ in range(3)]
    names = [files.name(NOW, "demo-xl", job_id) for job_id in ids]
    for name in names:
        files.write(name, _picture(64, 64))
        thumbnail(files, name)
    files.drop([names[0]])
    files.drop_of({ids[1]: NOW})
    assert _kept(tmp_path) == [thumbnail_name(names[2])]
    files.drop(names)  # also those that are not there any more
    assert _kept(tmp_path) == []


def test_a_start_removes_what_is_nobodys(tmp_path: Path) -> None:
    """Thumbnails whose pictures somebody removed, and half ones; nothing that is not ours."""
    files, ids = Files(tmp_path), [new_id() for _ in range(2)]
    names = [files.name(NOW, "demo-xl", job_id) for job_id in ids]
    for name in names:
        files.write(name, _picture(64, 64))
        thumbnail(files, name)
    (tmp_path / names[0]).unlink()
    for name in ("holiday.webp", ".unfinished-b.webp"):
        (tmp_path / ".thumbnails" / name).write_bytes(b"x")
    Files(tmp_path).sweep()
    assert _kept(tmp_path) == [thumbnail_name(names[1]), "holiday.webp"]


def test_none_is_left_of_a_picture_that_is_removed_meanwhile(tmp_path: Path) -> None:
    """Whichever of the two is first."""
    files = Files(tmp_path)
    data = _picture(64, 64)
    for _ in range(100):
        files.write("a.png", data)
        asking = threading.Thread(target=thumbnail, args=(files, "a.png"))
        dropping = threading.Thread(target=files.drop, args=(["a.png"],))
        asking.start()
        dropping.start()
        asking.join()
        dropping.join()
        assert _kept(tmp_path) == []


def test_a_full_disk_costs_the_file_not_the_thumbnail(tmp_path: Path) -> None:
    """It is given all the same, and made again the next time."""
    files = Files(tmp_path)
    files.write("a.png", _picture(64, 64))
    (tmp_path / ".thumbnails").mkdir()
    (tmp_path / ".thumbnails" / ".unfinished-a.webp").mkdir()  # so that nothing can be written there
    made = thumbnail(files, "a.png")
    assert made is not None
    assert made == thumbnail(files, "a.png")
    assert files.thumbnails.find("a.webp") is None
