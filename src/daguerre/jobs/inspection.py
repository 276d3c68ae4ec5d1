"""Owns the inspection: a safety checker looks at every finished picture, before anything of it is kept or shown.

It has a thread of its own and the CPU, so that neither the engine nor the event loop waits for it.
"""

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from daguerre import imaging
from daguerre.engine import Pixels
from daguerre.errors import CatalogError, ImageRefused, SafetyCheckFailed
from daguerre.job import SafetyResult
from daguerre.safety_checkers import SafetyChecker
from daguerre.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from daguerre.engine import safety_checker

log = logging.getLogger(__name__)

#: Seconds for which a checker that cannot be read is not read again.
RETRY = 5.0

Action = Literal["block", "blur", "flag"]
#: What is said of a picture in which the checker sees something, by what is done then.
SEEN: dict[Action, SafetyResult] = {"block": "blocked", "blur": "blurred", "flag": "flagged"}


@dataclass(frozen=True, slots=True)
class Inspected:
    """A picture that has been looked at, as it may be shown."""

    pixels: NDArray[np.uint8]  # [H, W, 3]

    def array(self) -> NDArray[np.uint8]:
        """As `daguerre.engine.events.Pixels` has it."""
        return self.pixels


class Inspection:
    """``fails`` says what becomes of pictures while the checker cannot be used: nothing (closed), or shown (open)."""

    def __init__(
        self, checker: SafetyChecker, action: Action, fails: Literal["closed", "open"], metrics: Metrics
    ) -> None:
        self._known = checker
        self._action: Action = action
        self._fails = fails
        self._metrics = metrics
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="daguerre-inspection")
        self._checker: safety_checker.SafetyChecker | None = None
        self._retry_at = 0.0  # monotonic seconds

    @property
    def allows_previews(self) -> bool:
        """Whether a picture may be seen before it has been looked at."""
        return self._action == "flag"

    def prepare(self) -> None:
        """Has the checker read and tried, so that the first picture does not wait for it."""
        self._thread.submit(self._look, np.full((64, 64, 3), 127, np.uint8))

    async def judge(self, pixels: Pixels) -> tuple[Pixels, SafetyResult]:
        """The picture as it may be shown, and what is said of it.

        Raises:
            ImageRefused: the checker sees something, and such pictures are blocked.
            SafetyCheckFailed: it could not look.
            BadOutput: there is no picture.
        """
        loop = asyncio.get_running_loop()
        shown, result = await loop.run_in_executor(self._thread, self._inspect, pixels)
        self._metrics.safety_checks.labels(result).inc()
        if result == "blocked":
            raise ImageRefused
        if result == "unchecked" and self._fails == "closed":
            raise SafetyCheckFailed
        return shown, result

    def close(self) -> None:
        """Looks at nothing more; what waits for it belongs to jobs of the next process."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    # Everything below runs on the thread.

    def _inspect(self, pixels: Pixels) -> tuple[Pixels, SafetyResult]:
        array = pixels.array()
        result = self._look(array)
        return Inspected(imaging.blurred(array) if result == "blurred" else array), result

    def _look(self, array: NDArray[np.uint8]) -> SafetyResult:
        try:
            return SEEN[self._action] if self._ready().flags(array) else "passed"
        except CatalogError as error:
            log.error("safety checker %s cannot be used: %s", self._known.name, error)  # noqa: TRY400
        except Exception:  # libraries fail on files in many ways
            log.exception("safety checker %s could not look at a picture", self._known.name)
        return "unchecked"

    def _ready(self) -> "safety_checker.SafetyChecker":
        from daguerre.engine import safety_checker

        if self._checker is None:
            if time.monotonic() < self._retry_at:
                raise CatalogError("it could not be read a moment ago")
            self._retry_at = time.monotonic() + RETRY
            self._checker = safety_checker.SafetyChecker(self._known.path)
            log.info("safety checker %s is ready", self._known.name)
        return self._checker
