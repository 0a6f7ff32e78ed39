from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from socketmap_memcache.tables.interface import ICursor, ReadOnlyError
from socketmap_memcache.tables.read_only import ItemsCursor, ReadOnlyTable


class Fixed(ReadOnlyTable):
    name = "fixed:x"


class TestReadOnly(SynchronousTestCase):
    def test_refusals(self) -> None:
        """Each change, and each step of a walk, is refused with the table and the operation."""
        table = Fixed()
        cursor = table.cursor()
        verifyObject(ICursor, cursor)
        refused: dict[str, list[Deferred[Any]]] = {
            "update": [table.update(b"k", b"v"), table.update(b"k", b"v", ttl=1)],
            "delete": [table.delete(b"k")],
            "sequence": [cursor.next(), cursor.next()],
        }
        for operation, answers in refused.items():
            for answer in answers:
                error = self.failureResultOf(answer, ReadOnlyError)
                assert error.getErrorMessage() == f"table fixed:x: {operation} operation is not supported"

    def test_items(self) -> None:
        """The walk through items gives each, and then nothing, however often it is asked."""
        cursor = ItemsCursor({b"a": b"1", b"b": b"2"}.items())
        verifyObject(ICursor, cursor)
        walked = [self.successResultOf(cursor.next()) for _ in range(4)]
        assert walked == [(b"a", b"1"), (b"b", b"2"), None, None]
