"""The policy keeps its promises: sets that can share a forward, short before long, fair shares, and nobody starves."""

import json
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from benchmarks.simulate import DEVICES, FORWARD, SHORT, Device, Job, Ours, mixed, replay
from hypothesis import given, settings
from hypothesis import strategies as st

from daguerre.engine import scheduler as policy
from daguerre.engine.scheduler import BUCKETS, Curve, Entrant, Scheduler, Shares, Waiting, bucket

KEY = ("model", 512, 512, "call")

calls = st.lists(
    st.builds(
        Waiting,
        run=st.integers(),
        key=st.sampled_from([KEY, ("model", 512, 768, "call"), "other", 7]),
        place=st.sampled_from(["here", "there"]),
        rows=st.sampled_from([1, 2, 3, 4, 24]),
        forwards=st.integers(1, 60),
        since=st.floats(0, 100),
        client=st.sampled_from(["", "ada", "bob"]),
    ),
    min_size=1,
    max_size=20,
)


def call(run: str = "run", forwards: int = 10, **others: object) -> Waiting:
    """A waiting call of one row."""
    return replace(Waiting(run, KEY, "here", 1, forwards, since=0.0), **others)


def learn(
    curve: Curve, seconds: Callable[[int], float], forwards: int = 60, key: object = KEY, offered: int = 16
) -> int:
    """As many forwards as may be, each as large as the cap allows; gives the cap that they lead to."""
    for _ in range(forwards):
        rows = min(offered, curve.cap(key))
        curve.record(key, rows, seconds(bucket(rows)))
    return curve.cap(key)


def test_buckets() -> None:
    """The smallest that holds the rows; above the largest, the rows themselves."""
    assert [bucket(rows) for rows in (1, 2, 3, 5, 7, 9, 16, 17)] == [1, 2, 4, 6, 8, 12, 16, 17]


@given(calls, st.floats(0, 200), st.lists(st.tuples(st.integers(1, 24), st.floats(0, 10)), max_size=30))
@settings(deadline=None)
def test_a_set_can_share_a_forward(waiting: list[Waiting], now: float, past: list[tuple[int, float]]) -> None:
    """Never empty, nobody twice, one key, and no more rows than the key's cap, but for a call alone."""
    scheduler = Scheduler()
    for rows, seconds in past:
        scheduler.ran([call(rows=rows)], seconds, now)
    picked = scheduler.pick(waiting, now)
    assert picked
    assert len({id(call) for call in picked}) == len(picked)
    assert all(any(call is one for one in waiting) for call in picked)
    assert len({call.key for call in picked}) == 1
    cap = scheduler.curve.cap(picked[0].key)
    assert 1 <= cap <= BUCKETS[-1]
    assert len(picked) == 1 or sum(call.rows for call in picked) <= cap


@given(calls, st.integers(0, 2**32))
@settings(deadline=None)
def test_the_same_past_leads_to_the_same_choice(waiting: list[Waiting], seed: int) -> None:
    """There is no chance and no clock in it."""

    def choices() -> list[list[Waiting]]:
        scheduler, dice, now, chosen = Scheduler(), random.Random(seed), 0.0, []
        for _ in range(10):
            chosen.append(scheduler.pick(waiting, now))
            seconds = dice.random()
            now += seconds
            scheduler.ran(chosen[-1], seconds, now)
        return chosen

    assert choices() == choices()


def test_short_before_long() -> None:
    """Whoever has fewer forwards left goes first; so does the picture that needs fewer."""
    scheduler = Scheduler()
    assert scheduler.pick([call("long", 50), call("short", 4)], 1.0)[0].run == "short"
    entrants = [Entrant(forwards, KEY[:3], forwards, 1, since=0.0) for forwards in (50, 4, 20)]
    assert [entrant.run for entrant in scheduler.order(entrants, 1.0)] == [4, 20, 50]
    assert scheduler.order([], 1.0) == []


def test_work_is_measured_in_seconds() -> None:
    """Four slow forwards are more work than ten quick ones, also for pictures that have not begun."""
    scheduler = Scheduler()
    slow = ("large", 1024, 1024, "call")
    for _ in range(4):
        scheduler.ran([call()], 0.1, 1.0)
        scheduler.ran([call(key=slow)], 1.0, 1.0)
    assert scheduler.pick([call("slow", 4, key=slow), call("quick", 10)], 1.0)[0].run == "quick"
    entrants = [Entrant("slow", slow[:3], 4, 1, since=0.0), Entrant("quick", KEY[:3], 10, 1, since=0.0)]
    assert scheduler.order(entrants, 1.0)[0].run == "quick"


def test_what_is_in_place_goes_first_at_comparable_work() -> None:
    """Another place costs a little: it yields to nearly equal work, not to much more."""
    scheduler = Scheduler()
    scheduler.pick([call(place="here")], 0.0)
    assert scheduler.pick([call("there", 9, place="there"), call("here", 10)], 1.0)[0].run == "here"
    assert scheduler.pick([call("there", 4, place="there"), call("here", 10)], 1.0)[0].run == "there"


def test_a_set_is_filled_in_the_order_of_cost() -> None:
    """The head leads, and the next shortest of its key ride along."""
    scheduler = Scheduler()
    assert learn(scheduler.curve, lambda _: 1.0, offered=4) > 4
    scheduler.curve.limit(KEY, 6)
    waiting = [call(str(n), n) for n in (9, 3, 7, 1, 5, 8)]
    assert [one.run for one in scheduler.pick(waiting, 1.0)] == ["1", "3", "5", "7"]


def test_the_cap_grows_where_it_pays() -> None:
    """Up to the largest bucket, or to where another step brings less than a tenth more."""
    assert learn(Curve(), lambda _: 1.0) == 16
    assert learn(Curve(), lambda rows: max(1.0, rows / 6)) == 6
    curve = Curve()
    learn(curve, lambda _: 1.0)
    assert curve.cap(KEY, max_rows=10) == 8


def test_the_cap_is_one_set_where_nothing_is_gained() -> None:
    """A forward that takes in proportion to its rows is not made slower for its head."""
    assert learn(Curve(), DEVICES["no gain"]) == 1
    curve = Curve()
    for _ in range(3):  # with classifier-free guidance a set has two rows
        curve.record(KEY, 2, 0.2)
    assert curve.cap(KEY) == 4
    for _ in range(3):
        curve.record(KEY, 4, 0.4)
    assert curve.cap(KEY) == 2


def test_the_cap_shrinks_when_it_no_longer_pays() -> None:
    """What was quick and is slow now is noticed."""
    curve = Curve()
    assert learn(curve, lambda _: 1.0) == 16
    assert learn(curve, lambda rows: float(rows), forwards=100) == 1


def test_a_warm_up_does_not_fix_the_cap() -> None:
    """The first forward of each bucket may take a hundred times as long."""
    seen: set[int] = set()

    def seconds(rows: int) -> float:
        is_first = rows not in seen
        seen.add(rows)
        return 100.0 if is_first else 1.0

    assert learn(Curve(), seconds) == 16


def test_a_bucket_that_was_unlucky_is_tried_again() -> None:
    """Two slow forwards keep the cap low for a while, not for ever; and trying again takes few forwards."""
    curve = Curve()
    unlucky = iter([1.0, 1.0, 30.0, 30.0])
    assert learn(curve, lambda _: next(unlucky), forwards=4) == 1
    assert learn(curve, lambda _: 1.0, forwards=policy.RETRY + 40) == 16
    sizes = []
    for _ in range(4 * policy.RETRY):
        sizes.append(curve.cap("flat"))
        curve.record("flat", sizes[-1], float(sizes[-1]))
    assert sum(size > 1 for size in sizes) < len(sizes) / 100


@given(st.lists(st.tuples(st.integers(1, 24), st.floats(1e-4, 10)), max_size=60), st.integers(1, 24))
@settings(deadline=None)
def test_what_did_not_fit_is_never_tried_again(past: list[tuple[int, float]], rows: int) -> None:
    """Neither later forwards nor a new process raise the cap; one row is always allowed."""
    scheduler = Scheduler()
    scheduler.ran_out_of_memory(KEY, rows)
    scheduler.ran_out_of_memory(KEY, 24)
    for size, seconds in past:
        scheduler.ran([call(rows=size)], seconds, 0.0)
        assert scheduler.curve.cap(KEY) < max(2, rows)
    again = Curve.load(json.loads(json.dumps(scheduler.curve.dump())))
    learn(again, lambda _: 1.0)
    assert again.cap(KEY) < max(2, rows)


def test_a_curve_survives_on_disk() -> None:
    """A dump is JSON; what it gives back knows the same."""
    curve = Curve()
    learn(curve, lambda rows: 1.0 + rows / 4)
    again = Curve.load(json.loads(json.dumps(curve.dump())))
    assert again.dump() == curve.dump()
    assert again.cap(KEY) == curve.cap(KEY)
    assert again.row_seconds(KEY) == curve.row_seconds(KEY)


def test_a_curve_forgets() -> None:
    """Keys that come once do not drive out what is known of others, and do not pile up."""
    curve = Curve()
    learn(curve, lambda _: 0.5)
    for number in range(5 * policy.MAX_KEYS):
        curve.record(("model", 512, number, id(curve)), 1, 0.5)
    assert curve.cap(KEY) == 16
    assert max(len(known) for known in (curve._known, curve._guesses)) <= policy.MAX_KEYS
    assert len(curve.dump()["seconds"]) == 1


def test_who_has_used_more_yields() -> None:
    """At comparable work the client that has had less goes first; an hour later all is forgotten."""
    scheduler = Scheduler()
    for _ in range(10):
        scheduler.ran([call(client="many")], 5.0, 0.0)
    waiting = [call("many", 20, client="many"), call("few", 24, client="few")]
    assert scheduler.pick(waiting, 0.0)[0].run == "few"
    later = [replace(one, since=3600.0) for one in waiting]
    assert scheduler.pick(later, 3600.0)[0].run == "many"
    entrants = [Entrant(one.run, KEY[:3], one.forwards, 1, 0.0, one.client) for one in waiting]
    assert scheduler.order(entrants, 0.0)[0].run == "few"


def test_shares_halve_and_are_forgotten() -> None:
    """Uses decay by half in each half-life; clients who have used next to nothing are dropped."""
    shares = Shares()
    shares.charge("ada", 8.0, 0.0)
    assert shares.use("ada", 2 * policy.HALF_LIFE) == pytest.approx(2.0)
    assert shares.weights(["ada"], 0.0) == {"ada": 1.0}
    for number in range(3 * policy.MAX_CLIENTS):
        shares.charge(str(number), 0.1, 100.0 * number)
    assert len(shares._uses) <= policy.MAX_CLIENTS + 1


def test_a_forward_is_charged_by_rows() -> None:
    """Who brings three of four rows pays three quarters of the seconds."""
    scheduler = Scheduler()
    scheduler.ran([call(client="ada", rows=3), call(client="bob")], 4.0, 0.0)
    assert scheduler._shares.use("ada", 0.0) == pytest.approx(3.0)
    assert scheduler._shares.use("bob", 0.0) == pytest.approx(1.0)


@given(
    seed=st.integers(0, 2**32),
    keys=st.integers(1, 4),
    runs=st.integers(2, 10),
    patience=st.sampled_from([0.0, 0.5, 2.0]),
    has_gain=st.booleans(),
)
@settings(deadline=None, max_examples=40)
def test_nobody_starves(seed: int, keys: int, runs: int, patience: float, has_gain: bool) -> None:
    """Whatever comes, a call waits at most the patience, a forward, and one for each run that waited before it.

    The victim has more left than anybody, needs another place, and its client has used most; as soon as any other run
    ends, a shorter one of a random key and client takes its room.
    """
    dice, scheduler = random.Random(seed), Scheduler(patience=patience)
    seconds = DEVICES["gain 3.2" if has_gain else "no gain"]
    victim = call("victim", 10_000, key=0, place="there", client="victim")
    scheduler.ran([victim], 0.1, 0.0)
    present, now, longest = [victim], 0.0, 0.0
    before, slowest, patient = runs - 1, 0.0, 0.0
    for number in range(600):
        while len(present) < runs:
            name = f"{number}.{len(present)}"
            present.append(
                call(name, dice.randint(1, 4), key=dice.randrange(keys), since=now, client=dice.choice("abc"))
            )
        row_seconds = {one.key: scheduler.curve.row_seconds(one.key) for one in present}
        one_round = sum(row_seconds[one.key] for one in present)
        patient = max(patient, patience, policy.ROUNDS * one_round)
        picked = scheduler.pick(present, now)
        if any(one.run == "victim" for one in picked):
            longest = now - next(one.since for one in picked if one.run == "victim")
            assert longest <= patient + (1 + before) * slowest + 1e-9
            slowest, patient = 0.0, 0.0
        took = 0.05 * seconds(bucket(len(picked))) * dice.uniform(0.9, 1.1)
        slowest = max(slowest, took)
        now += took
        scheduler.ran(picked, took, now)
        done = {one.run for one in picked}
        present = [
            replace(one, forwards=one.forwards - 1, since=now) if one.run in done else one
            for one in present
            if one.forwards > 1 or one.run not in done
        ]
    waited = now - next(one.since for one in present if one.run == "victim")
    assert waited <= max(patient, patience) + (1 + before) * slowest + 1e-9


def test_the_longest_starved_goes_first() -> None:
    """Before all others, whatever they cost; others of its key may ride along."""
    scheduler = Scheduler(patience=2.0)
    waiting = [call("short", 1, since=99.0), call("old", 50, since=10.0), call("older", 60, since=9.0, place="there")]
    assert scheduler.pick(waiting, 100.0)[0].run == "older"


@given(st.integers(0, 5), st.sampled_from(["ada", "many"]))
def test_a_picture_is_not_overtaken_for_ever(before: int, client: str) -> None:
    """There are at most TURN beginnings for each that came before it and for itself, however short the newcomers."""
    scheduler = Scheduler()
    scheduler.ran([call(client="many")], 50.0, 0.0)
    present = [Entrant(number, KEY, 50, 1, float(number), client) for number in range(before + 1)]
    for number in range(policy.TURN * (before + 1)):
        present.append(Entrant(f"short {number}", KEY, 1, 1, 10.0 + number, "ada"))
        present.remove(scheduler.order(present, 10.0 + number)[0])
    assert all(entrant.run != before for entrant in present)


def test_short_jobs_are_far_better_off_than_in_a_line() -> None:
    """At load 0.9 without gain: ten times in the 95th percentile, and the long ones lose little."""
    seconds = mixed(DEVICES["no gain"], 0.9, seeds=(7,), jobs=300)
    assert seconds["FIFO"]["short_p95"] > 10 * seconds["ours"]["short_p95"]
    assert seconds["FIFO"]["long_mean"] > 0.8 * seconds["ours"]["long_mean"]


def test_gain_is_used() -> None:
    """Where a forward of eight rows costs little more than one, everybody is better off than in a line."""
    seconds = mixed(DEVICES["gain 3.2"], 0.9, seeds=(7,), jobs=300)
    for what in ("short_p95", "long_mean", "long_p95"):
        assert seconds["FIFO"][what] > 1.5 * seconds["ours"][what], what


def test_a_flood_does_not_drown_others() -> None:
    """A short job beside 50 long ones of another client waits for no more than a few of its own length."""
    trace = [Job(0.0, 50, "many") for _ in range(50)] + [Job(5.0 + 9 * n, SHORT, "few") for n in range(10)]
    ours = Ours(max_runs=64)
    replay(trace, Device(DEVICES["no gain"], random.Random(1)), ours.pick, ours.ran)
    worst = max(job.latency for job in trace if job.client == "few")
    assert worst < 4 * SHORT * FORWARD


@given(calls, st.floats(0, 200))
@settings(deadline=None)
def test_urgent_calls_lead_unless_another_starves(waiting: list[Waiting], now: float) -> None:
    """Whatever the others cost, and whoever asks; the bound on waiting stands above it."""
    urgent = call("urgent", forwards=60, since=now, is_urgent=True)
    first = Scheduler(patience=300.0).pick([*waiting, urgent], now)[0]
    assert first is urgent
    starved = call("starved", since=-1e6)
    assert Scheduler().pick([*waiting, urgent, starved], now)[0].since <= min(0.0, *(each.since for each in waiting))


def test_urgent_pictures_begin_first() -> None:
    """But for the turn of the one that has waited longest."""
    short = Entrant("short", KEY, forwards=1, rows=1, since=0.0)
    urgent = Entrant("urgent", KEY, forwards=60, rows=1, since=1.0, is_urgent=True)
    scheduler = Scheduler()
    firsts = [scheduler.order([short, urgent], 2.0)[0].run for _ in range(policy.TURN)]
    assert firsts == ["urgent"] * (policy.TURN - 1) + ["short"]
