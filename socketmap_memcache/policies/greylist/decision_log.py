"""Writes lines about decisions to the log, many at once: an event for each would take as long as all the rest."""

from __future__ import annotations

from typing import Any

from twisted.logger import Logger


class DecisionLog:
    """Collects the lines of one turn of the reactor, which become one event."""

    def __init__(self, reactor: Any, log: Logger) -> None:
        """:param log: what the lines come from."""
        self._reactor = reactor
        self._log = log
        self._lines: list[str] = []

    def add(self, line: str) -> None:
        """Log a line, when the reactor has its turn."""
        if not self._lines:
            self._reactor.callLater(0, self._write)
        self._lines.append(line)

    def _write(self) -> None:
        lines, self._lines = self._lines, []
        self._log.info("{lines}", lines="\n".join(lines))
