"""Owns the policy: which waiting calls go into the next forward, and which pictures begin first. Plain values only."""

from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

#: Rows of a forward; a set is padded up to the next.
BUCKETS = (1, 2, 4, 6, 8, 12, 16)
#: Seconds, and rounds in which all who wait could go once, that a call waits before it goes before all others: the
#: longer counts. So this costs at most one part in ROUNDS of the device.
PATIENCE = 2.0
ROUNDS = 24
#: Of so many beginnings, one is of the picture that has waited longest.
TURN = 16
#: Forwards that a change of place is thought to cost.
MOVE = 2.0
#: Rows per second that a larger bucket must bring over the next smaller one.
GAIN = 1.1
#: Forwards of a key after which a bucket that did not pay is tried again.
RETRY = 512
#: How much of a new measurement enters the known one, and how many times the known one it may be at most.
BLEND = 0.2
OUTLIER = 2.0
#: Seconds that a row is thought to take before anything was measured.
UNKNOWN = 0.03
#: What a clock too coarse for a forward is taken to have shown.
INSTANT = 1e-6
#: Keys that a curve remembers.
MAX_KEYS = 256
#: Seconds in which what a client has used counts for half.
HALF_LIFE = 60.0
#: Device-seconds that every client is granted on top when they are compared, so that small uses do not matter.
GRACE = 20.0
#: The power of a client's use, to an equal share, by which its work counts.
FAIRNESS = 3.0
#: Clients that are remembered before those who have used next to nothing are forgotten.
MAX_CLIENTS = 1024


def has_place(forwards: int, under_way: Collection[int], max_runs: int) -> bool:
    """Whether a picture with so many forwards to do may begin beside those under way, known by what they have left.

    A quarter of the places is kept for pictures that have less to do than any that is under way. Else as many long ones
    as there are places would make a short one wait for an end of theirs.
    """
    room = max_runs - len(under_way)
    return room > max_runs // 4 or (room > 0 and all(forwards < left for left in under_way))


def bucket(rows: int) -> int:
    """The smallest bucket that holds rows; above the largest, the rows themselves."""
    return next((size for size in BUCKETS if size >= rows), rows)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A call that waits for its forward."""

    run: Hashable  # whose call it is
    key: Hashable  # calls with equal keys may share a forward
    place: Hashable  # what must be in place for it: module and adapters; changing it costs
    rows: int  # 2 with classifier-free guidance, else 1, times what the pipeline paints at once
    forwards: int  # that its run still has to do, this one included
    since: float  # monotonic seconds at which it began to wait
    client: str = ""
    is_urgent: bool = False  # it goes before what is neither urgent nor starved


@dataclass(frozen=True, slots=True)
class Entrant:
    """A picture that has not begun."""

    run: Hashable
    key: Hashable  # a guess of what its calls will be like: where it is a tuple, the beginning of their keys
    forwards: int
    rows: int
    since: float
    client: str = ""
    is_urgent: bool = False


@dataclass(slots=True)
class Measured:
    """The seconds of one bucket's forwards; ``at`` is the key's forward that was measured last."""

    seconds: float
    at: int
    is_settled: bool = False

    def blend(self, seconds: float, at: int) -> None:
        """Takes one more measurement. The first of two may have been a warm-up: the quicker one counts."""
        if self.is_settled:
            self.seconds += BLEND * (min(seconds, OUTLIER * self.seconds) - self.seconds)
        else:
            self.seconds, self.is_settled = min(seconds, self.seconds), True
        self.at = at


class Known:
    """What is known of one key: its forwards so far, and what each bucket takes."""

    __slots__ = ("buckets", "forwards")

    def __init__(self) -> None:
        self.forwards = 0
        self.buckets: dict[int, Measured] = {}

    def record(self, size: int, seconds: float) -> None:
        """One more forward; a figure from long ago is not blended but replaced."""
        self.forwards += 1
        if size not in self.buckets or self._is_stale(size):
            self.buckets[size] = Measured(seconds, self.forwards)
        else:
            self.buckets[size].blend(seconds, self.forwards)

    def has_settled(self, size: int) -> bool:
        """Whether its seconds are more than a first impression."""
        return size in self.buckets and self.buckets[size].is_settled

    def is_impression(self) -> bool:
        """Whether nothing has settled yet."""
        return not any(measured.is_settled for measured in self.buckets.values())

    def rate(self, size: int) -> float:
        """Rows per second of a full bucket."""
        return size / self.buckets[size].seconds

    def climb(self, sizes: Sequence[int]) -> tuple[int, int] | None:
        """The bucket that pays best, and the one to fill up to, which is the next larger one while that is unknown."""
        settled = [size for size in sizes if self.has_settled(size)]
        if not settled:
            return None
        best = settled[0]
        for size in sizes[sizes.index(best) + 1 :]:
            if not self.has_settled(size):
                return best, size
            if self.rate(size) < GAIN * self.rate(best):
                return best, size if self._is_stale(size) else best
            best = size
        return best, best

    def _is_stale(self, size: int) -> bool:
        return self.forwards - self.buckets[size].at >= RETRY


class Curve:
    """What forwards take, by key and bucket, learned as they run; and from that, how many rows of a key pay.

    Keys are known by their ``repr``, so that a dump can be read by another process. A key that is a tuple is known by
    its beginnings too: what was never measured is guessed from the nearest that was.
    """

    def __init__(self) -> None:
        self._known: dict[str, Known] = {}
        self._limits: dict[str, int] = {}  # rows that fit into memory
        self._guesses: dict[str, Measured] = {}  # the seconds of a row, by a key's beginning

    @classmethod
    def load(cls, dumped: Mapping[str, Any]) -> Self:
        """The curve of a dump."""
        curve = cls()
        for name, buckets in dumped["seconds"].items():
            known = curve._known[name] = Known()
            known.buckets = {int(size): Measured(float(seconds), 0, True) for size, seconds in buckets.items()}
        curve._limits = {name: int(rows) for name, rows in dumped["limits"].items()}
        curve._guesses = {name: Measured(float(seconds), 0, True) for name, seconds in dumped["guesses"].items()}
        return curve

    def dump(self) -> dict[str, Any]:
        """What it knows, as JSON can hold it; first impressions are left out."""
        seconds = {
            name: {str(size): known.buckets[size].seconds for size in known.buckets if known.has_settled(size)}
            for name, known in self._known.items()
        }
        return {
            "seconds": {name: buckets for name, buckets in seconds.items() if buckets},
            "limits": dict(self._limits),
            "guesses": {name: guess.seconds for name, guess in self._guesses.items() if guess.is_settled},
        }

    def record(self, key: Hashable, rows: int, seconds: float) -> None:
        """A forward of so many rows took so long."""
        name, size, seconds = repr(key), bucket(rows), max(seconds, INSTANT)
        known = self._known.pop(name, None) or Known()
        known.record(size, seconds)
        self._known[name] = known  # now the last: the first is the one unused for longest
        for beginning in _beginnings(key):
            guess = self._guesses.pop(beginning, None)
            if guess is not None:
                guess.blend(seconds / size, 0)
            self._guesses[beginning] = guess or Measured(seconds / size, 0)
        self._forget()

    def limit(self, key: Hashable, rows: int) -> None:
        """So many rows did not fit into memory: from now on, no more than the bucket below."""
        smaller = max((size for size in BUCKETS if size < rows), default=1)
        name = repr(key)
        self._limits[name] = min(smaller, self._limits.get(name, smaller))

    def cap(self, key: Hashable, max_rows: int = BUCKETS[-1]) -> int:
        """The rows that a set of this key may have; one call alone may always go."""
        return self._climb(repr(key), max_rows)[1]

    def row_seconds(self, key: Hashable, max_rows: int = BUCKETS[-1]) -> float:
        """The device time of one row in a set that pays best."""
        name = repr(key)
        best, _ = self._climb(name, max_rows)
        known = self._known.get(name)
        if known is not None and known.has_settled(best):
            return 1 / known.rate(best)
        guesses = (self._guesses.get(name) for name in (name, *_beginnings(key)))
        return next((guess.seconds for guess in guesses if guess is not None), UNKNOWN)

    def _climb(self, name: str, max_rows: int) -> tuple[int, int]:
        most = min(max_rows, self._limits.get(name, max_rows))
        known = self._known.get(name)
        sizes = [size for size in BUCKETS if size <= most]
        return (known and known.climb(sizes)) or (1, 1)

    def _forget(self) -> None:
        """Keys are dropped when there are too many: first those of whom there is no more than a first impression."""
        if len(self._known) > MAX_KEYS:
            oldest = next(iter(self._known))
            del self._known[next((name for name, known in self._known.items() if known.is_impression()), oldest)]
        while len(self._guesses) > MAX_KEYS:
            del self._guesses[next(iter(self._guesses))]


def _beginnings(key: Hashable) -> Iterator[str]:
    """The names of a key's beginnings, the longest first; the last, of length 0, stands for all keys."""
    length = len(key) if isinstance(key, tuple) else 1
    for end in range(length - 1, 0, -1):
        assert isinstance(key, tuple)
        yield repr(key[:end])
    yield "()"


class Shares:
    """What each client has used lately, in device-seconds that count for half after each half-life."""

    def __init__(self) -> None:
        self._uses: dict[str, tuple[float, float]] = {}  # device-seconds, and when they were that many

    def charge(self, client: str, seconds: float, now: float) -> None:
        """The client has used the device."""
        self._uses[client] = (self.use(client, now) + seconds, now)
        if len(self._uses) > MAX_CLIENTS:
            self._uses = {name: use for name, use in self._uses.items() if self.use(name, now) > GRACE / 100}

    def use(self, client: str, now: float) -> float:
        """Its decayed device-seconds."""
        seconds, then = self._uses.get(client, (0.0, now))
        return float(seconds * 0.5 ** (max(0.0, now - then) / HALF_LIFE))

    def weights(self, clients: Collection[str], now: float) -> dict[str, float]:
        """How many times each one's work counts: once at an equal share among these, more above it, less below."""
        uses = {client: GRACE + self.use(client, now) for client in clients}
        share = sum(uses.values()) / max(1, len(uses))
        return {client: (use / share) ** FAIRNESS for client, use in uses.items()}


class Scheduler:
    """Shortest remaining work first, within fair shares; nobody starves, and no time is spent waiting for more calls.

    What is urgent goes before all that is not, but for those that starve.

    A call costs the seconds of device time that its run still needs, times its client's weight, plus something where
    another place is needed. The cheapest leads; other calls of its key ride along, cheapest first, up to the rows that
    pay.

    The bound: a waiting call is *starved* once it has waited longer than the patience: ``patience`` seconds, or the
    device time of ROUNDS rounds in which everyone who waits goes once, whichever is longer. Starved calls go before all
    others, the longest waiting first. So only calls that began to wait before it can precede a starved call: each of
    these goes once and then waits anew, behind it, as does whoever comes later. **Between two forwards of a run there
    pass at most the patience, the forward under way when that ends, and one forward for each other run that was waiting
    when it began to wait**; fewer, as starved calls of one key go together. Shares and places do not change it.

    Pictures that have not begun are ordered by the same cost, but one of TURN beginnings is of the one that has waited
    longest: so there are at most TURN beginnings for each that came before it, and for itself.
    """

    def __init__(self, *, patience: float = PATIENCE, max_rows: int = BUCKETS[-1], curve: Curve | None = None) -> None:
        self.curve = Curve() if curve is None else curve
        self._patience = patience
        self._max_rows = max_rows
        self._shares = Shares()
        self._place: Hashable = None
        self._beginnings = 0

    def pick(self, waiting: Sequence[Waiting], now: float) -> list[Waiting]:
        """The calls of the next forward: at least one, all of one key."""
        assert waiting
        first, *others = self._ranked(waiting, now)
        cap, rows, picked = self.curve.cap(first.key, self._max_rows), first.rows, [first]
        for call in others:
            if rows + call.rows <= cap and call.key == first.key:
                picked.append(call)
                rows += call.rows
        self._place = first.place
        return picked

    def order(self, entrants: Sequence[Entrant], now: float) -> list[Entrant]:
        """Who begins first; asked for each beginning anew."""
        weights = self._shares.weights({entrant.client for entrant in entrants}, now)
        row_seconds = self._row_seconds(entrants)

        def cost(entrant: Entrant) -> tuple[bool, float]:
            seconds = entrant.forwards * entrant.rows * row_seconds[entrant.key]
            return not entrant.is_urgent, seconds * weights[entrant.client]

        ordered = sorted(entrants, key=cost)
        self._beginnings += bool(ordered)
        if self._beginnings % TURN == 0 and ordered:
            oldest = min(ordered, key=lambda entrant: entrant.since)
            ordered.remove(oldest)
            ordered.insert(0, oldest)
        return ordered

    def ran(self, picked: Sequence[Waiting], seconds: float, now: float) -> None:
        """A forward took so long: learns from it, and charges its clients by their rows."""
        rows = sum(call.rows for call in picked)
        self.curve.record(picked[0].key, rows, seconds)
        for call in picked:
            self._shares.charge(call.client, seconds * call.rows / rows, now)

    def ran_out_of_memory(self, key: Hashable, rows: int) -> None:
        """So many rows of this key did not fit: its sets stay below that, for ever."""
        self.curve.limit(key, rows)

    def _ranked(self, waiting: Sequence[Waiting], now: float) -> list[Waiting]:
        """Starved calls, the longest waiting first; then the others, the cheapest first."""
        weights = self._shares.weights({call.client for call in waiting}, now)
        row_seconds = self._row_seconds(waiting)
        one_round = sum(call.rows * row_seconds[call.key] for call in waiting)
        patience = max(self._patience, ROUNDS * one_round)

        def rank(call: Waiting) -> tuple[int, float]:
            if now - call.since > patience:
                return 0, call.since
            forward = call.rows * row_seconds[call.key]
            moves = MOVE if call.place != self._place else 0.0
            return 1 if call.is_urgent else 2, forward * (call.forwards * weights[call.client] + moves)

        return sorted(waiting, key=rank)

    def _row_seconds(self, calls: Sequence[Waiting] | Sequence[Entrant]) -> dict[Hashable, float]:
        return {key: self.curve.row_seconds(key, self._max_rows) for key in {call.key for call in calls}}
