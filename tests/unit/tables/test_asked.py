from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from zope.interface import implementer

from socketmap_memcache.tables.asked import lookup_for, update_for
from socketmap_memcache.tables.interface import ICursor, ITable


@implementer(ITable)
class Raising:
    """Raises, which a table should not do."""

    name = "raising"

    def lookup(self, key: bytes) -> Deferred[bytes | None]:
        raise ZeroDivisionError

    def update(self, key: bytes, value: bytes, ttl: int | None = None) -> Deferred[bool]:
        raise ZeroDivisionError

    def delete(self, key: bytes) -> Deferred[bool]:
        raise ZeroDivisionError

    def cursor(self) -> ICursor:
        raise ZeroDivisionError

    def close(self) -> None:
        pass


def test_raising() -> None:
    """Whoever asks a table that raises hears of a failure."""
    heard: list[tuple[object, str]] = []

    class Asker:
        def answered(self, value: object, token: str) -> None:
            raise AssertionError

        def failed(self, failure: Failure, token: str) -> None:
            heard.append((failure.type, token))

    table = Raising()
    lookup_for(table)(b"k", Asker(), "lookup")
    update_for(table)(b"k", b"v", None, Asker(), "update")
    assert heard == [(ZeroDivisionError, "lookup"), (ZeroDivisionError, "update")]
