"""Keeps what may happen with each request from filling the log."""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime

#: Seconds between two lines about the same thing.
LOG_INTERVAL = 60.0


class LogLimit:
    """Says when to log something that happens again and again: the first time, and then once in a while."""

    def __init__(self, clock: IReactorTime, interval: float = LOG_INTERVAL, lines: int = 1) -> None:
        """Have nothing omitted yet.

        :param interval: seconds, from the first line on, in which there are no more than ``lines``.
        """
        self._clock = clock
        self._interval = interval
        self._lines = lines
        self._left = 0
        self._next = clock.seconds()
        self._omitted = 0

    def due(self) -> bool:
        """Return whether to log it this time; then ask :meth:`more`, which begins to count again."""
        now = self._clock.seconds()
        if not 0 < self._next - now <= self._interval:  # more than that where the clock has been set back
            self._next = now + self._interval
            self._left = self._lines
        if not self._left:
            self._omitted += 1
            return False
        self._left -= 1
        return True

    def more(self) -> str:
        """Return what to add to the line: nothing, or how often it was not logged since the line before."""
        omitted, self._omitted = self._omitted, 0
        return f" ({omitted} times more since this was last logged)" if omitted else ""
