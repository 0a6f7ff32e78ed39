from __future__ import annotations

from types import SimpleNamespace
from typing import Any, TypeVar, cast

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from socketmap_memcache.memcache.pool import ClientPool
from socketmap_memcache.tables.registry import TableContext

from .thread_clock import ThreadClock

T = TypeVar("T")


class StoreReactor(ThreadClock):
    """All that the tables of stores need to be opened and asked."""

    def result(self, answer: Deferred[T]) -> T:
        """Return the result, or raise the error."""
        results: list[Any] = []
        answer.addBoth(results.append)
        while not results:
            self.run_call()
        if isinstance(results[0], Failure):
            results[0].raiseException()
        return cast("T", results[0])

    def context(self) -> TableContext:
        return TableContext(clients=cast("ClientPool", SimpleNamespace(reactor=self)))
