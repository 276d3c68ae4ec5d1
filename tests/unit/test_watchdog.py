"""The watchdog ends a process whose step takes too long, and none that was itself stopped meanwhile."""

import signal
import subprocess
import sys
import time

BUDGET, STOPPED = 3.0, 6.0
#: Ends with 70 if a step, which lasts until a line comes, is found to take too long.
STEP = f"""
import os, sys
from daguerre.engine.watchdog import Watchdog
watchdog = Watchdog({BUDGET}, lambda: os._exit(70))
watchdog.start()
with watchdog.step():
    print("begun", flush=True)
    sys.stdin.readline()
"""


def _step() -> "subprocess.Popen[str]":
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", STEP], stdin=pipe, stdout=pipe, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


def test_a_step_that_hangs_is_seen() -> None:
    """It never comes to an end."""
    with _step() as process:
        assert process.wait(30) == 70


def test_a_process_that_was_stopped_does_not_hang() -> None:
    """By the clock its step took long, but it had no time."""
    with _step() as process:
        process.send_signal(signal.SIGSTOP)
        time.sleep(STOPPED)
        process.send_signal(signal.SIGCONT)
        time.sleep(1.0)  # the watchdog has looked
        process.communicate("\n", 30)
        assert process.returncode == 0
