from __future__ import annotations

import time
from unittest.mock import patch

from twisted.internet.selectreactor import SelectReactor
from twisted.internet.task import Clock

from socketmap_memcache.clock import time_of_day, use_steady_clock
from socketmap_memcache.memcache.memory import MemoryCache


def test_set_back() -> None:
    """When the time of day is set back, timers are due as before, and who asks for the time of day hears it."""
    reactor = SelectReactor()
    use_steady_clock(reactor)
    due: list[bool] = []
    reactor.callLater(5, due.append, True)
    now = time.monotonic()
    hour_ago = time.time() - 3600
    with patch("time.time", lambda: hour_ago), patch.object(reactor, "seconds", lambda: now + 5):
        reactor.runUntilCurrent()
    assert due == [True]
    assert abs(reactor.seconds() - time.monotonic()) < 1
    assert abs(time_of_day(reactor)() - time.time()) < 1
    reactor.disconnectAll()


def test_timers_run() -> None:
    """A reactor that has timers keeps its clock."""
    clock = Clock()
    clock.callLater(1, lambda: None)
    use_steady_clock(clock)
    assert time_of_day(clock) == clock.seconds
    clock.advance(1)


def test_until() -> None:
    """What is kept in memory until a time of day is kept so long by the steady clock."""
    clock = Clock()
    clock.time_of_day = lambda: 2_000_000_000.0  # type: ignore[attr-defined]
    cache = MemoryCache("memory:", 1000, clock)
    cache.put(b"key", b"value", 2_000_000_010)
    clock.advance(9)
    assert cache.peek(b"key") == b"value"
    clock.advance(1)
    assert cache.peek(b"key") is None
