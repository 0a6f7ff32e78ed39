"""``memory:name``, a table in the memory of this process: gone at its end, and not seen by any other."""

from __future__ import annotations

from collections.abc import Iterator

from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from socketmap_memcache.clock import time_of_day
from socketmap_memcache.errors import TableError
from socketmap_memcache.memcache.interface import Limits
from socketmap_memcache.memcache.memory import MONTH, MemoryCache
from socketmap_memcache.tables.folding import normalize
from socketmap_memcache.tables.interface import ICursor, ITable, RefusedError, check_entry
from socketmap_memcache.tables.registry import TableContext

#: Bytes that a table may hold, about. What was used last stays.
SIZE_LIMIT = 64 * 1024 * 1024

_NO_LIMITS = Limits()  # a cache in memory has no use for them


def open_memory(name: str, context: TableContext) -> MemoryTable:
    """Open an empty table; the name only shows in logs. Two of the same name are two tables."""
    table = MemoryTable(f"memory:{name}", SIZE_LIMIT, context)
    context.apart.append(table.name)
    return table


@implementer(ITable)
class MemoryTable:
    """Supports all operations. An update without a ttl lives until there is no room for it."""

    def __init__(self, name: str, size_limit: int, context: TableContext) -> None:
        """Make an empty table.

        :param size_limit: how many bytes its entries may take, about.
        """
        self.name = name
        self._fold_keys = context.fold_keys
        self._seconds = time_of_day(context.reactor)
        self._entries = MemoryCache(name, size_limit, context.reactor)

    def lookup(self, key: bytes) -> Deferred[bytes | None]:
        """See :class:`ITable`."""
        normalized = normalize(key, self._fold_keys)
        return self._entries.get(normalized, _NO_LIMITS) if normalized else succeed(None)

    def update(self, key: bytes, value: bytes, ttl: int | None = None) -> Deferred[bool]:
        """See :class:`ITable`."""
        try:
            normalized = check_entry(self.name, key, value, ttl, self._fold_keys)
        except TableError:
            return fail()
        until = ttl or 0
        self._entries.set(normalized, value, 0, until if until <= MONTH else int(self._seconds()) + until, _NO_LIMITS)
        if self._entries.peek(normalized) is None:
            return fail(RefusedError(f"{self.name}: an entry of {len(key) + len(value)} bytes is too large"))
        return succeed(True)

    def delete(self, key: bytes) -> Deferred[bool]:
        """See :class:`ITable`."""
        normalized = normalize(key, self._fold_keys)
        return self._entries.delete(normalized, _NO_LIMITS) if normalized else succeed(False)

    def cursor(self) -> ICursor:
        """See :class:`ITable`."""
        return _Cursor(self._entries)

    def close(self) -> None:
        """See :class:`ITable`."""
        self._entries.close()


@implementer(ICursor)
class _Cursor:
    """Walks through the keys that there were when the walk began, and leaves out those that are gone."""

    def __init__(self, entries: MemoryCache) -> None:
        self._entries = entries
        self._keys: Iterator[bytes] = iter(entries.keys())

    def next(self) -> Deferred[tuple[bytes, bytes] | None]:
        """See :class:`ICursor`."""
        for key in self._keys:
            value = self._entries.peek(key)
            if value is not None:
                return succeed((key, value))
        return succeed(None)
