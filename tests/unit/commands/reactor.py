"""A reactor for commands, which runs one thing and does the work of threads at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.task import Clock
from twisted.python.failure import Failure


class Threads:
    """Does the work of threads at once."""

    def callInThreadWithCallback(
        self, done: Callable[[bool, Any], None], work: Callable[..., Any], *arguments: Any
    ) -> None:
        try:
            answer = work(*arguments)
        except OSError:
            done(False, Failure())
        else:
            done(True, answer)


class Reactor(Clock):
    """Runs one thing."""

    def __init__(self) -> None:
        super().__init__()
        self.running = False
        self._first: Callable[[], object]

    def getThreadPool(self) -> Threads:
        return Threads()

    def callFromThread(self, call: Callable[..., object], *arguments: Any) -> None:
        call(*arguments)

    def installNameResolver(self, resolver: object) -> None:
        pass

    def callWhenRunning(self, call: Callable[..., object], *arguments: Any) -> None:
        self._first = lambda: call(*arguments)

    def run(self, installSignalHandlers: bool) -> None:
        assert not installSignalHandlers
        self.running = True
        self._first()
        assert not self.running

    def stop(self) -> None:
        self.running = False
