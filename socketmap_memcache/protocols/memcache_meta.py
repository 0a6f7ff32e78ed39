"""The meta commands of memcached (doc/protocol.txt in its source) that leases need.

What 1.6.18 does, and the documentation does not say:

- The mark that a miss leaves behind (``N``) is a hit with an empty value to ``get``, and to ``mg`` one with ``Z``.
- A flag that the server does not know is ignored, not refused.
- ``ms`` refuses negative client flags, which ``set`` takes.
"""

from __future__ import annotations


def meta_get(key: bytes, lease_ttl: int, stale_ttl: int) -> bytes:
    """Encode a look-up that may win the lease of the key; the key must pass :func:`is_key` as for all commands here.

    :param lease_ttl: seconds for which the mark stays that takes the place of a missing value.
    :param stale_ttl: when a value has fewer seconds left, one look-up wins its lease; 0 for never.
    """
    recache = b" R%d" % stale_ttl if stale_ttl else b""
    return b"mg %b v k c N%d%b\r\n" % (key, lease_ttl, recache)


def meta_set(key: bytes, value: bytes, flags: int, ttl: int, cas: bytes) -> bytes:
    """Encode an update that is made only if the key has not been changed since ``cas`` was given out."""
    return b"ms %b %d C%b F%d T%d\r\n%b\r\n" % (key, len(value), cas, flags & 0xFFFFFFFF, ttl, value)


def meta_delete(key: bytes, cas: bytes) -> bytes:
    """Encode a delete that is done only if the key has not been changed since ``cas`` was given out."""
    return b"md %b C%b\r\n" % (key, cas)


def reply_flags(line: bytes) -> dict[bytes, bytes]:
    """Give the flags of a reply by their letters, each with its token, which may be empty.

    :param line: ``VA <size> <flags>``.
    """
    return {flag[:1]: flag[1:] for flag in line.split(b" ")[2:]}
