"""Owns textual inversions in place: tokenizers that know more words, and rows beyond those of the text encoders.

The model's own tokenizers and vectors stay as they are. A copy of each tokenizer learns a word for every vector, and
while a prompt with such words is encoded, the layer that looks words up finds theirs in a table beside its own. What
comes of it is what would come of diffusers' ``load_textual_inversion``. For the engine thread.
"""

import contextlib
import copy
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import safetensors.torch
import torch

from daguerre import embeddings
from daguerre.embeddings import Learned
from daguerre.errors import FieldError, InvalidRecipe


@dataclass(slots=True)
class Table:
    """The vectors beyond one text encoder's own: ids from ``first`` on are looked up in ``rows``."""

    layer: Any  # nn.Embedding
    first: int
    rows: list[torch.Tensor] = field(default_factory=list)  # each [channels], in host memory: they are few and small
    is_used: bool = False

    def attach(self) -> None:
        """From now on the layer can look into the table."""
        compute = self.layer.forward

        def forward(ids: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = self._found(compute, ids) if self.is_used else compute(ids)
            return output

        self.layer.forward = forward

    def _found(self, compute: Callable[[torch.Tensor], torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
        is_own = ids < self.first
        own = compute(torch.where(is_own, ids, 0))
        added = torch.stack(self.rows).to(own)[(ids - self.first).clamp(min=0)]
        return torch.where(is_own[..., None], own, added)


class Inversions:
    """Those that one pipeline has met. ``shell`` is the pipeline with the tokenizers that know them."""

    def __init__(self, pipe: Any) -> None:
        self.shell = copy.copy(pipe)
        self.shell.inversions = weakref.proxy(self)  # for Compel
        self._tables: list[Table] = []
        self._tokenizers: list[Any] = []
        self._words: dict[str, list[str]] = {}  # by the content's digest, one for each vector
        self._count = 0
        for end in ("", "_2"):
            encoder = getattr(pipe, f"text_encoder{end}", None)
            if encoder is None:
                continue
            tokenizer = copy.deepcopy(getattr(pipe, f"tokenizer{end}"))
            setattr(self.shell, f"tokenizer{end}", tokenizer)
            self._tokenizers.append(tokenizer)
            self._tables.append(Table(encoder.get_input_embeddings(), len(tokenizer)))
            self._tables[-1].attach()

    @contextlib.contextmanager
    def known(self, learned: Sequence[Learned], is_expanded: bool) -> Iterator[Callable[[str], str]]:
        """While it lasts, the shell can encode prompts with these; gives what writes their words into a prompt.

        Where it is not ``is_expanded``, the first word of each stands for all: `expand_…` puts the others behind it.

        Raises:
            InvalidRecipe: a file holds numbers that are not finite, or does not fit after all.
        """
        for one in learned:
            if one.digest not in self._words:
                self._words[one.digest] = self._learn(one)
        words = {one.name: self._words[one.digest][: None if is_expanded else 1] for one in learned}
        for table in self._tables:
            table.is_used = True
        try:
            yield lambda text: embeddings.replaced(text, {name: " ".join(found) for name, found in words.items()})
        finally:
            for table in self._tables:
                table.is_used = False

    def _learn(self, learned: Learned) -> list[str]:
        sides = _vectors(learned)
        widths = [table.layer.weight.shape[1] for table in self._tables]
        if [vectors.shape[1] for vectors in sides] != widths:
            message = f"embedding {learned.name!r} does not fit this model's text encoders"
            raise InvalidRecipe([FieldError("prompt", message)])
        # Letters and digits only: no prompt syntax has a meaning for them, and no tokenizer changes their case.
        words = [f"dgtoken{self._count + i:06d}x" for i in range(len(sides[0]))]
        for tokenizer, table, vectors in zip(self._tokenizers, self._tables, sides, strict=True):
            tokenizer.add_tokens(words)
            table.rows += list(vectors)
        self._count += len(words)
        return words

    def expand_textual_inversion_token_ids_if_necessary(self, token_ids: list[int]) -> list[int]:
        """Compel asks this of its ``textual_inversion_manager``: the ids of all vectors where the first one stands."""
        first = self._tables[0].first
        behind: dict[int, list[int]] = {}
        begin = first
        for words in self._words.values():
            behind[begin] = list(range(begin, begin + len(words)))
            begin += len(words)
        return [each for token in token_ids for each in behind.get(token, [token])]


def _vectors(learned: Learned) -> list[torch.Tensor]:
    """The vectors for each text encoder, [vectors, channels]."""
    try:
        tensors = safetensors.torch.load(learned.data)
        found = [torch.atleast_2d(tensors[name]) for name in learned.tensors]
    except (safetensors.SafetensorError, KeyError, ValueError):
        message = f"embedding {learned.name!r} changed while it was read"
        raise InvalidRecipe([FieldError("prompt", message)]) from None
    if not all(bool(vectors.isfinite().all()) for vectors in found) or len({len(vectors) for vectors in found}) != 1:
        message = f"embedding {learned.name!r} holds numbers that are not finite"
        raise InvalidRecipe([FieldError("prompt", message)])
    return found
