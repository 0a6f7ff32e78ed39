"""``static:value``, the table that has every key."""

from __future__ import annotations

from twisted.internet import defer
from twisted.internet.defer import Deferred
from zope.interface import implementer

from socketmap_memcache.config.syntax import WHITESPACE, excerpt, strip_braces
from socketmap_memcache.errors import ConfigurationError, Problem
from socketmap_memcache.tables.folding import valid
from socketmap_memcache.tables.interface import ITable
from socketmap_memcache.tables.read_only import ReadOnlyTable
from socketmap_memcache.tables.registry import TableContext


def open_static(name: str, context: TableContext) -> StaticTable:  # noqa: ARG001
    """Open ``static:value`` or ``static:{ value with blanks }``; blanks next to the braces do not count.

    :raises ConfigurationError: nothing follows the colon, the braces do not enclose all of it, or it is not UTF-8
        (which Postfix notices at each look-up).
    """
    try:
        value = strip_braces(name).strip(WHITESPACE) if name.startswith("{") else name
    except ValueError as error:
        raise ConfigurationError([Problem(f"bad static:name syntax: {error}")]) from error
    encoded = value.encode(errors="surrogateescape")
    if not name:
        raise ConfigurationError([Problem("static: needs a value, for example static:all")])
    if not valid(encoded):
        raise ConfigurationError([Problem(f"the value of static:{excerpt(name)} is not UTF-8")])
    return StaticTable(f"static:{name}", encoded)


@implementer(ITable)
class StaticTable(ReadOnlyTable):
    """Has one value for every key that is UTF-8, also for the empty one."""

    def __init__(self, name: str, value: bytes) -> None:
        self.name = name
        self._value = value

    def lookup(self, key: bytes) -> Deferred[bytes | None]:
        """See :class:`ITable`."""
        return defer.succeed(self._value if valid(key) else None)

    def close(self) -> None:
        """See :class:`ITable`."""
