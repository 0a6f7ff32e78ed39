"""Keeps what may happen with each request from filling the log."""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime

#: Seconds between two lines about the same thing.
LOG_INTERVAL = 60.0


class LogLimit:
    """Says when to log something that happens again and again: the first time, and then once in a while."""

    def __init__(self, clock: IReactorTime, interval: float = LOG_INTERVAL) -> None:
        """:param interval: seconds between two lines."""
        self._clock = clock
        self._interval = interval
        self._next = clock.seconds()
        self._omitted = 0

    def due(self) -> bool:
        """Return whether to log it this time; then ask :meth:`more`, which begins to count again."""
        now = self._clock.seconds()
        if 0 < self._next - now <= self._interval:  # more than that where the clock has been set back
            self._omitted += 1
            return False
        self._next = now + self._interval
        return True

    def more(self) -> str:
        """Return what to add to the line: nothing, or how often it was not logged since the line before."""
        omitted, self._omitted = self._omitted, 0
        return f" ({omitted} times more since this was last logged)" if omitted else ""
