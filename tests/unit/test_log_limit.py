from __future__ import annotations

from twisted.internet.task import Clock

from socketmap_memcache.log_limit import LogLimit


def test_limit() -> None:
    """The first is logged, and then one in each interval, with the number of those left out."""
    clock = Clock()
    limit = LogLimit(clock, 60)
    assert (limit.due(), limit.more()) == (True, "")
    assert [limit.due() for _ in range(3)] == [False] * 3
    clock.advance(59)
    assert not limit.due()
    clock.advance(1)
    assert (limit.due(), limit.more()) == (True, " (4 times more since this was last logged)")
    clock.advance(60)
    assert (limit.due(), limit.more()) == (True, "")


def test_several_lines() -> None:
    """Where several lines are allowed, the first so many are logged in each interval, counted from the first one."""
    clock = Clock()
    limit = LogLimit(clock, 60, lines=2)
    assert [limit.due() for _ in range(5)] == [True, True, False, False, False]
    clock.advance(60)
    assert (limit.due(), limit.more()) == (True, " (3 times more since this was last logged)")
    clock.advance(59)
    assert (limit.due(), limit.more()) == (True, "")
    assert not limit.due()
    clock.advance(1)
    assert (limit.due(), limit.more()) == (True, " (1 times more since this was last logged)")


def test_clock_set_back() -> None:
    """When the clock is set back, the time before which nothing is logged does not get longer."""
    clock = Clock()
    clock.advance(1000)
    limit = LogLimit(clock, 60)
    assert limit.due()
    clock.rightNow -= 500
    assert (limit.due(), limit.more()) == (True, "")
    assert not limit.due()
