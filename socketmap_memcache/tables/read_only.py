"""What tables that cannot be changed have in common."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from socketmap_memcache.tables.interface import ICursor, IRefusing, ITable, ReadOnlyError


def refusal_of(table: ITable, operation: str) -> ReadOnlyError | None:
    """Return the error that a table is sure to fail with, if it can tell; see :class:`IRefusing`."""
    return table.refusal(operation) if IRefusing.providedBy(table) else None


@implementer(IRefusing)
class ReadOnlyTable:
    """The operations that a read-only table refuses."""

    name: str

    def update(self, key: bytes, value: bytes, ttl: int | None = None) -> Deferred[bool]:
        """Refuse; see :class:`ITable`."""
        return fail(self.refusal("update"))

    def delete(self, key: bytes) -> Deferred[bool]:
        """Refuse; see :class:`ITable`."""
        return fail(self.refusal("delete"))

    def cursor(self) -> ICursor:
        """Give a cursor that refuses; see :class:`ITable`."""
        return RefusingCursor(self.refusal("sequence"))

    def refusal(self, operation: str) -> ReadOnlyError:
        """Make the error of an operation: update, delete or sequence."""
        return ReadOnlyError(f"table {self.name}: {operation} operation is not supported")


@implementer(ICursor)
class ItemsCursor:
    """The walk through entries that are all in memory."""

    def __init__(self, items: Iterable[tuple[bytes, bytes]]) -> None:
        """:param items: a copy, if the table may change."""
        self._items: Iterator[tuple[bytes, bytes]] = iter(items)

    def next(self) -> Deferred[tuple[bytes, bytes] | None]:
        """Fire at once; see :class:`ICursor`."""
        return succeed(next(self._items, None))


@implementer(ICursor)
class RefusingCursor:
    """The walk through a table that has no order, or none that can be asked for."""

    def __init__(self, error: Exception) -> None:
        """:param error: why."""
        self._error = error

    def next(self) -> Deferred[tuple[bytes, bytes] | None]:
        """Fail; see :class:`ICursor`."""
        return fail(self._error)
