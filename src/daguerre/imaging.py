"""Owns picture files as bytes: arrays to PNG, JPEG and WebP, and the text they carry."""

import io
import json
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray
from PIL import Image, ImageOps

from daguerre.recipe import MAX_SIDE, Format

Pixels = NDArray[np.uint8]  # [H, W, 3], red green blue

#: The text under this key is what other programs show as the picture's parameters.
PARAMETERS: Final = "parameters"

#: Pixels of an upload; more are refused before they are unpacked.
MAX_PIXELS = 16 * 1024 * 1024

#: Of a thumbnail, the longer side in pixels.
THUMBNAIL = 256
#: Of a blurred picture, the patches along its longer side.
PATCHES = 8

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_UP = 2  # filter type: a byte is stored as its difference to the byte above

# Filtered photographs are mostly noise, where a match from far away costs more bits than it saves: zlib's smallest
# window makes the noisy photograph of benchmarks/png.py 8 % smaller than its largest does, in less time.
_LEVEL = 1
_WINDOW_BITS = 9

_KEYWORD = re.compile(r"(?=.{1,79}\Z)[\x21-\x7e\xa1-\xff]+(?: [\x21-\x7e\xa1-\xff]+)*")
_TEXT_LIMIT = 1 << 20  # bytes that one compressed text may unfold to

_IMAGE_DESCRIPTION, _EXIF_IFD, _USER_COMMENT = 0x010E, 0x8769, 0x9286
_UNICODE = b"UNICODE\0"
# Bytes for the texts; a JPEG holds its whole EXIF in one segment of at most 65,533.
_EXIF_ROOM = {"jpeg": 65_000, "webp": 16 << 20}


def media_type(format: Format) -> str:  # noqa: A002 - the recipe's word
    """The media type of a format."""
    return f"image/{format}"


def encode(pixels: Pixels, format: Format, quality: int, text: Mapping[str, str]) -> bytes:  # noqa: A002
    """A picture file; ``quality`` is of JPEG and WebP.

    A PNG carries every text. The other two carry the text under ``parameters`` as their EXIF user comment and the rest
    as JSON in the image description. A JPEG has room for 65,000 bytes of both: beyond that the rest is left out, then
    the comment is cut.
    """
    if format == "png":
        return encode_png(pixels, text)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, quality=quality, exif=_exif(text, _EXIF_ROOM[format]))
    return file.getvalue()


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An uploaded PNG, JPEG or WebP as an upright RGBA picture; only the first frame of a film.

    The header is believed no further than its size, which is checked before anything is unpacked. What is larger than
    anything that is painted is made smaller, so that it does not lie in memory for nothing.

    Raises:
        ValueError: with a fixed message, for what is no such picture, is broken, or is too large.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as opened:
            is_too_large = opened.width * opened.height > max_pixels
            image = None if is_too_large else _upright(opened)
    except (OSError, SyntaxError, ValueError, TypeError, struct.error, Image.DecompressionBombError):
        # Their texts hold addresses and whatever the file says.
        raise ValueError("is not a whole PNG, JPEG or WebP picture") from None
    if image is None:
        raise ValueError(f"is larger than {max_pixels} pixels")
    return image


def thumbnail(data: bytes) -> bytes:
    """A WebP of a picture file, its longer side `THUMBNAIL` pixels at most; it says nothing of how it was made.

    Raises:
        ValueError: as `decode` does.
    """
    image = decode(data).convert("RGB")
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "WEBP", quality=80)
    return file.getvalue()


def blurred(pixels: Pixels) -> Pixels:
    """The picture as a few soft patches of colour, [H, W, 3].

    Only the means of `PATCHES` patches along the longer side are left of it: all else is gone, and cannot be computed.
    """
    height, width, _ = pixels.shape
    patch = max(height, width) / PATCHES
    few = (max(1, round(width / patch)), max(1, round(height / patch)))
    small = Image.fromarray(pixels).resize(few, Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def _upright(opened: Image.Image) -> Image.Image:
    if opened.mode in ("L", "RGB", "RGBA"):  # others cannot be resampled as they are
        opened.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    ImageOps.exif_transpose(opened, in_place=True)
    image = opened.convert("RGBA")
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return image


def on_white(image: Image.Image, size: tuple[int, int]) -> Pixels:
    """The picture in that size, [H, W, 3]; what is transparent becomes white."""
    flat = _over(image, "white").convert("RGB")
    return np.asarray(flat.resize(size, Image.Resampling.LANCZOS))


def as_mask(image: Image.Image, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The mask in that size, [H, W]: 255 is painted anew, 0 is kept."""
    grey = _over(image, "black").convert("L")
    return np.asarray(grey.resize(size, Image.Resampling.NEAREST))


def _over(image: Image.Image, colour: str) -> Image.Image:
    """What is seen of an RGBA picture before this colour; an opaque one is spared the copies."""
    is_opaque = image.getchannel("A").getextrema() == (255, 255)
    return image if is_opaque else Image.alpha_composite(Image.new("RGBA", image.size, colour), image)


def encode_png(pixels: Pixels, text: Mapping[str, str]) -> bytes:
    """A PNG file of exactly these pixels, the texts in front of them.

    Raises:
        ValueError: a key is no PNG keyword: 1 to 79 printable Latin-1 characters with single spaces between them.
    """
    height, width, _ = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB, not interlaced
    body: bytes = isal_zlib.compress(_filtered(pixels), _LEVEL, _WINDOW_BITS)
    chunks = [(b"IHDR", header), *(_text_chunk(*item) for item in text.items()), (b"IDAT", body), (b"IEND", b"")]
    return b"".join((_SIGNATURE, *(part for kind, data in chunks for part in _framed(kind, data))))


def read_text(data: bytes) -> dict[str, str]:
    """The texts of a PNG file; of two under one key the last.

    Raises:
        ValueError: the file is not a PNG, is cut short or damaged, or a text unfolds to more than 1 MiB.
    """
    try:
        return dict(_parsed(kind, body) for kind, body in _text_chunks(data))
    except (ValueError, struct.error, zlib.error):
        raise ValueError("not a whole PNG file") from None


def _filtered(pixels: Pixels) -> NDArray[np.uint8]:
    """The rows as PNG stores them: a filter type, then bytes [H, 1 + 3W]; the row above the first counts as zeros."""
    assert pixels.dtype == np.uint8, pixels.dtype
    assert pixels.ndim == 3, pixels.shape
    assert pixels.shape[2] == 3, pixels.shape
    assert pixels.size > 0, pixels.shape
    height, width, _ = pixels.shape
    rows = pixels.reshape(height, 3 * width)
    filtered = np.empty((height, 1 + 3 * width), np.uint8)
    filtered[:, 0] = _UP
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])  # modulo 256, as the filter is
    return filtered


def _framed(kind: bytes, data: bytes) -> tuple[bytes, bytes, bytes]:
    """A chunk in parts, so that the pixels are copied once, when the file is joined."""
    checksum = isal_zlib.crc32(data, isal_zlib.crc32(kind))
    return struct.pack(">I4s", len(data), kind), data, struct.pack(">I", checksum)


def _text_chunk(key: str, value: str) -> tuple[bytes, bytes]:
    """A tEXt chunk where Latin-1 can hold the value, else an iTXt chunk."""
    if not _KEYWORD.fullmatch(key):
        raise ValueError("a PNG keyword is 1 to 79 printable Latin-1 characters, with single spaces between them")
    keyword = key.encode("latin-1")
    value = value.replace("\0", "\ufffd")  # NUL is the one character that neither kind may hold
    try:
        return b"tEXt", keyword + b"\0" + value.encode("latin-1")
    except UnicodeEncodeError:
        # Not compressed, no language, no translated keyword. A lone surrogate has no UTF-8 and becomes a question mark.
        return b"iTXt", keyword + b"\0\0\0\0\0" + value.encode("utf-8", "replace")


def _text_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The chunks of text of a PNG file; a ValueError or struct.error where a chunk is damaged or the end missing."""
    if not data.startswith(_SIGNATURE):
        raise ValueError
    view, at, kind = memoryview(data), len(_SIGNATURE), b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", view, at)
        body = view[at + 8 : at + 8 + length]
        (checksum,) = struct.unpack_from(">I", view, at + 8 + length)
        if checksum != isal_zlib.crc32(body, isal_zlib.crc32(kind)):
            raise ValueError
        if kind in _PARSERS:
            yield kind, bytes(body)
        at += 12 + length


def _parsed(kind: bytes, body: bytes) -> tuple[str, str]:
    keyword, rest = body.split(b"\0", 1)
    return keyword.decode("latin-1"), _PARSERS[kind](rest)


def _plain(rest: bytes) -> str:
    return rest.decode("latin-1")


def _compressed(rest: bytes) -> str:
    return _unfolded(rest[1:]).decode("latin-1")  # one byte says how: there is one way


def _international(rest: bytes) -> str:
    is_compressed = rest[:1] == b"\1"
    _language, _translated, value = rest[2:].split(b"\0", 2)
    return (_unfolded(value) if is_compressed else value).decode("utf-8")


_PARSERS = {b"tEXt": _plain, b"zTXt": _compressed, b"iTXt": _international}


def _unfolded(data: bytes) -> bytes:
    stream = zlib.decompressobj()
    value = stream.decompress(data, _TEXT_LIMIT)
    if not stream.eof:
        raise ValueError
    return value


def _exif(text: Mapping[str, str], room: int) -> Image.Exif:
    """The texts as AUTOMATIC1111 and its readers have them, within so many bytes."""
    exif = Image.Exif()
    rest = dict(text)
    comment = rest.pop(PARAMETERS, None)
    if comment is not None:
        cut = comment.encode("utf-16-be", "replace")[:room]
        whole = cut.decode("utf-16-be", "ignore").encode("utf-16-be")  # never half a character
        exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = _UNICODE + whole
        room -= len(whole)
    description = json.dumps(rest)  # in ASCII, which is all that EXIF takes here
    if rest and len(description) <= room:
        exif[_IMAGE_DESCRIPTION] = description
    return exif
