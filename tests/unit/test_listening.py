"""What a server does about the descriptors that its process may have."""

import asyncio
import errno
import os
import subprocess
import sys

import pytest
from starlette.requests import Request

from daguerre.http.failures import on_error

ROOM = """
import resource, sys
from daguerre.http.server import room_for
soft, hard, wanted = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
print(room_for(wanted), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "room", "limit"),
    [(1024, 4096, 100, 100, 1024), (1024, 4096, 2000, 2000, 2256), (300, 400, 10_000, 144, 400), (64, 128, 10, 1, 128)],
    ids=["enough", "raised", "bounded", "hardly any"],
)
def test_connections_leave_descriptors_to_the_rest(soft: int, hard: int, wanted: int, room: int, limit: int) -> None:
    """The limit is raised as far as it may be; where that is too little, there are fewer connections."""
    command = [sys.executable, "-c", ROOM, str(soft), str(hard), str(wanted)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(room), str(limit)]


def test_a_full_table_of_descriptors_is_no_mistake_of_ours() -> None:
    """Who asks meanwhile is told to come back."""
    error = OSError(errno.EMFILE, os.strerror(errno.EMFILE), "/a/path/of/ours")
    answer = asyncio.run(on_error(Request({"type": "http", "headers": []}), error))
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert b"/a/path" not in bytes(answer.body)
