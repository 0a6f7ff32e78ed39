"""Keeps the process awake for a moment after something has come, as what comes next mostly comes at once."""

from __future__ import annotations

from typing import Any


class BusyPoll:
    """Lets the reactor look whether there is something, rather than sleep until there is, for a moment.

    A client that waits for each answer would let the process sleep twice in each look-up: until the cache has answered,
    and until the next question. To wake up takes longer than the look-up itself. The reactor does all that it does
    otherwise, timers and calls from threads included. Linux has the same for the network, ``net.core.busy_poll``.

    :ivar seconds: how long it looks without having found anything; 0 to sleep at once.
    :ivar heard: is set by whoever has read something that may have a sequel, and unset by whoever lets a thread work.
    """

    __slots__ = ("_now", "_sleep_time", "_until", "heard", "seconds")

    def __init__(self) -> None:
        """Begin without a reactor."""
        self.seconds = 0.0
        self.heard = False
        self._until = 0.0  # in reactor seconds; 0 when it may sleep

    def use(self, reactor: Any) -> None:
        """Look after a reactor of Twisted's: it asks its method ``timeout`` in each turn how long it may sleep.

        Idempotent.
        """
        if reactor.timeout != self.timeout:
            self._now = reactor.seconds
            self._sleep_time = reactor.timeout
            reactor.timeout = self.timeout

    def timeout(self) -> float | None:
        """Give the seconds that the reactor may sleep; ``None`` for as long as nothing happens."""
        if self.heard:
            self.heard = False
            if self.seconds:
                self._until = self._now() + self.seconds
                return 0.0
        elif self._until:
            if 0 < self._until - self._now() <= self.seconds:  # more where the clock has been set back
                return 0.0
            self._until = 0.0
        sleep_time: float | None = self._sleep_time()
        return sleep_time


#: There is one reactor, so there is one of these.
BUSY_POLL = BusyPoll()
