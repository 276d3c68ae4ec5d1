"""Weight files that are none: a safetensors file harmed in every way that its format allows, and pickles disguised.

Each harm takes the bytes of a whole file, a LoRA's or a model's, whose tensors are float32.
"""

import base64
import bz2
import gzip
import io
import json
import os
import pickle
import struct
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

Harm = Callable[[bytes], bytes]
Fields = dict[str, Any]


def _parts(good: bytes) -> tuple[Fields, bytes]:
    length = struct.unpack("<Q", good[:8])[0]
    return json.loads(good[8 : 8 + length]), good[8 + length :]


def _text(text: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text + data


def _whole(fields: Fields, data: bytes) -> bytes:
    return _text(json.dumps(fields).encode(), data)


def _names(fields: Fields) -> list[str]:
    """The tensors, in the order of their bytes; the first of two sides or more comes first."""
    tensors = [name for name in fields if name != "__metadata__"]
    return sorted(tensors, key=lambda name: fields[name]["data_offsets"])


def _length(value: int) -> Harm:
    return lambda good: struct.pack("<Q", value) + good[8:]


def _fields(change: Callable[[Fields, list[str]], object]) -> Harm:
    """A change of the header alone."""

    def harm(good: bytes) -> bytes:
        fields, data = _parts(good)
        change(fields, _names(fields))
        return _whole(fields, data)

    return harm


def _tensor(**values: Any) -> Harm:
    """Other words for the last tensor."""
    return _fields(lambda fields, names: fields[names[-1]].update(values))


def _offsets(change: Callable[[int, int], list[Any]]) -> Harm:
    """Other offsets of the last tensor."""
    return _fields(
        lambda fields, names: fields[names[-1]].update(data_offsets=change(*fields[names[-1]]["data_offsets"]))
    )


def _numbers(value: float, dtype: str = "F32") -> Harm:
    """One weight of the largest tensor is that number."""

    def harm(good: bytes) -> bytes:
        fields, data = _parts(good)
        name = max(_names(fields), key=lambda name: fields[name]["data_offsets"][1] - fields[name]["data_offsets"][0])
        begin, end = fields[name]["data_offsets"]
        own = np.frombuffer(data[begin:end], np.float32).astype({"F32": np.float32, "F64": np.float64}[dtype])
        own[len(own) // 2] = value
        made, offset = b"", 0
        for other in _names(fields):
            first, last = fields[other]["data_offsets"]
            part = own.tobytes() if other == name else data[first:last]
            fields[other] |= {"data_offsets": [offset, offset + len(part)]}
            made, offset = made + part, offset + len(part)
        fields[name]["dtype"] = dtype
        return _whole(fields, made)

    return harm


def _overlap(good: bytes) -> bytes:
    """The last tensor begins four bytes early; the data is as long as that makes it."""
    fields, data = _parts(good)
    last = fields[_names(fields)[-1]]
    last["data_offsets"] = [offset - 4 for offset in last["data_offsets"]]
    return _whole(fields, data[:-4])


def _hole(good: bytes) -> bytes:
    fields, data = _parts(good)
    last = fields[_names(fields)[-1]]
    last["data_offsets"] = [offset + 4 for offset in last["data_offsets"]]
    return _whole(fields, data + bytes(4))


def _two_in_one_place(fields: Fields, names: list[str]) -> None:
    fields["another.weight"] = fields[names[-1]]


def _bare(fields: Fields, names: list[str]) -> None:
    del fields[names[-1]]["dtype"]


def _renamed(good: bytes) -> bytes:
    fields, data = _parts(good)
    return _whole({name.replace("to_k", "to_kk").replace("bias", "buas"): fields[name] for name in fields}, data)


def _without_last(good: bytes) -> bytes:
    fields, data = _parts(good)
    name = _names(fields)[-1]
    begin, _ = fields.pop(name)["data_offsets"]
    return _whole(fields, data[:begin])


def _wider(good: bytes) -> bytes:
    """Every matrix stands on its side."""
    fields, data = _parts(good)
    for name in _names(fields):
        fields[name]["shape"] = fields[name]["shape"][::-1]
    return _whole(fields, data)


def _twice(good: bytes) -> bytes:
    fields, data = _parts(good)
    name = json.dumps(_names(fields)[-1])
    text = json.dumps(fields)
    return _text((text[:-1] + f", {name}: {json.dumps(fields[json.loads(name)])}}}").encode(), data)


def _more_tensors(good: bytes) -> bytes:
    fields, data = _parts(good)
    nothing = {"dtype": "F32", "shape": [0], "data_offsets": [len(data)] * 2}
    return _whole(fields | {f"unet.nothing.{i}": nothing for i in range(20_001)}, data)


def _padded(good: bytes) -> bytes:
    fields, data = _parts(good)
    return _text(json.dumps(fields).encode().ljust(9 << 20), data)


CORRUPT: dict[str, Harm] = {
    # cut off
    "empty": lambda _: b"",
    "seven bytes": lambda good: good[:7],
    "a length and nothing else": lambda good: good[:8],
    "cut off in the header": lambda good: good[:60],
    "cut off after the header": lambda good: good[: 8 + struct.unpack("<Q", good[:8])[0]],
    "cut off in the middle": lambda good: good[: len(good) // 2],
    "a byte too short": lambda good: good[:-1],
    "a byte too long": lambda good: good + b"\0",
    "zeros": lambda good: bytes(len(good)),
    # the header's length
    "a header of 2⁶³ bytes": _length(2**63),
    "a header of 2⁶⁴ - 1 bytes": _length(2**64 - 1),
    "a header of 100 MB": _length(100_000_000),
    "a header of nothing": _length(0),
    "a header of one byte": _length(1),
    "a header of 9 MB that is there": _padded,
    "20 thousand tensors of nothing": _more_tensors,
    # the header's text
    "no JSON": lambda good: _text(b"notjson!", good[8:]),
    "a list": lambda _: _text(b"[]"),
    "a text": lambda _: _text(b'"weights"'),
    "no tensors": lambda _: _text(b"{}"),
    "100 thousand brackets": lambda _: _text(b"[" * 100_000),
    "not UTF-8": lambda _: _text(b'{"\xff\xfe": 1}'),
    "UTF-16": lambda good: _text(json.dumps(_parts(good)[0]).encode("utf-16"), _parts(good)[1]),
    "a name twice": _twice,
    "metadata that are numbers": _fields(lambda fields, _: fields.update(__metadata__={"steps": 3})),
    "metadata that are a list": _fields(lambda fields, _: fields.update(__metadata__=["pt"])),
    "a tensor that is a number": _fields(lambda fields, names: fields.update({names[-1]: 7})),
    "a tensor without dtype": _fields(_bare),
    # offsets
    "tensors that overlap": _overlap,
    "a hole between tensors": _hole,
    "two tensors in one place": _fields(_two_in_one_place),
    "offsets the wrong way round": _offsets(lambda begin, end: [end, begin]),
    "offsets below zero": _offsets(lambda begin, end: [begin - end, 0]),
    "offsets past the end": _offsets(lambda begin, end: [begin + 4096, end + 4096]),
    "offsets past 2⁶⁴": _offsets(lambda begin, end: [begin + 2**64, end + 2**64]),
    "offsets with a point": _offsets(lambda begin, end: [float(begin), float(end)]),
    "three offsets": _offsets(lambda begin, end: [begin, begin, end]),
    # shapes and dtypes
    "a shape that is not its length": _tensor(shape=[9, 9]),
    "a shape below zero": _fields(lambda fields, names: fields[names[-1]].update(shape=[-1, -1])),
    "a shape that wraps around": _tensor(shape=[2**32, 2**32]),
    "a shape in words": _tensor(shape="32x32"),
    "an unknown dtype": _tensor(dtype="F31"),
    "a dtype that is a number": _tensor(dtype=32),
    "half the dtype": _tensor(dtype="F16"),
    "whole numbers for weights": _fields(lambda fields, names: [fields[name].update(dtype="I32") for name in names]),
    # numbers
    "not a number": _numbers(float("nan")),
    "infinite": _numbers(float("-inf")),
    "too large for float32": _numbers(1e300, "F64"),
    # of something else
    "layers of other names": _renamed,
    "a tensor missing": _without_last,
    "matrices on their side": _wider,
}


@dataclass
class Bomb:
    """Makes a folder when it is unpickled."""

    canary: Path

    def __reduce__(self) -> tuple[Callable[[str], Any], tuple[str]]:
        return os.mkdir, (str(self.canary),)


def _saved(bomb: Bomb, *, as_zip: bool) -> bytes:
    file = io.BytesIO()
    torch.save({"weight": bomb}, file, _use_new_zipfile_serialization=as_zip)
    return file.getvalue()


def _tarred(content: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        entry = tarfile.TarInfo("pickle")
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def _array(bomb: Bomb, *, is_zip: bool) -> bytes:
    file = io.BytesIO()
    array = np.array([bomb], dtype=object)
    np.savez(file, weight=array) if is_zip else np.save(file, array)
    return file.getvalue()


def _as_tensor(content: bytes, dtype: str = "U8") -> bytes:
    extent = {"dtype": dtype, "shape": [len(content)], "data_offsets": [0, len(content)]}
    return _whole({"pickle.weight": extent}, content)


def disguises(canary: Path) -> dict[str, Harm]:
    """Pickles under other names; whoever opens one makes the canary."""
    bomb = Bomb(canary)
    old, new = (pickle.dumps({"weight": bomb}, protocol) for protocol in (0, 5))
    zipped = _saved(bomb, as_zip=True)
    told = {"__metadata__": {"pickle": base64.b64encode(new).decode()}}
    return {
        "in the oldest protocol": lambda _: old,
        "in the newest protocol": lambda _: new,
        "as torch saves": lambda _: zipped,
        "as torch saved": lambda _: _saved(bomb, as_zip=False),
        "gzipped": lambda _: gzip.compress(new),
        "under bzip2": lambda _: bz2.compress(new),
        "in a tar file": lambda _: _tarred(new),
        "as numpy's array of objects": lambda _: _array(bomb, is_zip=False),
        "as numpy's archive": lambda _: _array(bomb, is_zip=True),
        "as a tensor of bytes": lambda _: _as_tensor(new),
        "in metadata, and nothing else": lambda _: _whole(told, b""),
        "behind a length": lambda good: good[:8] + new,
        "a zip behind whole tensors": lambda good: good + zipped,
    }
