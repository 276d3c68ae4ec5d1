"""Owns the client's error tree: everything that a client raises.

::

    ClientError
    ├── BadAddress             a server cannot have that address
    ├── Unreachable            no answer: nobody listens, or the connection broke, time after time
    ├── BadAnswer              what came is not what a Daguerre server answers
    ├── Unfinished             the job has no picture yet
    ├── JobEnded               the job ended without a picture; carries ``code`` and ``job_id``
    │   ├── JobFailed
    │   └── JobCancelled
    └── Refused                the answer is a problem; carries what it says
        ├── InvalidRequest     400, 406, 413, 415, 422: asking the same again cannot help
        ├── NotAllowed         401, 403
        ├── NotThere           404, 410
        ├── Conflict           409
        ├── Busy               429, 503: still so after all retries
        └── ServerFailed       everything else
"""

import httpx
import msgspec

from daguerre.answers import Problem, Told
from daguerre.errors import FieldError


class ClientError(Exception):
    """The root."""


class BadAddress(ClientError):
    """A server's address looks like http://127.0.0.1:8000."""

    def __init__(self) -> None:
        super().__init__((self.__doc__ or "").strip())


class Unreachable(ClientError):
    """The server cannot be reached."""


class BadAnswer(ClientError):
    """What answers there is no Daguerre server."""


class Unfinished(ClientError):
    """The job has no picture yet."""


class JobEnded(ClientError):
    """The job ended without a picture."""

    def __init__(self, job_id: str | None, why: Told) -> None:
        super().__init__(why.message)
        self.job_id = job_id
        self.code = why.code


class JobFailed(JobEnded):
    """The job could not be painted."""


class JobCancelled(JobEnded):
    """The job was called off."""


class Refused(ClientError):
    """The server's answer is a problem: its ``status``, ``code``, ``errors`` by field, and its ``request_id``.

    ``retry_after``: seconds that the server asks to wait; 0 where it does not say.
    """

    def __init__(self, problem: Problem, retry_after: float = 0.0) -> None:
        super().__init__(problem.detail)
        self.status = problem.status
        self.code = problem.code
        self.errors: tuple[FieldError, ...] = problem.errors
        self.request_id = problem.request_id
        self.retry_after = retry_after


class InvalidRequest(Refused):
    """The request cannot be served as it was sent."""


class NotAllowed(Refused):
    """The key is missing or wrong, or does not reach so far."""


class NotThere(Refused):
    """There is nothing of that name, or no longer."""


class Conflict(Refused):
    """The thing is in a state in which this cannot be done."""


class Busy(Refused):
    """The server could not take this, however often it was asked."""


class ServerFailed(Refused):
    """Something went wrong at the server."""


_KINDS: dict[int, type[Refused]] = {
    **dict.fromkeys((400, 405, 406, 408, 413, 415, 422), InvalidRequest),
    **dict.fromkeys((401, 403), NotAllowed),
    **dict.fromkeys((404, 410), NotThere),
    409: Conflict,
    **dict.fromkeys((429, 503), Busy),
}


def refusal(response: httpx.Response) -> Refused:
    """The error that an answer tells, also where something between here and the server has told it."""
    try:
        problem = msgspec.json.decode(response.content, type=Problem)
    except msgspec.DecodeError:
        detail = f"the server answered {response.status_code}"
        problem = Problem("about:blank", response.reason_phrase, response.status_code, detail, "", "")
    told = response.headers.get("retry-after", "")
    seconds = float(told) if told.isascii() and told.isdigit() else 0.0  # or a date, which ours never sends
    return _KINDS.get(response.status_code, ServerFailed)(problem, seconds)
