"""Death at each call that makes something durable: nothing accepted is lost, no picture is doubled, no file is left."""

import hashlib
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

HALF = Path(__file__).parent / "half.py"
DEATHS, CHUNKS = 1000, 20


def _live(folder: Path, number: int) -> tuple[int, list[list[str]]]:
    """A process's exit code, and the words of each line that it told."""
    done = subprocess.run(
        [sys.executable, str(HALF), str(folder), str(number)], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode, [line.split() for line in done.stdout.splitlines()]


def _jobs(told: list[list[str]]) -> dict[str, list[str]]:
    """Each finished job's seed, and its pictures with their hashes."""
    return {words[1]: words[2:] for words in told if words[0] == "done"}


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, list[str]]]:
    """How many deadly calls a whole life has, and by seed what its pictures are."""
    _, told = _live(tmp_path_factory.mktemp("calm"), 0)
    (calls,) = [int(words[1]) for words in told if words[0] == "calls"]
    hashes = {seed: [name.split(":")[1] for name in names] for seed, *names in _jobs(told).values()}
    assert len(hashes) == 6
    return calls, hashes


def _die_and_rise(folder: Path, number: int, hashes: dict[str, list[str]]) -> bool:
    """Whether the first life ended where it was told to; the second makes everything good."""
    code, first = _live(folder, number)
    _, second = _live(folder, 0)
    accepted = {words[2] for words in first if words[0] == "accepted"}
    jobs = _jobs(second)
    assert accepted <= jobs.keys()
    assert sorted(seed for seed, *_ in jobs.values()) == sorted(hashes)  # keys held: none twice, though all asked twice
    names = [name for _, *named in jobs.values() for name in named]
    for seed, *named in jobs.values():
        assert [name.split(":")[1] for name in named] == hashes[seed]
    for name in names:
        file, digest = name.split(":")
        assert hashlib.sha256((folder / "outputs" / file).read_bytes()).hexdigest() == digest
    assert sorted(path.name for path in (folder / "outputs").iterdir()) == sorted(name.split(":")[0] for name in names)
    return code == -signal.SIGKILL


@pytest.mark.parametrize("share", [0.1, 0.25, 0.4, 0.5, 0.6, 0.7, 0.8, 0.95])
def test_death_at_some_calls(tmp_path: Path, calm: tuple[int, dict[str, list[str]]], share: float) -> None:
    """From the first row to the last file."""
    calls, hashes = calm
    assert _die_and_rise(tmp_path, int(share * calls), hashes)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_death_at_every_call(tmp_path: Path, calm: tuple[int, dict[str, list[str]]], chunk: int) -> None:
    """Each once, and then at random until there were a thousand; threads make each life's order of calls its own."""
    calls, hashes = calm
    chance = random.Random(chunk)
    died = 0
    for turn in range(chunk, DEATHS, CHUNKS):
        number = 1 + turn if turn < calls else chance.randint(1, calls)
        died += _die_and_rise(tmp_path / str(turn), number, hashes)
    assert died > 0.9 * DEATHS / CHUNKS  # the last calls are not there in each life
