"""A clock whose time is set by the test, with calls from threads that the test waits for."""

from __future__ import annotations

from collections.abc import Callable
from queue import Queue
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from socketmap_memcache.tables.store_table import BREAK

PATIENCE = 20.0


class ThreadClock(Clock):
    """What a table with a store needs of a reactor."""

    def __init__(self) -> None:
        super().__init__()
        self.thread_calls: Queue[Callable[[], object]] = Queue()

    def callFromThread(self, function: Callable[..., object], *arguments: Any, **named: Any) -> None:
        self.thread_calls.put(lambda: function(*arguments, **named))

    def run_call(self) -> None:
        """Wait for the next call from a thread, and make it. The breaks of a walk are over at once."""
        soon = self.seconds() + BREAK
        if any(call.getTime() <= soon for call in self.getDelayedCalls()):
            self.advance(BREAK)
        self.thread_calls.get(timeout=PATIENCE)()

    def wait(self, answer: Deferred[Any]) -> None:
        """Make calls from threads until there is an answer."""
        while not answer.called:
            self.run_call()
