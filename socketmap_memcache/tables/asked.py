"""Asks any table without a Deferred, where the table can be asked so."""

from __future__ import annotations

from typing import Any, cast
from typing import Protocol as Structure

from twisted.internet.defer import maybeDeferred

from socketmap_memcache.asker import Asker, tell
from socketmap_memcache.tables.interface import IAskedTable, ITable


class LookupFor(Structure):
    """:meth:`IAskedTable.lookup_for`, of any table."""

    def __call__(self, key: bytes, asker: Asker, token: Any, /) -> None:
        """Look up a key. It never raises: a table that does has failed."""


class UpdateFor(Structure):
    """:meth:`IAskedTable.update_for`, of any table."""

    def __call__(self, key: bytes, value: bytes, ttl: int | None, asker: Asker, token: Any, /) -> None:
        """Store a value. It never raises."""


def lookup_for(table: ITable) -> LookupFor:
    """Give the way to look up keys that takes the least time."""
    if IAskedTable.providedBy(table):
        return cast(LookupFor, table.lookup_for)

    def lookup(key: bytes, asker: Asker, token: Any) -> None:
        tell(maybeDeferred(table.lookup, key), asker, token)

    return lookup


def update_for(table: ITable) -> UpdateFor:
    """Give the way to store values that takes the least time."""
    if IAskedTable.providedBy(table):
        return cast(UpdateFor, table.update_for)

    def update(key: bytes, value: bytes, ttl: int | None, asker: Asker, token: Any) -> None:
        tell(maybeDeferred(table.update, key, value, ttl), asker, token)

    return update
