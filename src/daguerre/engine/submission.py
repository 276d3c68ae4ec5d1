"""Owns the submission: a job as the engine sees it, with all that it is painted from."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from daguerre.catalog import Model
from daguerre.embeddings import Learned
from daguerre.loras import Adapter
from daguerre.recipe import Recipe
from daguerre.references import IpAdapter


@dataclass(frozen=True, slots=True)
class Reference:
    """A reference image, and how strongly it counts; the digest stands for the picture."""

    picture: NDArray[np.uint8]  # [H, W, 3]
    scale: float
    digest: str


@dataclass(frozen=True, slots=True)
class Submission:
    """A job as the engine sees it: it knows nothing of users, addresses and files."""

    id: str
    recipe: Recipe
    model: Model
    image: NDArray[np.uint8] | None = None  # [H, W, 3], in the recipe's size
    mask: NDArray[np.uint8] | None = None  # [H, W], 255 is painted anew
    client: str = ""
    adapters: tuple[tuple[Adapter, float], ...] = ()  # each with its weight
    ip_adapter: IpAdapter | None = None  # what looks at the references
    references: tuple[Reference, ...] = ()
    learned: tuple[Learned, ...] = ()  # textual inversions that its prompts name
    is_urgent: bool = False
    is_durable: bool = False  # submitted again under its id, should this process end before it has its pictures

    @property
    def seen(self) -> tuple[Reference, ...]:
        """The references that count: one at scale 0 is none."""
        return tuple(reference for reference in self.references if reference.scale)
