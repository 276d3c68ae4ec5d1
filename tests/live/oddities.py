"""What breaks servers: numbers, texts, names, bodies, headers and pictures."""

import gzip
import io
import json
import struct
import zlib
from typing import Any

from PIL import Image, PngImagePlugin

#: A recipe that is painted in no time.
SMALL: dict[str, Any] = {"prompt": "a lake", "width": 64, "height": 64, "steps": 1, "guidance_scale": 1}

PAINTING = ["/generate", "/v1/txt2img", "/v1/jobs", "/generate/queue", "/v1/images/generations", "/sdapi/v1/txt2img"]
FROM_PICTURES = ["/generate", "/v1/img2img", "/v1/inpaint", "/v1/jobs", "/sdapi/v1/img2img", "/sdapi/v1/png-info"]
FORMS = ["/v1/images/edits", "/v1/images/variations"]
NAMED = [
    "/outputs/{}",
    "/v1/jobs/{}",
    "/v1/jobs/{}/result",
    "/v1/jobs/{}/events",
    "/result/{}",
    "/image/{}",
    "/status/{}",
    "/queue/status/{}",
    "/v1/models/{}",
    "/docs/{}",
    "/{}",
]
OTHERS = [
    *(f"/v1/{name}" for name in ("models/load", "models/unload", "loras/load", "loras/unload")),
    *(f"/sdapi/v1/{name}" for name in ("options", "interrupt", "skip", "refresh-loras", "unload-checkpoint")),
]
LISTS = ["/v1/models", "/v1/loras", "/v1/jobs", "/health", "/readyz", "/sdapi/v1/progress", "/queue/status", "/docs"]

NUMBERS = [
    *("NaN", "Infinity", "-Infinity", "1e400", "-1e400", "-0.0", "1e-320", "true", "20.0", "1.5", '"7"', "null", "[]"),
    *("{}", "-1", "0", "1", "2", "9", "150", "151", "64", "72", "2048", "2049", str(2**31), str(2**53), str(2**63 - 1)),
    *(str(2**63), str(2**64), str(-(2**63) - 1), "9" * 5000, "0." + "9" * 3000, "1E5", "-", "01", "+1", "0x10", "١"),
]
NUMERIC = [
    *(
        "seed",
        "steps",
        "num_inference_steps",
        "width",
        "height",
        "guidance_scale",
        "count",
        "n",
        "num_images",
        "quality",
    ),
    *("strength", "clip_skip", "preview_every", "cfg_scale", "batch_size", "n_iter", "denoising_strength", "metadata"),
    *("lora_scale", "output_compression", "reproducible", "partial_images", "sampler_index"),
]
TEXTS = [
    *(
        "",
        "\0",
        "a\r\nX-Evil: 1",
        "\x1b[31mred",
        "\u202egnp",
        "🌅" * 500,
        "x" * 10_001,
        "x" * 200_000,
        "../../etc/passwd",
    ),
    *(
        "%00",
        "<script>alert(1)</script>",
        "'; DROP TABLE jobs; --",
        "{prompt}",
        "{0.__class__}",
        "%s%n",
        "((((",
        "))))",
    ),
    *(
        "(a:1e400)",
        "(a:nan)",
        "[a:b:99999999999]",
        "<lora:x:nan>",
        "<lora::>",
        "a AND b",
        "(" * 5000,
        "word" + "+" * 400,
    ),
    *("BREAK " * 200, "\ufeff", "\u0000\uffff", "e\u0301" * 900, "a\\", "file:///etc/passwd", "http://127.0.0.1:1/"),
]
TEXTUAL = [
    *(
        "prompt",
        "negative_prompt",
        "model",
        "style",
        "scheduler",
        "sampler",
        "prompt_syntax",
        "format",
        "resolution",
        "size",
    ),
    *(
        "image",
        "mask",
        "init_images",
        "lora_path",
        "loras",
        "sampler_name",
        "response_format",
        "output_format",
        "background",
    ),
    *("model_id", "name", "override_settings", "sd_model_checkpoint", "user", "stream", "metadata", "webhook"),
]
NAMES = [
    *(
        "..",
        "%2e%2e",
        "..%2f..%2fetc%2fpasswd",
        "..%5c..%5cwindows",
        "a%00b",
        "x" * 300,
        "C:",
        "CON",
        ".",
        "%",
        "%zz",
        "%ff",
    ),
    *(
        "%252e%252e",
        "~root",
        "-",
        "\u00e9".encode().hex(),
        "%F0%9F%8C%85",
        "daguerre.toml",
        ".unfinished-x.png",
        "x" * 7000,
    ),
    *(
        "00000000-0000-7000-8000-000000000000",
        "a;b",
        "a?b",
        "a#b",
        "a//b",
        "%0d%0aX-Evil:1",
        "'",
        "daguerre.db",
        "load",
    ),
]
QUERIES = [
    *("", "", "", "?index=9", "?index=-1", "?index=%00", "?since=x", "?limit=1&limit=x", "?" + "a=b&" * 2000, "?%"),
    *("?status=queued", "?status=x", "?limit=0", "?limit=201", "?limit=1", "?cursor=x", "?cursor=%00", "?limit=²"),
]
JSON_BODIES = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"{}",
    b'{"prompt": "a", "prompt": "b"}',
    b'{"prompt": "\xff"}',
    b'\xef\xbb\xbf{"prompt": "a"}',
    b'{"prompt": "\\ud800"}',
    b'{"\\ud800": 1, "prompt": "a"}',
    b'{"prompt": "a", "metadata": {"\\udfff": "\\ud800"}}',
    b'{"prompt": "a", "loras": [{"name": "\\ud800"}]}',
    b"[" * 100_000 + b"]" * 100_000,
    b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    b'{"prompt": "a", "metadata": ' + b'{"a":' * 900 + b"1" + b"}" * 901,
    b'{"prompt": "a", "metadata": ' + b"[" * 900 + b"]" * 900 + b"}",
    json.dumps({f"k{at}": at for at in range(20_000)}).encode(),
    json.dumps({"prompt": "a", "loras": [{"name": "x"}] * 5000}).encode(),
    '{"prompt": "a"}'.encode("utf-16"),
    gzip.compress(b'{"prompt": "a"}'),
    b'{"prompt": "a"}\0',
    b"/*a*/{}",
]
HEADERS: dict[str, list[str]] = {
    "accept": [
        "*/*",
        "image/png",
        "application/json",
        "text/html",
        "image/*;q=nan",
        ";",
        "," * 500,
        "a/b;q=1e400",
        "é",
    ],
    "content-type": [
        "text/plain",
        "application/json; charset=utf-16",
        "",
        ";",
        "multipart/form-data",
        "application/JSON",
    ],
    "content-encoding": ["gzip", "br", "identity"],
    "range": [
        "bytes=0-9",
        "bytes=-1",
        "bytes=9-1",
        "bytes=" + "0-0," * 1500 + "1-1",
        "lines=1",
        "bytes=",
        "bytes=-" + "9" * 900,
    ],
    "if-range": ["x", "Sat, 21 Nov 2026 08:00:00 GMT", '"x"'],
    "if-modified-since": ["x", "Sat, 99 Nov 2026 08:00:00 GMT"],
    "prefer": ["respond-async", "wait=1", ";;;", "respond-async;x=1, respond-async"],
    "idempotency-key": ["k", "x" * 256, "a b", "é", "fuzz-1"],
    "last-event-id": ["succeeded-1-1", "\t", "é", "x" * 3000],
    "x-request-id": ["a.b", "x" * 65, "é", "a b"],
    "x-stainless-retry-count": ["0", "1", "-1", "x", "9" * 400],
    "x-forwarded-for": ["1.2.3.4", "é", "::1, x"],
    "host": ["localhost", "127.0.0.1", "evil.example", "localhost.", "[::1]", ":", "x/#@localhost"],
    "origin": ["null", "http://evil.example"],
    "authorization": ["", "Bearer é", "Basic !!!", "Bearer " + "x" * 5000],
    "expect": ["100-continue", "x"],
    "cookie": ["a=b; c", "é"],
}


def _file(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I4s", len(data), kind) + data + struct.pack(">I", zlib.crc32(kind + data))


def _bomb(width: int, height: int) -> bytes:
    """A PNG that claims this size, whose pixels are all zero."""
    rows = zlib.compress(b"\0" * min(2_000_000, height * (width + 1)), 9)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def _pictures() -> list[bytes]:
    colours = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    texts = PngImagePlugin.PngInfo()
    texts.add_text("parameters", "a lake\nNegative prompt: x\nSteps: 9, Sampler: Euler, Size: 64x64, Seed: x")
    texts.add_text("huge", "x" * 900_000, zip=True)
    turned = Image.Exif()
    turned[0x0112] = 6
    good = [
        _file(colours, "PNG"),
        _file(colours, "JPEG"),
        _file(colours, "WEBP"),
        _file(colours, "JPEG", exif=turned),
        _file(colours, "JPEG", progressive=True),
        _file(colours.convert("CMYK"), "JPEG"),
        _file(colours.convert("L"), "PNG"),
        _file(colours.convert("P"), "PNG", transparency=3),
        _file(colours.convert("I;16"), "PNG"),
        _file(colours.convert("1"), "PNG"),
        _file(colours.convert("RGBA"), "PNG", pnginfo=texts),
        _file(Image.new("RGBA", (64, 64)), "PNG"),
        _file(colours, "PNG", save_all=True, append_images=[colours.rotate(at) for at in range(40)]),
        _file(colours, "WEBP", save_all=True, append_images=[colours.rotate(at) for at in range(20)]),
        _file(colours, "PNG", icc_profile=b"\0" * 300_000),
        _file(Image.new("L", (1, 1)), "PNG"),
        _file(Image.new("L", (1, 4000)), "PNG"),
        _file(Image.new("L", (65_000, 1)), "JPEG"),
        _file(Image.new("L", (4096, 4096)), "PNG"),
    ]
    bad = [
        _bomb(13_000, 13_000),
        _bomb(2**31 - 1, 2**31 - 1),
        _bomb(0, 0),
        _bomb(4000, 4000),
        _file(colours, "GIF"),
        _file(colours, "BMP"),
        _file(colours, "TIFF"),
        _file(colours, "ICO"),
        b"",
        b"\x89PNG\r\n\x1a\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        good[0] + b"<script>",
        b"GIF89a" + good[0],
    ]
    return good + bad


PICTURES = _pictures()
