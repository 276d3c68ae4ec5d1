"""How many pictures may be under way is what the device's memory has room for, as measured."""

import contextlib
from dataclasses import dataclass

from daguerre.engine.headroom import Headroom

SMALL, LARGE = ("demo", 64, 64), ("demo", 1024, 1024)


@dataclass
class Card:
    """A device of so many bytes, on which tensors are numbers."""

    size: int
    used: int = 0
    most: int = 0

    def allocated(self) -> int:
        """See `Gauge`."""
        return self.used

    def peak(self) -> int:
        """See `Gauge`."""
        return self.most

    def reset_peak(self) -> None:
        """See `Gauge`."""
        self.most = self.used

    def free(self) -> int:
        """See `Gauge`."""
        return self.size - self.used

    def take(self, held: int, passing: int = 0) -> None:
        """Some that stay, after some more that pass."""
        self.most = max(self.most, self.used + held + passing)
        self.used += held


def _begin(headroom: Headroom, card: Card, kind: tuple[str, int, int], held: int) -> None:
    with headroom.beginning(kind):
        card.take(held)


def test_pictures_begin_until_the_largest_forward_has_just_room() -> None:
    """Each holds 10 and a forward takes 50 for a moment: of 100, five may be under way."""
    card = Card(100)
    headroom = Headroom(card)
    _begin(headroom, card, LARGE, 10)
    with headroom.computing(LARGE):
        card.take(0, passing=50)
    under_way = [LARGE]
    while headroom.has_room(LARGE, under_way):
        _begin(headroom, card, LARGE, 10)
        under_way.append(LARGE)
    assert len(under_way) == 5


def test_what_is_not_known_may_begin() -> None:
    """Of a kind that was never painted nothing is known; those under way keep their room all the same."""
    card = Card(100, used=30)
    headroom = Headroom(card)
    with headroom.computing(LARGE):
        card.take(0, passing=60)
    assert headroom.has_room(SMALL, [])
    assert headroom.has_room(SMALL, [LARGE])
    card.take(20)
    assert not headroom.has_room(SMALL, [LARGE])
    assert headroom.has_room(SMALL, [SMALL])


def test_a_failed_forward_measures_nothing() -> None:
    """What was held when memory ran out says nothing of a smaller set."""
    card = Card(100)
    headroom = Headroom(card)
    with contextlib.suppress(MemoryError), headroom.computing(LARGE):
        card.take(0, passing=99)
        raise MemoryError
    card.take(50)
    assert headroom.has_room(LARGE, [LARGE])


def test_without_a_gauge_there_is_room() -> None:
    """On a CPU the number of runs is the bound."""
    headroom = Headroom(None)
    _begin(headroom, Card(1), LARGE, 10)
    assert headroom.has_room(LARGE, [LARGE] * 100)
