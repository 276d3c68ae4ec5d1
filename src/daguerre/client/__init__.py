"""The client: a Daguerre server from Python, as a blocking and as an asynchronous class with the same methods."""

from daguerre.client.asynchronous import AsyncClient
from daguerre.client.client import Client
from daguerre.client.errors import (
    BadAddress,
    BadAnswer,
    Busy,
    ClientError,
    Conflict,
    InvalidRequest,
    JobCancelled,
    JobEnded,
    JobFailed,
    NotAllowed,
    NotThere,
    Refused,
    ServerFailed,
    Unfinished,
    Unreachable,
)
from daguerre.client.protocol import Painting, Picture

__all__ = [
    "AsyncClient",
    "BadAddress",
    "BadAnswer",
    "Busy",
    "Client",
    "ClientError",
    "Conflict",
    "InvalidRequest",
    "JobCancelled",
    "JobEnded",
    "JobFailed",
    "NotAllowed",
    "NotThere",
    "Painting",
    "Picture",
    "Refused",
    "ServerFailed",
    "Unfinished",
    "Unreachable",
]
