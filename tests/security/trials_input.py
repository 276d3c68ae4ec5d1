"""Owns the trials of what a body says: JSON, numbers, addresses, paths, pickles, forms, pictures.

As in ``trials.py``, each gives what came through, or broke.
"""

import base64
import contextlib
import io
import itertools
import json
import pickle
import struct
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from badfiles import Bomb
from naive_paint import Listener
from oddities import JSON_BODIES, PICTURES
from PIL import Image
from trials import JSON, MOST_CPU, SMALL, Cpu, asking, post


def bodies(address: str, cpu: Cpu) -> list[str]:
    """JSON that is none, too deep, too much, ambiguous; gives what was not refused, or took long."""
    found = []
    with asking(address) as client:
        for body in JSON_BODIES:
            before = cpu()
            status = post(client, "/generate", body, JSON)
            took = cpu() - before
            if took > MOST_CPU or not 400 <= status < 500:
                found.append(f"{body[:40]!r}: {status}, {took:.2f} s")
    return found


#: Values that no field of numbers may have.
WRONG = (
    "1e400",
    "-1e400",
    "NaN",
    "Infinity",
    str(2**64),
    str(-(2**63) - 1),
    "9" * 5000,
    '"7"',
    "[]",
    "{}",
    "-5",
    "1e-320x",
)
BOUNDED = ("seed", "steps", "width", "height", "guidance_scale", "count", "quality", "clip_skip", "preview_every")


def numbers(address: str) -> list[str]:
    """Each of them in each field; gives what was taken, or broke something."""
    found = []
    with asking(address) as client:
        for field, value in itertools.product(BOUNDED, WRONG):
            rest = json.dumps({name: own for name, own in SMALL.items() if name != field})
            status = post(client, "/generate", f'{rest[:-1]}, "{field}": {value}}}'.encode(), JSON)
            found += [f"{field} = {value[:20]}: {status}"] if not 400 <= status < 500 else []
    return found


def unbounded(schema: Any, where: str = "", bare: frozenset[str] = frozenset()) -> list[str]:
    """The numbers, lists and texts of a JSON schema that have no bounds, but for fields of these names."""
    if isinstance(schema, list):
        return [found for each in schema for found in unbounded(each, where, bare)]
    if not isinstance(schema, dict):
        return []
    kind = schema.get("type")
    needs = {"integer": "maximum", "number": "maximum", "array": "maxItems", "string": "maxLength"}.get(str(kind), "")
    is_open = needs and needs not in schema and not {"enum", "const", "pattern"} & schema.keys()
    found = [where] if is_open and where.rpartition(".")[2] not in bare else []
    for name, each in schema.get("properties", {}).items():
        found += unbounded(each, f"{where}.{name}", bare)
    for way in ("items", "anyOf", "oneOf", "allOf"):
        found += unbounded(schema.get(way, []), where, bare)
    return found


def fetched(address: str) -> list[str]:
    """Addresses in place of pictures; gives what was gone to, taken, or broke something."""
    found, listener = [], Listener()
    values = (listener.url, f"data:text/plain,{listener.url}", f" {listener.url}", "file:///etc/passwd", "//127.0.0.1/")
    with contextlib.closing(listener), asking(address) as client:
        for value in values:
            for path, fields in (
                ("/generate", {"image": value}),
                ("/generate", {"image": _encoded(PICTURES[0]), "mask": value}),
                ("/generate", {"reference_images": [{"image": value}]}),
                ("/generate", {"reference_images": [{"name": value}]}),
                ("/generate", {"webhook": value}),
                ("/sdapi/v1/img2img", {"init_images": [value]}),
                ("/sdapi/v1/png-info", {"image": value}),
            ):
                status = post(client, path, json.dumps(SMALL | fields).encode(), JSON)
                found += [f"{path} {fields}"[:90] + f": {status}"] if not 400 <= status < 500 else []
        time.sleep(0.1)
        return found + [f"connected to {listener.met} times"] * bool(listener.met)


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


#: Fields by which servers have been told where to write.
PATH_FIELDS = ("save_path", "output_path", "outpath_samples", "outdir", "filename", "path", "file", "save_dir", "name")


def written(address: str, folder: Path) -> list[str]:
    """Paths in fields of many names, and in the settings of a request; gives what was written, or broke something."""
    paths = {name: str(folder / f"{name}.png") for name in PATH_FIELDS}
    ignored = paths | {"size": "64x64", "override_settings": paths, "script_args": list(paths.values())}
    tries = [("/generate", {name: path}) for name, path in paths.items()]
    tries += [("/v1/images/generations", ignored), ("/sdapi/v1/txt2img", ignored)]
    with asking(address) as client:
        bodies = [(path, json.dumps(SMALL | fields).encode()) for path, fields in tries]
        statuses = [(path, post(client, path, body, JSON)) for path, body in bodies]
    found = [f"{path}: {status}" for path, status in statuses if status not in (200, 400, 404, 422)]
    return found + [str(path) for path in folder.rglob("*")]


def unpickled(address: str, canary: Path) -> list[str]:
    """A pickle as the body, as a picture, and as a file of a form; gives what was taken, or that it ran."""
    bomb = pickle.dumps(Bomb(canary))
    kinds = [
        f"application/{kind}" for kind in ("x-pickle", "python-pickle", "vnd.bentoml+pickle", "octet-stream", "json")
    ]
    form = b'--b\r\ncontent-disposition: form-data; name="image"; filename="a.pkl"\r\n\r\n' + bomb + b"\r\n--b--\r\n"
    tries = [("/generate", kind, bomb) for kind in kinds]
    tries += [("/generate", JSON["content-type"], json.dumps(SMALL | {"image": _encoded(bomb)}).encode())]
    tries += [("/v1/images/edits", "multipart/form-data; boundary=b", form)]
    with asking(address) as client:
        statuses = [(kind, post(client, path, body, {"content-type": kind})) for path, kind, body in tries]
    found = [f"{kind}: {status}" for kind, status in statuses if not 400 <= status < 500]
    return found + [f"it ran: {path.name}" for path in [canary] if path.exists()]


def _part(name: bytes, content: bytes = b"x") -> bytes:
    return b'--b\r\ncontent-disposition: form-data; name="' + name + b'"\r\n\r\n' + content + b"\r\n"


FORMS = {
    "a megabyte before the first boundary": b"\r\n" * 150_000 + _part(b"prompt") + b"--b--",
    "a megabyte of almost boundaries": _part(b"prompt", b"\r\n--" * 75_000) + b"--b--",
    "ten thousand parts": _part(b"a") * 10_000 + b"--b--",
    "ten thousand files": _part(b'a"; filename="x') * 10_000 + b"--b--",
    "headers without end": b"--b\r\n" + b"x: y\r\n" * 50_000,
    "a header without end": b"--b\r\ncontent-disposition: form-data; " + b"a=b; " * 60_000,
    "spaces without end": b"--b\r\ncontent-disposition: form-data;" + b" " * 300_000 + b"\r\n\r\n\r\n--b--",
    "quotes without end": b'--b\r\ncontent-disposition: form-data; name="' + b'\\"' * 3_500 + b"\r\n\r\n\r\n--b--",
    "a length below zero": b"--b\r\ncontent-length: -1\r\ncontent-disposition: form-data\r\n\r\nx\r\n--b--",
    "no end": _part(b"prompt"),
    "no name": b"--b\r\ncontent-disposition: form-data\r\n\r\nx\r\n--b--",
    "a path for a name": _part(b'image"; filename="../../../../tmp/x') + b"--b--",
}


def forms(address: str, cpu: Cpu, names: Iterable[str] = tuple(FORMS)) -> list[str]:
    """Forms that take long to read; gives what was not refused, or did."""
    found = []
    with asking(address) as client:
        for name in names:
            before = cpu()
            status = post(client, "/v1/images/edits", FORMS[name], {"content-type": "multipart/form-data; boundary=b"})
            took = cpu() - before
            if took > MOST_CPU or not 400 <= status < 500:
                found.append(f"{name}: {status}, {took:.2f} s")
    return found


def oversized(address: str, size: int) -> list[str]:
    """A body of that size, announced and not; gives what was not 413."""

    def chunks() -> Iterator[bytes]:
        for _ in range(size >> 16):
            yield b" " * (1 << 16)

    with asking(address) as client:
        statuses = {"announced": post(client, "/generate", b" " * size, JSON)}
        statuses["in chunks"] = client.post("/generate", content=chunks(), headers=JSON).status_code
    return [f"{kind}: {status}" for kind, status in statuses.items() if status != 413]


# Pictures


def _saved(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (64, 64)).save(file, kind, **options)
    return file.getvalue()


def strange_files() -> dict[str, bytes]:
    """Pictures of the formats that Pillow reads beside ours, and the beginnings of some that it cannot write."""
    kinds = {"BMP": "RGB", "DDS": "RGB", "DIB": "RGB", "EPS": "RGB", "GIF": "L", "ICNS": "RGBA", "ICO": "RGBA"}
    kinds |= {"JPEG2000": "RGB", "MSP": "1", "PCX": "RGB", "PPM": "RGB", "QOI": "RGB", "SGI": "RGB", "SPIDER": "F"}
    kinds |= {"TGA": "RGB", "TIFF": "RGB", "XBM": "1", "PDF": "RGB", "AVIF": "RGB"}
    found = {}
    for kind, mode in kinds.items():
        with contextlib.suppress(KeyError, OSError):  # a Pillow without that library
            found[kind] = _saved(kind, mode)
    found["PSD"] = b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 64, 64, 8, 3) + bytes(12)
    found["FITS"] = b"SIMPLE  =                    T".ljust(80) + b"END".ljust(2800)
    found["GD"] = b"\xff\xfe\0\x40\0\x40\1" + bytes(6000)
    found["WMF"] = b"\xd7\xcd\xc6\x9a" + bytes(60)
    found["SVG"] = b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"
    return found


def _asked_with(address: str, pictures: dict[str, bytes]) -> Iterator[tuple[str, int]]:
    """Each picture wherever one may stand, and the status."""
    good, quick = _encoded(PICTURES[0]), {"prompt": "x", "steps": 1, "guidance_scale": 1}
    with asking(address) as client:
        for name, data in pictures.items():
            text = _encoded(data)
            for path, fields in (
                ("/generate", {"image": text, "strength": 1}),
                ("/generate", {"image": good, "mask": text, "strength": 1}),
                ("/sdapi/v1/img2img", {"init_images": [text], "denoising_strength": 1, "width": 64, "height": 64}),
                ("/sdapi/v1/png-info", {"image": text}),
            ):
                yield f"{name} {path}", post(client, path, json.dumps(quick | fields).encode(), JSON)


def strange_formats(address: str) -> list[str]:
    """Gives those that were not refused."""
    return [f"{name}: {status}" for name, status in _asked_with(address, strange_files()) if not 400 <= status < 500]


def _bomb(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0) + bytes(40)


#: Of no, one and very many pixels, very flat and very long; those above 10,000 are a header and nothing behind it.
SHAPES = (
    (0, 0),
    (0, 64),
    (64, 0),
    (1, 1),
    (2, 3),
    (1, 4000),
    (4000, 1),
    (9000, 1),
    (1, 9000),
    (13_000, 13_000),
    (2**31 - 1, 2**31 - 1),
)


def odd_shapes(address: str, shapes: Iterable[tuple[int, int]] = SHAPES) -> list[str]:
    """Gives those that broke something."""
    made = {f"{w}x{h}": _sized(w, h) if 0 < w * h < 10_000 else _bomb(w, h) for w, h in shapes}
    return [f"{name}: {status}" for name, status in _asked_with(address, made) if not 200 <= status < 500]


def _sized(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (width, height), 90).save(file, "PNG")
    return file.getvalue()
