"""Several keys at once, of which the first that exists counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.python.failure import Failure

from socketmap_memcache.tables.interface import IBatchTable, ITable


def lookup_first(table: ITable, keys: Sequence[bytes]) -> Deferred[tuple[int, bytes] | None]:
    """Look up all keys at the same time; see :class:`IBatchTable`, which a table may provide to do it better."""
    if IBatchTable.providedBy(table):
        return table.lookup_first(keys)
    return DeferredList([table.lookup(key) for key in keys], consumeErrors=True).addCallback(first_of)


def first_of(answers: list[tuple[bool, Any]]) -> tuple[int, bytes] | Failure | None:
    """Give the place and the value of the first key that exists, or the failure of one before it.

    :param answers: of the keys in their order, as DeferredList gives them: a value, ``None``, or a Failure.
    """
    for place, (succeeded, answer) in enumerate(answers):
        if answer is not None:
            return (place, answer) if succeeded else answer
    return None
