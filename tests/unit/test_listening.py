"""What a server does about the descriptors that its process may have."""

import subprocess
import sys

import pytest

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
