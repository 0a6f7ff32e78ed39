"""What the table has of triplets and of clients: postgrey's values.

Times are whole seconds since the epoch.
"""

from __future__ import annotations

import attrs

from socketmap_memcache.config.syntax import excerpt
from socketmap_memcache.errors import SocketmapMemcacheError

_MOST_DIGITS = 12


class RecordError(SocketmapMemcacheError):
    """A value in the table is not a record; the text shows it."""


@attrs.frozen
class Triplet:
    """A client, sender and recipient.

    :ivar first: when it was first seen; it has passed when ``last`` is the delay, or more, after that.
    :ivar last: when it was last seen.
    """

    first: int
    last: int


@attrs.frozen
class Client:
    """A client some of whose triplets have passed.

    :ivar count: how often that was counted.
    :ivar last: when it was last counted.
    """

    count: int
    last: int


def parse_triplet(value: bytes) -> Triplet:
    """Read ``first,last``.

    :raises RecordError: it is something else.
    """
    return Triplet(*_numbers(value))


def parse_client(value: bytes) -> Client:
    """Read ``count,last``.

    :raises RecordError: it is something else.
    """
    return Client(*_numbers(value))


def format_record(record: Triplet | Client) -> bytes:
    """Write a record as :func:`parse_triplet` and :func:`parse_client` read it."""
    if isinstance(record, Triplet):
        return b"%d,%d" % (record.first, record.last)
    return b"%d,%d" % (record.count, record.last)


def _numbers(value: bytes) -> tuple[int, int]:
    one, _, other = value.partition(b",")
    if not (one.isdigit() and other.isdigit() and len(one) <= _MOST_DIGITS and len(other) <= _MOST_DIGITS):
        raise RecordError(f"not a record: {excerpt(value)!r} (two numbers with a comma between them are)")
    return int(one), int(other)
