"""The protocol of tcp_table(5): a line ``get <key>`` asks, a line ``<code> <text>`` answers.

In keys and texts ``%``, white space, and all bytes that are not printable ASCII are written as ``%XX``.
"""

from __future__ import annotations

import re

from socketmap_memcache.errors import ProtocolError

#: The longest reply line, newline included, that Postfix reads. After a longer one it disconnects,
#: and asks nine times more, a second apart.
REPLY_LIMIT = 4096

#: The longest request line accepted, newline not included. Postfix sends keys of any size.
REQUEST_LIMIT = 100_000

#: Bytes of a reason that are sent, before they are encoded.
REASON_LIMIT = 200

NOTFOUND = b"500 not%20found\n"

_PLAIN = {byte: bytes([byte]) for byte in range(0x21, 0x7F) if byte != 0x25}
_QUOTED = [_PLAIN.get(byte, b"%%%02X" % byte) for byte in range(256)]
_TO_QUOTE = re.compile(rb"[^!-$&-~]")
_KEY = re.compile(rb"(?:[!-$&-~]|%[0-9A-Fa-f]{2})*")
_ENCODED = re.compile(rb"%(..)")


class TcpTableError(ProtocolError):
    """A line that is no request; the connection can go on, unless the line was too long."""


class LineReader:
    """Takes bytes in any chunks and gives back lines.

    Of a line above the limit its beginning, of one byte more than the limit, is given, so that it can be answered.
    """

    __slots__ = ("_buffer", "_limit", "_searched", "_start", "_too_long")

    def __init__(self, limit: int) -> None:
        """Start at the beginning of a stream.

        :param limit: the longest line, in bytes without its newline.
        """
        self._limit = limit
        self._buffer = bytearray()
        self._start = 0  # of the line
        self._searched = 0  # no newline between the start and here
        self._too_long = False

    def sole(self, data: bytes) -> bytes | None:
        """Give the line that was received, if it is just one and nothing is held; else ``None``: it is to be fed."""
        if self.partial or self._too_long or data.find(b"\n") != len(data) - 1 or len(data) > self._limit + 1:
            return None
        return data[:-1]

    def feed(self, data: bytes) -> None:
        """Take what was received."""
        if self._start:
            del self._buffer[: self._start]
            self._searched -= self._start
            self._start = 0
        self._buffer += data

    @property
    def partial(self) -> bool:
        """Whether bytes are held."""
        return self._start < len(self._buffer)

    def next_payload(self) -> bytes | None:
        """Give the next whole line without its newline, or ``None`` until more is fed.

        :raises TcpTableError: after the beginning of a line above the limit has been given.
        """
        if self._too_long:
            raise TcpTableError(f"request of more than {self._limit} bytes")
        last = self._start + self._limit
        newline = self._buffer.find(b"\n", self._searched, last + 1)
        if newline >= 0:
            line = bytes(self._buffer[self._start : newline])
            self._start = self._searched = newline + 1
            return line
        self._searched = len(self._buffer)
        if len(self._buffer) <= last:
            return None
        self._too_long = True
        return bytes(self._buffer[self._start : last + 1])


def parse_request(line: bytes) -> bytes:
    """Return the key that a request asks for; it may be empty.

    :raises TcpTableError: anything but ``get <key>`` with a key that is encoded as it has to be.
    """
    if len(line) > REQUEST_LIMIT:
        raise TcpTableError(f"request of more than {REQUEST_LIMIT} bytes")
    command, blank, key = line.partition(b" ")
    if command == b"put":
        raise TcpTableError("this table is read-only")
    if command != b"get" or not blank:
        raise TcpTableError("unknown request, expected: get key")
    if _KEY.fullmatch(key) is None:
        raise TcpTableError("bad %-encoding in the key")
    return _ENCODED.sub(lambda encoded: bytes([int(encoded[1], 16)]), key)


def quote(text: bytes) -> bytes:
    """Encode a text."""
    return _TO_QUOTE.sub(lambda byte: _QUOTED[byte[0][0]], text)


def found(value: bytes) -> bytes:
    """Encode the answer that the key exists.

    :param value: any bytes; Postfix reads up to the first NUL.
    :return: the reply, or a failure where the value is too long for a reply.
    """
    line = b"200 %b\n" % quote(value)
    if len(line) > REPLY_LIMIT:
        return permanent_error(
            f"the encoded value makes a reply of {len(line)} bytes; tcp_table(5) allows {REPLY_LIMIT}"
        )
    return line


def temporary_error(reason: str) -> bytes:
    """Encode a failure, of any kind: Postfix answers its client with 4xx."""
    text = reason.encode("utf-8", "replace")[:REASON_LIMIT]
    return b"400 %b\n" % quote(text)


timeout_error = temporary_error
permanent_error = temporary_error
