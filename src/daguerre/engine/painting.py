"""Owns the painting: one picture of a job, from when it waits for its run to its end."""

from collections.abc import Hashable
from dataclasses import dataclass, field

import torch

from daguerre.catalog import Model
from daguerre.engine.adapter_cache import Hosted
from daguerre.engine.ip_adapters import HostedIpAdapter
from daguerre.engine.pipelines import Pipeline, Timer
from daguerre.engine.rendezvous import Call
from daguerre.engine.replay import Record
from daguerre.engine.scheduler import Entrant, Waiting
from daguerre.engine.share import Share
from daguerre.engine.submission import Submission


@dataclass(slots=True, eq=False)
class Painting:
    """A picture that is waiting for its run, or running: one of a submission's ``count``."""

    submission: Submission
    index: int
    since: float  # monotonic seconds at which it began to wait, for its run or for its next forward
    forwards: int  # that it still has to do, as far as is known
    timer: Timer | None = None
    record: Record | None = None
    pipeline: Pipeline | None = None
    hosted: list[Hosted] = field(default_factory=list)
    ip_adapter: HostedIpAdapter | None = None
    share: Share = field(default_factory=Share)
    last_forward: int = 0  # the number of the last one that it took part in
    is_counted: bool = False  # among those that looked for their adapters
    is_watched: bool = False  # somebody wants to see it at its next step

    @property
    def worn(self) -> list[tuple[Hosted, float]]:
        """Its adapters in host memory, each with its weight."""
        weights = [weight for _, weight in self.submission.adapters]
        return list(zip(self.hosted, weights, strict=True))

    @property
    def adapters_key(self) -> tuple[Hashable, ...]:
        """Pictures whose keys differ need other weights: they share no forward."""
        key = tuple((adapter.key, weight) for adapter, weight in self.submission.adapters if weight)
        wanted = self.submission.ip_adapter
        return (*key, (wanted.key, self.scales)) if wanted is not None and self.scales else key

    @property
    def scales(self) -> tuple[float, ...]:
        """Of its references."""
        return tuple(reference.scale for reference in self.submission.seen)

    @property
    def job_id(self) -> str:
        """Whose picture it is."""
        return self.submission.id

    @property
    def extent(self) -> tuple[Hashable, ...]:
        """By what the memory that it takes is known."""
        return (self.submission.model.name, self.submission.recipe.width, self.submission.recipe.height)

    @property
    def kind(self) -> tuple[Hashable, ...]:
        """What its calls have in common with those that they may share forwards with."""
        return (*self.extent, self.adapters_key) if self.adapters_key else self.extent

    @property
    def model(self) -> Model:
        """What it is painted with."""
        return self.submission.model

    def entrant(self) -> Entrant:
        """As the scheduler sees it while it has not begun."""
        return Entrant(
            run=self,
            key=self.kind,
            forwards=self.forwards,
            rows=2 if self.submission.recipe.guidance_scale > 1 else 1,
            since=self.since,
            client=self.submission.client,
            is_urgent=self.submission.is_urgent,
        )

    def waiting(self, call: Call, device: torch.device) -> Waiting:
        """One of its calls as the scheduler sees it."""
        recipe = self.submission.recipe
        # A run that shares no forward has its rows in a batch of the same size always, and so gives the same bytes.
        # That is promised of reproducible ones. Of several pictures of one job it is promised that each is what its
        # seed alone would give: on a CPU, where sharing hardly pays, to the byte.
        is_alone = call.key is None or recipe.reproducible or (recipe.count > 1 and device.type == "cpu")
        return Waiting(
            run=call.run,
            key=(*self.kind, id(call.run)) if is_alone else call.key,
            place=(self.model.name, self.adapters_key),
            rows=call.rows,
            forwards=max(1, self.forwards),
            since=self.since,
            client=self.submission.client,
            is_urgent=self.submission.is_urgent,
        )
