"""Simulates a day's traffic on one device: short and long jobs under our policy, first come first served, and in turns.

No forward is computed: a clock of its own goes on by what each would take. Half of the jobs have 4 steps and half 50,
they come at random (Poisson), and ``load`` is what first-come-first-served could just bear: at 1 its queue would grow
without end. All policies get the same trace. Ours is driven as the engine drives it: pictures begin in `order` while
fewer than ``MAX_RUNS`` are under way, and each forward is what `pick` says; it is told nothing of the device but the
seconds that went by, which are noisy, and tenfold for the first forward of each bucket. ``in turns`` is what most
batching servers do: up to 8 jobs, in the order in which they came, step together.

The seeds here are for reporting; the policy's constants were chosen with others.
"""

import random
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.goals import Goal, judge, table
from daguerre.engine.scheduler import Entrant, Scheduler, Waiting, bucket, has_place

SEEDS = (201, 202, 203, 204, 205, 206)
JOBS = 800
LOADS = (0.6, 0.9)
SHORT, LONG = 4, 50
FORWARD = 0.1  # seconds for one row
MAX_RUNS = 16  # as the engine's
TURNS = 8  # jobs that take turns
NOISE = 0.05
WARM_UP = 10.0

#: Seconds of a forward, in those of one row. The gain of the first is 1.05 for eight rows, of the second 3.2.
DEVICES: dict[str, Callable[[int], float]] = {
    "no gain": lambda rows: rows * (1 - 0.05 / 1.05 * (min(rows, 8) - 1) / 7),
    "gain 3.2": lambda rows: (5.5 + 1.5 * rows) / 7 if rows <= 8 else rows / 3.2,
}

GOALS = (
    Goal("short jobs' p95, times better than FIFO, load 0.9, no gain", ("no gain, load 0.9", "short_p95"), 20, True),
    Goal("long jobs' p95, times better than FIFO, load 0.9, no gain", ("no gain, load 0.9", "long_p95"), 0.9, True),
    Goal("all jobs' mean, times better than FIFO, load 0.9, no gain", ("no gain, load 0.9", "all_mean"), 1.5, True),
    Goal("long jobs' p95, times better than FIFO, load 0.9, gain 3.2", ("gain 3.2, load 0.9", "long_p95"), 0.9, True),
    Goal("who sends now and then beside a flood: p95 to that without a flood", ("fairness", "to_alone"), 3),
)


@dataclass(slots=True, eq=False)
class Job:
    """A job of a trace: when it comes, what it has left to do, and when it was done."""

    came: float
    steps: int
    client: str = ""
    rows: int = 1
    left: int = 0
    since: float = 0.0  # it has waited for its next forward, or for its beginning
    done: float = 0.0
    longest: float = 0.0  # that it waited between two forwards

    def __post_init__(self) -> None:
        self.left, self.since = self.steps, self.came

    @property
    def latency(self) -> float:
        """Seconds from coming to being done."""
        return self.done - self.came


@dataclass(slots=True)
class Device:
    """Takes time: the curve's, with noise, and much more for the first forwards of a bucket."""

    curve: Callable[[int], float]
    noise: random.Random
    forward: float = FORWARD
    seen: dict[int, int] = field(default_factory=dict)
    forwards: int = 0

    def run(self, rows: int) -> float:
        """The seconds of a forward."""
        size = bucket(rows)
        self.forwards += 1
        self.seen[size] = self.seen.get(size, 0) + 1
        slow = WARM_UP if self.seen[size] == 1 else 1.0
        return self.forward * self.curve(size) * slow * self.noise.lognormvariate(0, NOISE)


#: Takes the jobs that have come and are not done, and the clock; gives those that go into the next forward.
Policy = Callable[[list[Job], float], list[Job]]


def replay(trace: Sequence[Job], device: Device, policy: Policy, ran: Callable[..., None] = lambda *_: None) -> None:
    """Runs a trace to its end."""
    coming = sorted(trace, key=lambda job: job.came)
    present: list[Job] = []
    now, at = 0.0, 0
    while at < len(coming) or present:
        if not present:
            now = max(now, coming[at].came)
        while at < len(coming) and coming[at].came <= now:
            present.append(coming[at])
            at += 1
        picked = policy(present, now)
        seconds = device.run(sum(job.rows for job in picked))
        for job in picked:
            job.longest = max(job.longest, now - job.since)
        now += seconds
        ran(picked, seconds, now)
        for job in picked:
            job.left, job.since = job.left - 1, now
            if job.left == 0:
                job.done = now
                present.remove(job)


def fifo(present: list[Job], now: float) -> list[Job]:  # noqa: ARG001
    """One job at a time."""
    return present[:1]


def in_turns(present: list[Job], now: float) -> list[Job]:  # noqa: ARG001
    """The first few jobs step together."""
    return present[:TURNS]


class Ours:
    """The engine's part around the real scheduler."""

    def __init__(self, max_runs: int = MAX_RUNS, scheduler: Scheduler | None = None) -> None:
        self.scheduler = scheduler or Scheduler()
        self._max_runs = max_runs
        self._running: dict[Job, None] = {}
        self._picked: list[Waiting] = []

    def pick(self, present: list[Job], now: float) -> list[Job]:
        """Begins jobs while there is room, and asks for a set."""
        self._running = {job: None for job in self._running if job.left}
        waiting = [job for job in present if job not in self._running]
        while waiting and len(self._running) < self._max_runs:
            entrants = [Entrant(job, ("model", 512), job.left, job.rows, job.since, job.client) for job in waiting]
            under_way = [job.left for job in self._running]
            order = self.scheduler.order(entrants, now)
            first: Any = next((one.run for one in order if has_place(one.forwards, under_way, self._max_runs)), None)
            if first is None:
                break
            waiting.remove(first)
            self._running[first] = None
            first.since = now
        calls = [
            Waiting(job, ("model", 512, "call"), "model", job.rows, job.left, job.since, job.client)
            for job in self._running
        ]
        self._picked = self.scheduler.pick(calls, now)
        jobs: list[Any] = [call.run for call in self._picked]
        return jobs

    def ran(self, picked: Sequence[Job], seconds: float, now: float) -> None:  # noqa: ARG002
        """Tells the scheduler."""
        self.scheduler.ran(self._picked, seconds, now)


def poisson(seed: int, load: float, jobs: int = JOBS, forward: float = FORWARD) -> list[Job]:
    """Half short and half long jobs, at a load that is relative to one job at a time."""
    dice = random.Random(seed)
    gap = forward * (SHORT + LONG) / 2 / load
    now, trace = 0.0, []
    for _ in range(jobs):
        now += dice.expovariate(1 / gap)
        trace.append(Job(now, dice.choice((SHORT, LONG))))
    return trace


def flood(seed: int, is_flooded: bool = True, forward: float = FORWARD) -> list[Job]:
    """One client sends 50 long jobs at once, and again whenever those could be done; another a short one now and then.

    "Now and then": once in what 40 long forwards take, with chance.
    """
    dice = random.Random(seed)
    span = 50 * LONG * forward
    many = [Job(span * turn, LONG, "many") for turn in range(4) for _ in range(50)] if is_flooded else []
    now, few = 0.0, []
    while now < 4 * span:
        now += dice.expovariate(1 / (40 * forward))
        few.append(Job(now, SHORT, "few"))
    return many + few


def p95(values: Iterable[float]) -> float:
    """The 95th percentile."""
    ordered = sorted(values)
    return ordered[int(0.95 * (len(ordered) - 1))]


def summary(jobs: Sequence[Job]) -> dict[str, float]:
    """Mean and 95th percentile of the latencies, in seconds."""
    short = [job.latency for job in jobs if job.steps == SHORT]
    long = [job.latency for job in jobs if job.steps == LONG]
    return {
        "short_mean": statistics.fmean(short),
        "short_p95": p95(short),
        "long_mean": statistics.fmean(long),
        "long_p95": p95(long),
        "all_mean": statistics.fmean(short + long),
    }


def simulate(name: str, curve: Callable[[int], float], trace: Sequence[Job], seed: int, max_runs: int) -> list[Job]:
    """The jobs of a trace after one policy has done them."""
    device = Device(curve, random.Random(seed))
    if name == "ours":
        ours = Ours(max_runs)
        replay(trace, device, ours.pick, ours.ran)
    else:
        replay(trace, device, {"FIFO": fifo, "in turns": in_turns}[name])
    return list(trace)


def mixed(
    curve: Callable[[int], float], load: float, seeds: Sequence[int] = SEEDS, jobs: int = JOBS
) -> dict[str, dict[str, float]]:
    """Each policy's figures over the traces of all seeds."""
    return {
        name: summary(
            [job for seed in seeds for job in simulate(name, curve, poisson(seed, load, jobs), seed, MAX_RUNS)]
        )
        for name in ("FIFO", "in turns", "ours")
    }


def fairness(seeds: Sequence[int] = SEEDS[:3]) -> dict[str, float]:
    """What a flood does to a client that sends now and then, on a device without gain: its 95th percentile in seconds.

    ``ours_with_room`` has room for the whole flood: what lies between is the waiting for a run to end.
    """
    cases = {
        "alone": ("ours", False, MAX_RUNS),
        "fifo": ("FIFO", True, MAX_RUNS),
        "ours": ("ours", True, MAX_RUNS),
        "ours_with_room": ("ours", True, 4 * MAX_RUNS),
    }
    p95s: dict[str, float] = {}
    for name, (policy, is_flooded, max_runs) in cases.items():
        runs = [simulate(policy, DEVICES["no gain"], flood(seed, is_flooded), seed, max_runs) for seed in seeds]
        p95s[name] = p95(job.latency for jobs in runs for job in jobs if job.client == "few")
    return p95s | {"to_alone": p95s["ours"] / p95s["alone"]}


def run() -> dict[str, Any]:
    """All figures: seconds for each policy, and under each case's name how many times better ours is than FIFO."""
    figures: dict[str, Any] = {"seconds": {}}
    for device, curve in DEVICES.items():
        for load in LOADS:
            seconds = figures["seconds"][f"{device}, load {load}"] = mixed(curve, load)
            figures[f"{device}, load {load}"] = {
                what: seconds["FIFO"][what] / seconds["ours"][what] for what in seconds["FIFO"]
            }
    figures["fairness"] = fairness()
    return figures


def show(figures: dict[str, Any]) -> str:
    """The figures as a table: seconds, and beside them how many times better than FIFO."""
    lines = [
        f"{'':20}{'':10}" + "".join(f"{what:>18}" for what in ("short mean", "short p95", "long mean", "long p95"))
    ]
    for case, policies in figures["seconds"].items():
        for name, seconds in policies.items():
            cells = [
                f"{seconds[what]:8.2f} {'(' + format(policies['FIFO'][what] / seconds[what], '.2f') + '×)':>9}"
                for what in ("short_mean", "short_p95", "long_mean", "long_p95")
            ]
            lines.append(f"{case:20}{name:10}" + "".join(cells))
    lines.append("short jobs now and then, p95: " + ", ".join(f"{k} {v:.2f}" for k, v in figures["fairness"].items()))
    return "\n".join(lines)


def main() -> None:
    """Prints the table and the goals."""
    figures = run()
    print(show(figures))
    print(table([judge(goal, figures) for goal in GOALS]))


if __name__ == "__main__":
    main()
