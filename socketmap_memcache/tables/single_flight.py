"""One query, not a stampede."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure

#: Those who wait for a query, with the one who began it.
Waiters = list[Deferred[Any]]


class SingleFlight:
    """Lets all who ask for the same key at the same time share one query."""

    def __init__(self) -> None:
        """Begin with nothing under way."""
        self._flights: dict[bytes, Waiters] = {}

    def run(self, key: bytes, query: Callable[..., Deferred[Any]], *arguments: object) -> Deferred[Any]:
        """Share the query for this key that is under way, or begin one.

        :param query: called with the arguments where none is under way.
        :return: fires, or fails, as the query does; a result is handed to all, so it must not be changed. To cancel it
            does nothing to the query, for which others may wait.
        """
        result: Deferred[Any] = Deferred()
        waiters = self._flights.get(key)
        if waiters is not None:
            waiters.append(result)
            return result
        waiters = self._flights[key] = [result]
        try:
            answer = query(*arguments)
        except Exception:  # noqa: BLE001 (or those who ask from now on would wait for ever)
            answer = fail()
        answer.addBoth(self._land, key, waiters)
        return result

    def current(self, key: bytes) -> Waiters | None:
        """Give what identifies the query for this key that is under way and may be shared, if there is one."""
        return self._flights.get(key)

    def detach(self, key: bytes) -> None:
        """Let nobody else share the query under way: from now on its result may be out of date."""
        self._flights.pop(key, None)

    def _land(self, result: Any, key: bytes, waiters: Waiters) -> None:
        if self._flights.get(key) is waiters:
            del self._flights[key]
        for waiter in waiters:
            if isinstance(result, Failure):
                waiter.errback(result)
            else:
                waiter.callback(result)
