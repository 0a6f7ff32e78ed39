"""One operation of a command, with a reactor around it: its exit status, its log, what fails, and signals."""

from __future__ import annotations

import os
import signal
from abc import ABC, abstractmethod
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from socketmap_memcache.commands.map_console import Console

_LEVELS = [LogLevel.warn, LogLevel.info, LogLevel.debug]


@implementer(ILogObserver)
class LogPrinter:
    """Prints what tables log: warnings, or more."""

    def __init__(self, console: Console, verbose: int) -> None:
        """:param verbose: 0 for warnings and errors, 1 for information too, 2 for everything."""
        self._console = console
        self._least = _LEVELS[min(verbose, 2)]

    def __call__(self, event: LogEvent) -> None:
        """Print an event."""
        level = event.get("log_level", LogLevel.info)
        if level < self._least:
            return
        text = formatEvent(event)
        failure = event.get("log_failure")
        if isinstance(failure, Failure):
            text = f"{text}: {failure.getErrorMessage()}"
        self._console.log("warning" if level is LogLevel.warn else level.name, text)


class Operation(ABC):
    """Runs to its end. A subclass says what it is."""

    def __init__(self, console: Console, reactor: Any) -> None:
        """Begin nothing."""
        self._console = console
        self._reactor = reactor
        self._status = 1
        self._signal = 0
        self._failure: Failure | None = None

    @abstractmethod
    def _operate(self) -> Deferred[int]:
        """Do it; fires with the exit status."""

    @abstractmethod
    def _take_no_more(self) -> None:
        """Begin no more changes; called by a signal, at any moment."""

    @abstractmethod
    def _explain(self, failure: Failure) -> bool:
        """Print what has failed; give whether that was foreseen."""

    @abstractmethod
    def _close(self) -> None:
        """Close what was opened."""

    def _run(self, verbose: int, changes: bool) -> int:
        """Run to the end, and return the exit status; a signal ends the process as signals do.

        :param verbose: see :class:`LogPrinter`.
        :param changes: whether a signal lets what was begun be finished, so that no file is left half written.
        """
        observer = LogPrinter(self._console, verbose)
        handler: Any = self._interrupt if changes else signal.SIG_DFL
        globalLogPublisher.addObserver(observer)
        former = [(number, signal.signal(number, handler)) for number in (signal.SIGINT, signal.SIGTERM)]
        try:
            self._reactor.callWhenRunning(self._start)
            self._reactor.run(installSignalHandlers=False)
        finally:
            for number, before in former:
                signal.signal(number, before)
            globalLogPublisher.removeObserver(observer)
        if self._failure is not None:
            self._failure.raiseException()
        return self._status

    def _interrupt(self, number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)  # somebody who insists is obeyed
        self._signal = number
        self._take_no_more()

    def _start(self) -> None:
        maybeDeferred(self._operate).addCallbacks(self._end, self._fail).addBoth(lambda _: self._stop())

    def _end(self, status: int) -> None:
        self._status = status

    def _fail(self, failure: Failure) -> None:
        if failure.check(BrokenPipeError):
            self._status = 128 + signal.SIGPIPE  # whoever reads the output has enough
        elif not self._explain(failure):
            self._failure = failure

    def _stop(self) -> None:
        self._console.clear()
        self._close()
        if self._signal:
            # A thread may still wait for input, which must not hold up the end.
            os.kill(os.getpid(), self._signal)
        self._reactor.stop()
