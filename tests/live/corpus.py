"""What breaks servers, as requests without end: paths, numbers, JSON, base64, pictures, headers, forms, and real ones."""

import base64
import gzip
import io
import json
import random
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class Wish:
    """A request to be made."""

    method: str
    path: str
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class Corpus:
    """Requests by chance, always the same for the same seed; names that the server gave out are asked for again."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self.given = deque([*NAMES], maxlen=60)
        self._kinds: list[Callable[[], Wish]] = [
            *(self._number, self._text, self._text, self._json, self._picture, self._picture, self._form),
            *(self._path, self._path, self._method, self._other, self._list, self._noise, self._recipe),
        ]

    def __iter__(self) -> Iterator[Wish]:
        while True:
            yield self._with_headers(self._chance.choice(self._kinds)())

    def _with_headers(self, wish: Wish) -> Wish:
        """A third of the requests with a header or two that are odd."""
        if self._chance.random() > 0.33:
            return wish
        names = self._chance.sample(list(HEADERS), self._chance.randint(1, 2))
        odd = {name: self._chance.choice(HEADERS[name]) for name in names}
        return Wish(wish.method, wish.path, wish.headers | odd, wish.body)

    def _posted(self, path: str, body: bytes) -> Wish:
        return Wish("POST", path, {"content-type": "application/json"}, body)

    def _fields(self, literals: dict[str, str], path: str) -> Wish:
        """A recipe with these fields, given as JSON is written, since Python cannot say all that."""
        known = {name: json.dumps(value) for name, value in SMALL.items()} | literals
        text = ", ".join(f"{json.dumps(name)}: {value}" for name, value in known.items())
        return self._posted(path, f"{{{text}}}".encode("utf-8", "surrogatepass"))

    def _number(self) -> Wish:
        names = self._chance.sample(NUMERIC, self._chance.randint(1, 2))
        literals = {name: self._chance.choice(NUMBERS) for name in names}
        # What is in bounds takes its time.
        slow = {"steps": "150", "num_inference_steps": "150"}
        literals = {name: "2" if value == slow.get(name) else value for name, value in literals.items()}
        return self._fields(literals, self._chance.choice(PAINTING))

    def _text(self) -> Wish:
        names = self._chance.sample(TEXTUAL, self._chance.randint(1, 2))
        literals = {name: json.dumps(self._chance.choice(TEXTS)) for name in names}
        if self._chance.random() < 0.3:
            literals |= {"prompt_syntax": self._chance.choice(['"a1111"', '"compel"', '"plain"'])}
        return self._fields(literals, self._chance.choice(PAINTING))

    def _recipe(self) -> Wish:
        """One that is painted."""
        path = self._chance.choice(PAINTING)
        own = {"seed": str(self._chance.randrange(99)), "format": self._chance.choice(['"png"', '"jpeg"', '"webp"'])}
        return self._fields(own, path)

    def _json(self) -> Wish:
        return self._posted(self._chance.choice(PAINTING + OTHERS), self._chance.choice(JSON_BODIES))

    def _data(self) -> bytes:
        """A picture, whole or broken."""
        data = self._chance.choice(PICTURES)
        broken = self._chance.random()
        if broken < 0.3 or not data:
            return data
        if broken < 0.5:
            return data[: self._chance.randrange(len(data))]
        changed = bytearray(data[:200_000])
        for _ in range(self._chance.randint(1, 12)):
            changed[self._chance.randrange(len(changed))] = self._chance.randrange(256)
        return bytes(changed)

    def _picture(self) -> Wish:
        text = base64.b64encode(self._data()).decode()
        odd = self._chance.random()
        if odd < 0.1:
            text = f"data:image/png;base64,{text}"
        elif odd < 0.2:
            text = self._chance.choice(
                [text[:-1], text + "=", text + "\n", " " + text, "data:," + text, text[:50] + "é"]
            )
        path = self._chance.choice(FROM_PICTURES)
        fields: dict[str, Any] = {
            "prompt": "a lake",
            "steps": 2,
            "strength": 0.6,
            "width": 64,
            "height": 64,
            "image": text,
        }
        if "sdapi" in path:
            fields = {**fields, "init_images": [text], "denoising_strength": 0.6}
        if self._chance.random() < 0.4:
            fields["mask"] = base64.b64encode(self._data()).decode()
        return self._posted(path, json.dumps(fields).encode())

    def _form(self) -> Wish:
        texts = {
            "prompt": "a lake",
            "size": "64x64",
            "steps": "2",
            self._chance.choice(TEXTUAL): self._chance.choice(TEXTS),
        }
        name = self._chance.choice(["image", "image", "image[]", "mask", "x"])
        parts = [(f'name="{key}"', value.encode()) for key, value in texts.items()]
        parts += [(f'name="{name}"; filename="{self._chance.choice(NAMES)}"', self._data())]
        body = b"".join(
            b"--b\r\nContent-Disposition: form-data; " + head.encode() + b"\r\n\r\n" + data + b"\r\n"
            for head, data in parts
        )
        end = self._chance.choice([b"--b--\r\n", b"--b--\r\n", b"--b", b"", b"--b\r\n\r\n--b--"])
        kind = self._chance.choice(
            ["multipart/form-data; boundary=b"] * 4
            + ["multipart/form-data", "multipart/form-data; boundary=" + "x" * 80]
        )
        return Wish("POST", self._chance.choice(FORMS), {"content-type": kind}, body + end)

    def _path(self) -> Wish:
        path = self._chance.choice(NAMED).format(self._chance.choice(self.given))
        queries = [
            "",
            "",
            "?index=9",
            "?index=-1",
            "?index=%00",
            "?since=x",
            "?limit=1&limit=x",
            "?" + "a=b&" * 2000,
            "?%",
        ]
        method = self._chance.choice(["GET", "GET", "GET", "HEAD", "DELETE"])
        return Wish(method, path + self._chance.choice(queries))

    def _method(self) -> Wish:
        method = self._chance.choice(["PUT", "PATCH", "OPTIONS", "TRACE", "HEAD", "DELETE", "GET", "POST", "BREW"])
        path = self._chance.choice(PAINTING + FORMS + OTHERS + LISTS)
        return Wish(method, path)

    def _other(self) -> Wish:
        name = self._chance.choice(["model_id", "model", "name", "sd_model_checkpoint", "image", "x"])
        value = self._chance.choice([*map(json.dumps, TEXTS), *NUMBERS, '"demo-xl"', '"demo-xl [abc]"', '"sdxl-base"'])
        return self._posted(self._chance.choice(OTHERS), f'{{"{name}": {value}}}'.encode("utf-8", "surrogatepass"))

    def _list(self) -> Wish:
        queries = [
            "",
            "?status=queued",
            "?status=x",
            "?limit=0",
            "?limit=201",
            "?limit=1",
            "?cursor=x",
            "?cursor=%00",
            "?limit=²",
        ]
        return Wish("GET", self._chance.choice(LISTS) + self._chance.choice(queries))

    def _noise(self) -> Wish:
        """Bytes by chance, or a good body with a few of them changed."""
        body = bytearray(json.dumps(SMALL).encode())
        for _ in range(self._chance.randint(1, 4)):
            body[self._chance.randrange(len(body))] = self._chance.randrange(256)
        if self._chance.random() < 0.2:
            body = bytearray(self._chance.randbytes(self._chance.randrange(400)))
        return self._posted(self._chance.choice(PAINTING + OTHERS), bytes(body))
