"""Pictures keep their pixels and their texts."""

import io
import json
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, PngImagePlugin

from daguerre.imaging import PARAMETERS, PATCHES, Pixels, blurred, encode, encode_png, media_type, read_text
from daguerre.recipe import Format

SHAPES = [(1, 1), (1, 2048), (2048, 1), (3, 5), (64, 64), (1000, 700)]
TEXTS = [
    "a cat, 50% grey",
    "",
    "café ß ÿ",
    "line\nline\r\nline\rline",
    "\x01\x07\x1b[31m\x7f\x85",
    "日本語のプロンプト",
    "🐈‍⬛ 👩🏽‍🚀",
    "\u202ereversed\u2028\ufeff",
    "x" * 100_000,
    "🐈" * 25_000,
]


def pixels_of(kind: str, height: int, width: int) -> Pixels:
    """A picture of one kind of content."""
    random = np.random.default_rng(height * 4099 + width)
    match kind:
        case "noise":
            return random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        case "flat":
            return np.full((height, width, 3), (255, 0, 127), np.uint8)
        case "ramp":
            return (np.arange(height * width * 3) // 7 % 256).astype(np.uint8).reshape(height, width, 3)
        case _:
            grey = random.normal(128, 2, (height, width, 3)).clip(0, 255)
            return grey.astype(np.uint8)


def decoded(data: bytes) -> Pixels:
    """What Pillow reads, mode and all."""
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "RGB"
        return np.asarray(image)


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Kind and body of every chunk."""
    found, at = [], 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def texts_by_pillow(data: bytes) -> dict[str, str]:
    """The texts as Pillow reads them."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        assert isinstance(image, PngImagePlugin.PngImageFile)
        return {key: str(value) for key, value in image.text.items()}


@pytest.mark.parametrize("kind", ["noise", "flat", "ramp", "soft"])
@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_png_is_bit_exact(kind: str, height: int, width: int) -> None:
    """Pillow reads back every byte that was put in."""
    pixels = pixels_of(kind, height, width)
    assert np.array_equal(decoded(encode_png(pixels, {})), pixels)


@settings(deadline=None, max_examples=60)
@given(arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3))))
def test_any_array_is_bit_exact(pixels: Pixels) -> None:
    """No array of bytes comes out different."""
    assert np.array_equal(decoded(encode_png(pixels, {})), pixels)


@pytest.mark.parametrize("view", ["mirrored", "transposed", "every second", "upside down", "of four channels"])
def test_png_of_a_view(view: str) -> None:
    """Memory that is not contiguous is read in the picture's order, and stays as it is."""
    pixels = pixels_of("noise", 90, 60)
    strided = {
        "mirrored": pixels[:, ::-1],
        "transposed": pixels.swapaxes(0, 1),
        "every second": pixels[::2, ::2],
        "upside down": pixels[::-1],
        "of four channels": np.dstack((pixels, pixels[..., :1]))[..., :3],
    }[view]
    assert not strided.flags.c_contiguous
    before = strided.copy()
    assert np.array_equal(decoded(encode_png(strided, {})), before)
    assert np.array_equal(strided, before)


def test_png_of_read_only_pixels() -> None:
    """The encoder does not write to its input."""
    pixels = pixels_of("ramp", 16, 16)
    pixels.flags.writeable = False
    assert np.array_equal(decoded(encode_png(pixels, {})), pixels)


@pytest.mark.parametrize("kind", ["noise", "ramp", "soft"])
def test_png_keeps_to_its_window(kind: str) -> None:
    """No match reaches farther back than the 512 bytes that the stream announces: small decoders keep no more."""
    pixels = pixels_of(kind, 200, 300)
    ((_, body),) = [chunk for chunk in chunks(encode_png(pixels, {})) if chunk[0] == b"IDAT"]
    assert body[0] >> 4 == 1  # 2 ** (1 + 8) bytes
    stream = zlib.decompressobj(9)
    size = 0
    while not stream.eof:  # in small pieces, so that zlib has nothing but the window to look back into
        size += len(stream.decompress(body, 64))
        body = stream.unconsumed_tail
    assert size == 200 * (1 + 300 * 3)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 0, 3), np.uint8),
    ],
    ids=["grey", "four channels", "floats", "no rows", "no columns"],
)
def test_what_is_no_picture_is_refused(pixels: Pixels) -> None:
    """Only bytes of three channels make a PNG."""
    with pytest.raises((AssertionError, ValueError)):
        encode_png(pixels, {})


@pytest.mark.parametrize("value", TEXTS, ids=ascii)
def test_text_is_read_back(value: str) -> None:
    """Pillow and our reader find the text as it was written."""
    data = encode_png(pixels_of("flat", 4, 4), {PARAMETERS: value, "daguerre": "{}"})
    assert texts_by_pillow(data) == read_text(data) == {PARAMETERS: value, "daguerre": "{}"}


@settings(deadline=None, max_examples=150)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=200))
def test_any_text_is_read_back(value: str) -> None:
    """No text that Unicode has comes out different."""
    data = encode_png(pixels_of("flat", 1, 1), {PARAMETERS: value})
    assert texts_by_pillow(data) == read_text(data) == {PARAMETERS: value}


@pytest.mark.parametrize(("value", "kind"), [("café", b"tEXt"), ("日本", b"iTXt"), ("a\0b", b"iTXt")])
def test_kind_of_text_chunk(value: str, kind: bytes) -> None:
    """Latin-1 goes where every reader looks; the rest goes where UTF-8 is allowed."""
    found = [kind for kind, _ in chunks(encode_png(pixels_of("flat", 1, 1), {PARAMETERS: value}))]
    assert found == [b"IHDR", kind, b"IDAT", b"IEND"]


@pytest.mark.parametrize(
    ("value", "read"), [("a\0b", "a\ufffdb"), ("\0", "\ufffd"), ("half \ud83d", "half ?"), ("\udc00\0", "?\ufffd")]
)
def test_characters_that_no_png_holds(value: str, read: str) -> None:
    """NUL and lone surrogates are replaced, and the file stays whole."""
    data = encode_png(pixels_of("flat", 1, 1), {PARAMETERS: value})
    assert texts_by_pillow(data) == read_text(data) == {PARAMETERS: read}


@pytest.mark.parametrize("key", ["", "k" * 80, "a\0b", " a", "a ", "a  b", "日", "a\n", "\n", "\xa0"], ids=ascii)
def test_keys_that_are_no_keywords(key: str) -> None:
    """A key that would break the file is refused before there is one."""
    with pytest.raises(ValueError, match=r"^a PNG keyword is 1 to 79"):
        encode_png(pixels_of("flat", 1, 1), {key: "value"})


@pytest.mark.parametrize("key", ["k", "k" * 79, "Creation Time", "café"])
def test_keys_that_are_keywords(key: str) -> None:
    """What the standard allows is read back by both readers."""
    data = encode_png(pixels_of("flat", 1, 1), {key: "value"})
    assert texts_by_pillow(data) == read_text(data) == {key: "value"}


def test_text_of_other_programs() -> None:
    """Compressed texts and those with a language are read."""
    info = PngImagePlugin.PngInfo()
    info.add_text("plain", "grüße")
    info.add_text("folded", "x" * 5000, zip=True)
    info.add_itxt("long", "猫" * 5000, lang="ja", tkey="長い", zip=True)
    file = io.BytesIO()
    Image.new("RGB", (2, 2)).save(file, "PNG", pnginfo=info)
    assert read_text(file.getvalue()) == {"plain": "grüße", "folded": "x" * 5000, "long": "猫" * 5000}


def test_damaged_files() -> None:
    """A file cut anywhere, or with any bit wrong, is refused in the same words."""
    data = encode_png(pixels_of("noise", 3, 5), {PARAMETERS: "a cat", "more": "猫"})
    broken = [data[:end] for end in range(len(data))]
    broken += [data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :] for at in range(len(data))]
    broken += [b"", b"GIF89a", b"\0" * 100, data[:8] + b"\xff" * 100]
    for file in broken:
        with pytest.raises(ValueError, match=r"^not a whole PNG file$"):
            read_text(file)


def damaged(kind: bytes, body: bytes) -> bytes:
    """A PNG file whose checksums are right and whose text is not."""
    framed = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return b"\x89PNG\r\n\x1a\n" + framed + struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (b"tEXt", b"no separator"),
        (b"zTXt", b"key\0\0not deflated"),
        (b"zTXt", b"key\0\0" + zlib.compress(b"x" * 100)[:-6]),
        (b"zTXt", b"key\0\0" + zlib.compress(b"x" * (2 << 20))),
        (b"iTXt", b"key\0"),
        (b"iTXt", b"key\0\0\0\0\0\xff\xfe"),
        (b"iTXt", b"key\0\1\0\0\0" + zlib.compress(b"x" * (2 << 20))),
    ],
    ids=["separator", "deflate", "cut", "bomb", "short", "utf-8", "international bomb"],
)
def test_damaged_texts(kind: bytes, body: bytes) -> None:
    """A text that cannot be read, or would fill the memory, is refused in the same words."""
    with pytest.raises(ValueError, match=r"^not a whole PNG file$"):
        read_text(damaged(kind, body))


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
@pytest.mark.parametrize("value", TEXTS[:-2], ids=ascii)
def test_comment_of_jpeg_and_webp(kind: Format, value: str) -> None:
    """The picture is close to what it was, and the texts are where other programs look for them."""
    pixels = pixels_of("flat", 40, 30)
    data = encode(pixels, kind, 90, {PARAMETERS: value, "daguerre": '{"seed": "猫\0"}'})
    with Image.open(io.BytesIO(data)) as image:
        assert image.get_format_mimetype() == media_type(kind)
        assert image.size == (30, 40)
        assert np.abs(np.asarray(image.convert("RGB")).astype(int) - pixels).max() < 12
        exif = image.getexif()
    comment = exif.get_ifd(0x8769)[0x9286]
    assert comment[:8] == b"UNICODE\0"
    assert comment[8:].decode("utf-16-be") == value
    assert json.loads(exif[0x010E]) == {"daguerre": '{"seed": "猫\0"}'}


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_no_text_at_all(kind: Format) -> None:
    """Without texts there is no EXIF."""
    data = encode(pixels_of("ramp", 8, 8), kind, 80, {})
    with Image.open(io.BytesIO(data)) as image:
        assert not image.getexif()


@pytest.mark.parametrize("value", TEXTS[-2:], ids=["letters", "emoji"])
def test_comment_longer_than_a_jpeg_holds(value: str) -> None:
    """The comment is cut between two characters; the picture is not lost."""
    data = encode(pixels_of("flat", 8, 8), "jpeg", 90, {PARAMETERS: "." + value, "daguerre": "{}"})
    with Image.open(io.BytesIO(data)) as image:
        exif = image.getexif()
    comment = exif.get_ifd(0x8769)[0x9286][8:].decode("utf-16-be")
    assert len(comment.encode("utf-16-be")) > 64_990
    assert ("." + value).startswith(comment)


def test_rest_that_finds_no_room() -> None:
    """The texts beside the parameters are left out of a JPEG before the parameters are cut."""
    data = encode(pixels_of("flat", 8, 8), "jpeg", 90, {PARAMETERS: "a cat", "daguerre": "x" * 70_000})
    with Image.open(io.BytesIO(data)) as image:
        exif = image.getexif()
    assert 0x010E not in exif
    assert exif.get_ifd(0x8769)[0x9286][8:].decode("utf-16-be") == "a cat"


def test_webp_holds_long_comments_whole() -> None:
    """A WebP has no such limit."""
    data = encode(pixels_of("flat", 8, 8), "webp", 90, {PARAMETERS: "🐈" * 50_000})
    with Image.open(io.BytesIO(data)) as image:
        assert image.getexif().get_ifd(0x8769)[0x9286][8:].decode("utf-16-be") == "🐈" * 50_000


def test_lone_surrogates_in_comments() -> None:
    """What UTF-16 cannot hold is replaced."""
    data = encode(pixels_of("flat", 8, 8), "jpeg", 90, {PARAMETERS: "half \ud83d", "daguerre": "\udc00"})
    with Image.open(io.BytesIO(data)) as image:
        assert image.getexif().get_ifd(0x8769)[0x9286][8:].decode("utf-16-be") == "half ?"


def test_quality_is_heeded() -> None:
    """More quality is more bytes, in both formats that have it; a PNG has none."""
    pixels = pixels_of("soft", 64, 64)
    kinds: tuple[Format, ...] = ("jpeg", "webp")
    for kind in kinds:
        low, high = (encode(pixels, kind, quality, {}) for quality in (10, 95))
        assert len(low) < len(high)
    assert encode(pixels, "png", 1, {}) == encode(pixels, "png", 100, {}) == encode_png(pixels, {})


def test_pillow_finds_nothing_to_complain_about() -> None:
    """Pillow verifies the file without a warning."""
    with warnings.catch_warnings(), Image.open(io.BytesIO(encode_png(pixels_of("soft", 9, 9), {"a": "b"}))) as image:
        warnings.simplefilter("error")
        image.verify()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_blurred_picture_keeps_its_size(shape: tuple[int, int]) -> None:
    """And hardly anything else."""
    assert blurred(pixels_of("noise", *shape)).shape == (*shape, 3)


def test_a_blur_cannot_be_undone() -> None:
    """Pictures that differ in everything but the means of a few patches are the same picture then."""
    side = 8 * PATCHES
    picture = pixels_of("ramp", side, side)
    patches = picture.reshape(PATCHES, 8, PATCHES, 8, 3).transpose(0, 2, 1, 3, 4).reshape(PATCHES**2, 64, 3)
    mixed = np.random.default_rng(1).permuted(patches, axis=1)
    other = mixed.reshape(PATCHES, PATCHES, 8, 8, 3).transpose(0, 2, 1, 3, 4).reshape(side, side, 3)
    assert (other != picture).mean() > 0.9
    # Means are rounded once along rows, and once along columns.
    assert np.abs(blurred(other).astype(int) - blurred(picture)).max() <= 2
