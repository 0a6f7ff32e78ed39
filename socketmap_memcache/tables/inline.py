"""``inline:{ key = value, ... }``, the table that is written out where it is used."""

from __future__ import annotations

import re
from collections.abc import Iterator

from twisted.internet import defer
from twisted.internet.defer import Deferred
from zope.interface import implementer

from socketmap_memcache.config.syntax import WHITESPACE, excerpt, split_key, split_list, strip_braces
from socketmap_memcache.errors import ConfigurationError, Problem
from socketmap_memcache.tables.folding import normalize, valid
from socketmap_memcache.tables.interface import ICursor, ITable
from socketmap_memcache.tables.read_only import ItemsCursor, ReadOnlyTable
from socketmap_memcache.tables.registry import TableContext

_KEY_END = re.compile(rb"[\s=]")


def open_inline(name: str, context: TableContext, fold_keys: bool = True) -> InlineTable:
    """Open ``inline:{key=value, {key = value with blanks}, ...}``.

    :param fold_keys: whether upper and lower case are the same; Postfix's own programs all have it so, but for the
        tables in a list of domains.
    :raises ConfigurationError: for what Postfix refuses: no braces, a pair without ``=``, an empty table, not UTF-8.
    """
    fold_keys = fold_keys and context.fold_keys
    try:
        entries = dict(_pairs(name, fold_keys))
    except ValueError as error:
        problem = Problem(f'{error}: "inline:{excerpt(name)}"; need "inline:{{name=value...}}"')
        raise ConfigurationError([problem]) from error
    return InlineTable(f"inline:{name}", entries, fold_keys)


def _pairs(name: str, fold_keys: bool) -> Iterator[tuple[bytes, bytes]]:
    if not valid(name.encode(errors="surrogateescape")):
        raise ValueError("bad UTF-8 syntax")
    if not name.startswith("{"):
        raise ValueError("bad syntax")
    words = split_list(strip_braces(name))
    if not words:
        raise ValueError("empty table")
    for word in words:
        pair = (strip_braces(word) if word.startswith("{") else word).strip(WHITESPACE)
        if not pair:
            raise ValueError("no key found; expected format: key = value")
        key, rest = split_key(pair.encode(), _KEY_END)
        before, equals, value = rest.partition(b"=")
        if not equals or before.strip():
            raise ValueError(f"missing '=' after {key.decode()!r}")
        yield normalize(key, fold_keys) or b"", value.strip()


@implementer(ITable)
class InlineTable(ReadOnlyTable):
    """Has the keys that its name says."""

    def __init__(self, name: str, entries: dict[bytes, bytes], fold_keys: bool) -> None:
        self.name = name
        self._entries = entries
        self._fold_keys = fold_keys

    def lookup(self, key: bytes) -> Deferred[bytes | None]:
        """See :class:`ITable`."""
        normalized = normalize(key, self._fold_keys)
        return defer.succeed(None if normalized is None else self._entries.get(normalized))

    def cursor(self) -> ICursor:
        """See :class:`ITable`."""
        return ItemsCursor(list(self._entries.items()))

    def close(self) -> None:
        """See :class:`ITable`."""
