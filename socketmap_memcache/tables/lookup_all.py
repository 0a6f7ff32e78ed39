"""Many keys at once, of which every answer counts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.python.failure import Failure

from socketmap_memcache.tables.interface import IBulkTable, ITable

#: A value; ``None`` for a key that does not exist; the failure of its look-up.
Answer = bytes | Failure | None


def lookup_all(table: ITable, keys: Sequence[bytes]) -> Deferred[list[Answer]]:
    """Look up all keys at the same time.

    :return: fires with the answers in the order of the keys, and never fails.
    """
    if IBulkTable.providedBy(table):
        return table.lookup_all(keys)
    return gather(table.lookup(key) for key in keys)


def gather(operations: Iterable[Deferred[Any]]) -> Deferred[list[Any]]:
    """Wait for operations, and fire with their results and failures."""
    return DeferredList(list(operations), consumeErrors=True).addCallback(
        lambda answers: [answer for _, answer in answers]
    )
