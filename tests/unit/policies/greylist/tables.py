"""A table that answers when the test says so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from socketmap_memcache.asker import Asker, tell
from socketmap_memcache.tables.interface import IAskedTable, ICursor, ITable
from socketmap_memcache.tables.read_only import ItemsCursor


@implementer(ITable)
class HeldTable:
    """Remembers what it is asked, and answers at once; or holds its answers back, or fails.

    :ivar held: the answers that are held back: the operation, a Deferred and what it is to fire with.
    """

    name = "held:table"

    def __init__(self, entries: dict[bytes, bytes] | None = None) -> None:
        self.entries = entries or {}
        self.ttls: dict[bytes, int | None] = {}
        self.asked: list[tuple[str, bytes]] = []
        self.holds: Sequence[str] = ()
        self.held: list[tuple[Deferred[object], object]] = []
        self.error: Exception | None = None
        self.fails: Sequence[str] = ("lookup", "update", "delete")
        self.takes = True
        self.closed = False

    def lookup(self, key: bytes) -> Deferred[bytes | None]:
        return self._answer("lookup", key, self.entries.get(key))

    def update(self, key: bytes, value: bytes, ttl: int | None = None) -> Deferred[bool]:
        self.entries[key] = value
        self.ttls[key] = ttl
        return self._answer("update", key, self.takes)

    def delete(self, key: bytes) -> Deferred[bool]:
        return self._answer("delete", key, self.entries.pop(key, None) is not None)

    def cursor(self) -> ICursor:
        return ItemsCursor(list(self.entries.items()))

    def close(self) -> None:
        assert not self.closed
        self.closed = True

    def release(self) -> None:
        """Give the answers that were held back."""
        held, self.held = self.held, []
        for answer, result in held:
            if isinstance(result, Exception):
                answer.errback(result)
            else:
                answer.callback(result)

    def _answer(self, operation: str, key: bytes, result: object) -> Deferred[Any]:
        assert not self.closed
        self.asked.append((operation, key))
        if self.error is not None and operation in self.fails:
            result = self.error
        if operation in self.holds:
            answer: Deferred[object] = Deferred()
            self.held.append((answer, result))
            return answer
        return fail(result) if isinstance(result, Exception) else succeed(result)


@implementer(IAskedTable)
class AskedTable(HeldTable):
    """A table that answers look-ups at once, without a Deferred."""

    def lookup_for(self, key: bytes, asker: Asker, token: Any) -> None:
        self.asked.append(("lookup_for", key))
        asker.answered(self.entries.get(key), token)

    def update_for(self, key: bytes, value: bytes, ttl: int | None, asker: Asker, token: Any) -> None:
        tell(self.update(key, value, ttl), asker, token)
