"""Requests without end, made by chance of what breaks servers, and real ones between them."""

import base64
import json
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from oddities import (
    FORMS,
    FROM_PICTURES,
    HEADERS,
    JSON_BODIES,
    LISTS,
    NAMED,
    NAMES,
    NUMBERS,
    NUMERIC,
    OTHERS,
    PAINTING,
    PICTURES,
    QUERIES,
    SMALL,
    TEXTS,
    TEXTUAL,
)


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
                [text[:-1], f"{text}=", f"{text}\n", f" {text}", f"data:,{text}", f"{text[:50]}é"]
            )
        path = self._chance.choice(FROM_PICTURES)
        fields: dict[str, Any] = {**SMALL, "steps": 2, "strength": 0.6, "image": text}
        if "sdapi" in path:
            fields = {**fields, "init_images": [text], "denoising_strength": 0.6}
        if self._chance.random() < 0.4:
            fields["mask"] = base64.b64encode(self._data()).decode()
        return self._posted(path, json.dumps(fields).encode())

    def _form(self) -> Wish:
        odd = {self._chance.choice(TEXTUAL): self._chance.choice(TEXTS)}
        texts = {"prompt": "a lake", "size": "64x64", "steps": "2", **odd}
        name = self._chance.choice(["image", "image", "image[]", "mask", "x"])
        parts = [(f'name="{key}"', value.encode()) for key, value in texts.items()]
        parts += [(f'name="{name}"; filename="{self._chance.choice(NAMES)}"', self._data())]
        begin = "--b\r\nContent-Disposition: form-data; "
        body = b"".join(f"{begin}{head}\r\n\r\n".encode() + data + b"\r\n" for head, data in parts)
        end = self._chance.choice([b"--b--\r\n", b"--b--\r\n", b"--b", b"", b"--b\r\n\r\n--b--"])
        kind = "multipart/form-data" + self._chance.choice(["; boundary=b"] * 4 + ["", f"; boundary={'x' * 80}"])
        return Wish("POST", self._chance.choice(FORMS), {"content-type": kind}, body + end)

    def _path(self) -> Wish:
        path = self._chance.choice(NAMED).format(self._chance.choice(self.given))
        method = self._chance.choice(["GET", "GET", "GET", "HEAD", "DELETE"])
        return Wish(method, path + self._chance.choice(QUERIES))

    def _method(self) -> Wish:
        method = self._chance.choice(["PUT", "PATCH", "OPTIONS", "TRACE", "HEAD", "DELETE", "GET", "POST", "BREW"])
        path = self._chance.choice(PAINTING + FORMS + OTHERS + LISTS)
        return Wish(method, path)

    def _other(self) -> Wish:
        name = self._chance.choice(["model_id", "model", "name", "sd_model_checkpoint", "image", "x"])
        value = self._chance.choice([*map(json.dumps, TEXTS), *NUMBERS, '"demo-xl"', '"demo-xl [abc]"', '"sdxl-base"'])
        return self._posted(self._chance.choice(OTHERS), f'{{"{name}": {value}}}'.encode("utf-8", "surrogatepass"))

    def _list(self) -> Wish:
        return Wish("GET", self._chance.choice(LISTS) + self._chance.choice(QUERIES))

    def _noise(self) -> Wish:
        """Bytes by chance, or a good body with a few of them changed."""
        body = bytearray(json.dumps(SMALL).encode())
        for _ in range(self._chance.randint(1, 4)):
            body[self._chance.randrange(len(body))] = self._chance.randrange(256)
        if self._chance.random() < 0.2:
            body = bytearray(self._chance.randbytes(self._chance.randrange(400)))
        return self._posted(self._chance.choice(PAINTING + OTHERS), bytes(body))
