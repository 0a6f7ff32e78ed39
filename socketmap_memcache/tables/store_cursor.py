"""Walks through tables whose store blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, succeed
from zope.interface import implementer

from socketmap_memcache.tables.interface import ICursor
from socketmap_memcache.tables.store import Entry, Halfway, Kind

if TYPE_CHECKING:
    from socketmap_memcache.tables.store_table import StoreTable

#: Seconds after which a walk reads again what it has read ahead: other processes may have changed it.
READ_AHEAD_TIME = 1.0


@implementer(ICursor)
class StoreCursor:
    """Walks through a store in its order, by the key that came last: what is changed meanwhile does no harm.

    It reads some entries ahead, and reads them again if the table is changed, or a second has passed.
    """

    def __init__(self, table: StoreTable, seconds: Callable[[], float]) -> None:
        """Begin before the first entry.

        :param seconds: the time.
        """
        self._table = table
        self._seconds = seconds
        self._last = b""
        self._ahead: Iterator[Entry] = iter(())
        self._changes = 0  # of the table, when that was asked for
        self._until = 0.0  # when it is too old

    def next(self) -> Deferred[Entry | None]:
        """See :class:`ICursor`."""
        if self._changes == self._table.changes and self._seconds() < self._until:
            for entry in self._ahead:
                self._last = entry[0]
                return succeed(entry)
        self._changes = self._table.changes
        self._until = self._seconds() + READ_AHEAD_TIME
        self._ahead = iter(())
        return self.read(self._last).addCallback(self._take)

    def read(self, key: bytes) -> Deferred[list[Entry] | Halfway]:
        """Fire with the next entries after a key, none at the end; or with :class:`Halfway`."""
        return self._table.submit(Kind.AFTER, key)

    def _take(self, found: list[Entry] | Halfway) -> Any:
        if isinstance(found, Halfway):
            self._last = found.key
            return self._table.after_break(self.next)
        self._ahead = iter(found)
        for entry in self._ahead:
            self._last = entry[0]
            return entry
        return None
