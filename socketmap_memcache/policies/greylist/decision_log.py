"""Writes lines about decisions to the log; many at once when there are many."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

#: Seconds that a line may have to wait for others.
PAUSE = 0.05

#: Lines of one pause that become an event each, at most. Above that (200 a second) they become one event together,
#: whose first line only has the time: an event takes as long as all the rest of a decision.
FEW = 10

#: Lines that wait, at most: a pause is long when the clock is set back, as no timer of Twisted's runs out until then.
MOST = 1000


class DecisionLog:
    """Collects lines for a moment, and logs them."""

    def __init__(self, reactor: Any, log: Logger) -> None:
        """:param log: what the lines come from."""
        self._reactor = reactor
        self._log = log
        self._lines: list[str] = []
        self._call: IDelayedCall | None = None

    def add(self, line: str) -> None:
        """Log a line, in a moment."""
        if self._call is None:
            self._call = self._reactor.callLater(PAUSE, self._write)
        self._lines.append(line)
        if len(self._lines) >= MOST:
            self.flush()

    def flush(self) -> None:
        """Log at once what waits."""
        if self._call is not None:
            self._call.cancel()
            self._write()

    def _write(self) -> None:
        lines, self._lines, self._call = self._lines, [], None
        for text in lines if len(lines) <= FEW else ["\n".join(lines)]:
            self._log.info("{text}", text=text)
