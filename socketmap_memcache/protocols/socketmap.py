"""Payloads of the socketmap protocol, socketmap_table(5): ``<map> <key>`` asks, ``<status> <data>`` answers."""

from __future__ import annotations

from socketmap_memcache.errors import ProtocolError
from socketmap_memcache.protocols.netstring import encode

#: The largest reply payload, status word and blank included, that any Postfix reads. After a longer one Postfix stays
#: on the connection with the rest of it unread, and takes that rest for the answers to its next look-ups.
REPLY_LIMIT = 100_000

#: The largest request payload accepted. Postfix 3.12 sends keys of up to 10,000 bytes, older ones of any size.
REQUEST_LIMIT = 100_000

#: Postfix logs at most 200 bytes of a reason.
REASON_LIMIT = 200

#: The words that a reply may begin with.
STATUSES = frozenset({b"OK", b"NOTFOUND", b"TEMP", b"TIMEOUT", b"PERM"})

NOTFOUND = encode(b"NOTFOUND ")

_PRINTABLE = bytes(b if 0x20 <= b < 0x7F else 0x3F for b in range(256))


class SocketmapError(ProtocolError):
    """A netstring that is no request, or no reply, of this protocol; the connection can go on."""


def parse_request(payload: bytes) -> tuple[bytes, bytes]:
    """Split a request into map name and key.

    The key is all that follows the first blank, and may be empty; a map name has no blanks.

    :raises SocketmapError: there is no blank, or nothing before it.
    """
    name, blank, key = payload.partition(b" ")
    if not blank:
        raise SocketmapError("request has no blank between map name and key")
    if not name:
        raise SocketmapError("request has no map name")
    return name, key


def request(name: bytes, key: bytes) -> bytes:
    """Encode the question for a key.

    :param name: of the map; may be empty.
    """
    return encode(b"%b %b" % (name, key))


def parse_reply(payload: bytes) -> tuple[bytes, bytes]:
    """Split a reply into its status, one of :data:`STATUSES`, and the data or reason that may follow.

    ``OK`` alone is a key with an empty value, as for Postfix since 3.9.14, 3.10.13 and 3.11.6 (before: a missing key).

    :raises SocketmapError: another status, or none.
    """
    status, _, text = payload.partition(b" ")
    if status not in STATUSES:
        shown = status[:30].translate(_PRINTABLE).decode()
        raise SocketmapError(f"unknown status {shown!r} in a reply")
    return status, text


def found(value: bytes) -> bytes:
    """Encode the answer that the key exists.

    :param value: any bytes; Postfix reads up to the first NUL.
    :return: the reply, or a permanent error where the value is too long for a reply.
    """
    if len(value) > REPLY_LIMIT - 3:
        return permanent_error(f"value of {len(value)} bytes is above the socketmap reply limit of {REPLY_LIMIT - 3}")
    return b"%d:OK %b," % (len(value) + 3, value)


def temporary_error(reason: str) -> bytes:
    """Encode a failure that may pass: Postfix answers its client with 4xx."""
    return _error(b"TEMP", reason)


def timeout_error(reason: str) -> bytes:
    """Encode a failure to answer in time: Postfix answers its client with 4xx."""
    return _error(b"TIMEOUT", reason)


def permanent_error(reason: str) -> bytes:
    """Encode a failure that an administrator must mend: Postfix answers its client with 4xx here too."""
    return _error(b"PERM", reason)


def _error(status: bytes, reason: str) -> bytes:
    text = reason.encode("utf-8", "replace").translate(_PRINTABLE)[:REASON_LIMIT]
    return encode(b"%b %b" % (status, text))
