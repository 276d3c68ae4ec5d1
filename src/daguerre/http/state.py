"""Owns the state that the lifespan hands to every route."""

from concurrent.futures import ThreadPoolExecutor
from typing import TypedDict

from daguerre.auth.authenticator import Authenticator
from daguerre.http.audit import Audit
from daguerre.jobs.dispatch import Dispatch
from daguerre.jobs.loras import LoraShelf
from daguerre.jobs.models import Models
from daguerre.jobs.retries import Retries
from daguerre.jobs.service import JobService
from daguerre.jobs.watch import Watch
from daguerre.settings import Settings
from daguerre.store.files import Files
from daguerre.telemetry.metrics import Metrics


class State(TypedDict):
    """Made once by ``daguerre.app``; routes reach it as ``request.state[...]``."""

    settings: Settings
    service: JobService
    dispatch: Dispatch
    models: Models
    loras: LoraShelf
    retries: Retries
    authenticator: Authenticator
    audit: Audit
    files: Files
    codec: ThreadPoolExecutor
    metrics: Metrics
    watch: Watch
    checkpoints: dict[str, str]  # the models that clients of AUTOMATIC1111's API have chosen, by client
