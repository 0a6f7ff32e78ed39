"""``fail:name``, the table that fails every look-up."""

from __future__ import annotations

from twisted.internet import defer
from twisted.internet.defer import Deferred
from zope.interface import implementer

from socketmap_memcache.errors import ConfigurationError, Problem, TemporaryError
from socketmap_memcache.tables.folding import valid
from socketmap_memcache.tables.interface import ITable
from socketmap_memcache.tables.read_only import ReadOnlyTable
from socketmap_memcache.tables.registry import TableContext


def open_fail(name: str, context: TableContext) -> FailTable:  # noqa: ARG001
    """Open ``fail:name``; the name only shows in logs.

    :raises ConfigurationError: the name is empty.
    """
    if not name:
        raise ConfigurationError([Problem("fail: needs a name, for example fail:maintenance")])
    return FailTable(f"fail:{name}")


@implementer(ITable)
class FailTable(ReadOnlyTable):
    """Fails with :class:`~socketmap_memcache.errors.TemporaryError`; a key that is not UTF-8 is missing."""

    def __init__(self, name: str) -> None:
        self.name = name

    def lookup(self, key: bytes) -> Deferred[bytes | None]:
        """See :class:`ITable`."""
        if not valid(key):
            return defer.succeed(None)
        return defer.fail(TemporaryError(f"{self.name}: this table fails every look-up"))

    def close(self) -> None:
        """See :class:`ITable`."""
