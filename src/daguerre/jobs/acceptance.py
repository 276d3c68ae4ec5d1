"""Owns acceptance: whether a job can be taken now, and what becomes of a draft that can."""

import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from daguerre import recipe
from daguerre.catalog import Catalog
from daguerre.errors import ClientLimit, DaguerreError, DiskLow, FieldError, InvalidRecipe, QueueFull
from daguerre.job import Job, new_id
from daguerre.jobs.forecast import Forecast
from daguerre.jobs.inputs import Inputs
from daguerre.jobs.line import Line
from daguerre.jobs.sources import Sources
from daguerre.loras import Loras
from daguerre.moderation import Moderation
from daguerre.store.files import Files
from daguerre.telemetry.request import request_id

if TYPE_CHECKING:
    from daguerre.jobs.webhooks import Webhooks


@dataclass(frozen=True, slots=True)
class Limits:
    """What is refused: more jobs that wait than this, and any job while the disk has less room than this, in bytes.

    ``client``: more unfinished jobs of one client than this, if it is not 0.
    """

    queue: int
    least_disk: int
    client: int = 0


@dataclass(slots=True)
class Acceptance:
    """All that has a say in it."""

    catalog: Catalog
    loras: Loras
    sources: Sources
    limits: Limits
    files: Files
    line: Line
    forecast: Forecast
    webhooks: "Webhooks | None"
    moderation: Moderation | None
    _refusal: DaguerreError | None = None

    @property
    def refusal(self) -> DaguerreError | None:
        """Why new jobs are refused, if they are."""
        if self._refusal is None and self.files.room() < self.limits.least_disk:
            return DiskLow(retry_after=60.0)
        return self._refusal

    def refuse(self, reason: DaguerreError) -> None:
        """No job is accepted from now on."""
        self._refusal = self._refusal or reason

    def job(
        self, draft: recipe.Draft, inputs: Inputs | None, client: str, *, is_attached: bool, is_urgent: bool
    ) -> Job:
        """The job that a client's draft makes.

        Raises:
            InvalidRecipe: the model cannot do what is asked.
            ModelNotFound: there is no such model.
            QueueFull, ClientLimit, Draining, NotReady, DiskLow: not now.
        """
        refusal = self.refusal
        if refusal is not None:
            raise refusal
        safety = None if self.moderation is None else self.moderation.judge(draft.prompt)
        self._check_webhook(draft.webhook)
        whole = self._recipe(draft, inputs)
        self._check_room(client)
        return Job(
            id=new_id(),
            recipe=whole,
            created_at=time.time(),
            client=client,
            is_attached=is_attached,
            is_urgent=is_urgent,
            request_id=request_id.get(),
            webhook=draft.webhook,
            safety_filter_result=safety,
        )

    def _recipe(self, draft: recipe.Draft, inputs: Inputs | None) -> recipe.Recipe:
        model = self.catalog.model(draft.model)
        seed = random.randrange(recipe.RANDOM_SEEDS)
        size = None if inputs is None else inputs.size
        chosen = self.loras.chosen(draft, model)
        whole = recipe.resolve(draft, model, seed, self.catalog.styles, size, chosen)
        return self.sources.completed(whole, draft, model)

    def _check_webhook(self, url: str | None) -> None:
        if url is None:
            return
        if self.webhooks is None:
            raise InvalidRecipe([FieldError("webhook", "is not offered here: the server has no webhook_secret")])
        self.webhooks.check(url)

    def _check_room(self, client: str) -> None:
        if self.line.whole.waiting >= self.limits.queue:
            raise QueueFull(f"{self.limits.queue} jobs are waiting already", self.forecast.seconds_a_job)
        if 0 < self.limits.client <= self.line.count_of(client):
            message = f"{self.limits.client} jobs of yours are unfinished already"
            raise ClientLimit(message, self.forecast.seconds_a_job)
