"""Two clocks: the reactor's, by which time passes evenly, and the time of day, which may be set back and forth."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def use_steady_clock(reactor: Any) -> None:
    """Let the reactor's timers, and all limits of time, go by a clock that is never set.

    Twisted's go by the time of day: when that is set back by an hour, what is due is due an hour later. Nothing is
    changed where timers run already, which would be lost.
    """
    if not reactor.getDelayedCalls():
        reactor.seconds = time.monotonic
        reactor.time_of_day = time.time


def time_of_day(reactor: Any) -> Callable[[], float]:
    """Give a function that returns the UNIX time: for what others read, or what is read after a restart.

    Where a reactor has not been given a steady clock, as in tests, it is that of the reactor itself.
    """
    clock: Callable[[], float] = getattr(reactor, "time_of_day", reactor.seconds)
    return clock
