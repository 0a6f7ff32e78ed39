from __future__ import annotations

import pytest

from socketmap_memcache.policies.greylist.deferrals import Deferrals

WINDOW, DELAY = 1000, 300


@pytest.fixture
def deferrals() -> Deferrals:
    return Deferrals(WINDOW, limit=3)


def test_forgetful_table(deferrals: Deferrals) -> None:
    """A triplet that the table has forgotten twice, after its delay, passes, and says since when it has waited."""
    assert [deferrals.add(b"k", now, DELAY) for now in (0, 100, 299)] == [None] * 3
    assert deferrals.add(b"k", 300, DELAY) is None
    assert deferrals.add(b"k", 301, DELAY) == 0
    assert deferrals.add(b"k", 1000, DELAY) == 0
    assert deferrals.add(b"other", 1000, DELAY) is None


def test_window(deferrals: Deferrals) -> None:
    """After the retry window a deferral is the first one again."""
    for now in (0, 500, 1001, 1200, 1301):
        assert deferrals.add(b"k", now, DELAY) is None
    assert deferrals.add(b"k", 1302, DELAY) == 1001


def test_clock_set_back(deferrals: Deferrals) -> None:
    """A deferral in the future is the first one again."""
    for now in (1000, 500, 800):
        assert deferrals.add(b"k", now, DELAY) is None
    assert deferrals.add(b"k", 801, DELAY) == 500


def test_clock_set_back_a_bit(deferrals: Deferrals) -> None:
    """A triplet that may pass does not before its delay."""
    for now in (0, 300, 301):
        deferrals.add(b"k", now, DELAY)
    assert deferrals.add(b"k", 299, DELAY) is None


def test_discard(deferrals: Deferrals) -> None:
    """A triplet that has passed begins anew; one that is not known may be discarded."""
    for now in (0, 300):
        deferrals.add(b"k", now, DELAY)
    deferrals.discard(b"k")
    deferrals.discard(b"k")
    assert deferrals.add(b"k", 301, DELAY) is None
    assert deferrals.add(b"k", 302, DELAY) is None


def test_limit(deferrals: Deferrals) -> None:
    """Those that were deferred first make room for others."""
    for now, key in enumerate((b"a", b"b", b"c", b"d")):
        deferrals.add(key, now, DELAY)
    assert len(deferrals) == 3
    assert deferrals.add(b"b", 400, DELAY) is None
    assert deferrals.add(b"b", 401, DELAY) == 1
    deferrals.add(b"a", 402, DELAY)
    deferrals.add(b"a", 800, DELAY)
    assert deferrals.add(b"a", 801, DELAY) == 402


def test_expiry(deferrals: Deferrals) -> None:
    """What is over makes room."""
    deferrals.add(b"a", 0, DELAY)
    deferrals.add(b"b", 1, DELAY)
    deferrals.add(b"c", 1001, DELAY)
    assert len(deferrals) == 2


def test_expiry_of_many() -> None:
    """When very many are over at once, room is made step by step, and they count no more meanwhile."""
    deferrals = Deferrals(WINDOW)
    for number in range(100):
        deferrals.add(b"%d" % number, 0, DELAY)
    assert deferrals.add(b"99", WINDOW + 1, DELAY) is None
    assert 50 < len(deferrals) < 100
    for _ in range(50):
        deferrals.add(b"99", WINDOW + 2, DELAY)
    assert len(deferrals) == 1
