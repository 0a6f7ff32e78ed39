"""Netstrings (https://cr.yp.to/proto/netstrings.txt), ``<length>:<payload>,``, as Postfix's socketmap client has them.

The reader is strict: the length has no leading zeros, no sign and no blanks, and is bounded. It never searches the same
bytes twice, and holds at most one payload of the limit's size plus the chunk received last.
"""

from __future__ import annotations

from socketmap_memcache.errors import ProtocolError
from socketmap_memcache.protocols.receive_buffer import ReceiveBuffer


class NetstringError(ProtocolError):
    """What was received is not a netstring, or is longer than the limit. Nothing after it can be trusted."""


def encode(payload: bytes) -> bytes:
    """Make the netstring of a payload."""
    return b"%d:%b," % (len(payload), payload)


class NetstringReader(ReceiveBuffer):
    """Takes bytes in any chunks and gives back payloads."""

    __slots__ = ("_digits", "_limit")

    def __init__(self, limit: int) -> None:
        """Start at the beginning of a stream.

        :param limit: the largest payload accepted, in bytes; at least 1.
        """
        super().__init__()
        self._limit = limit
        self._digits = len(str(limit))

    def sole(self, data: bytes) -> bytes | None:
        """Give the payload of what was received if that is just one netstring, and nothing is held: the usual case.

        :return: ``None`` where that is not so, or the netstring needs a closer look; then the data is to be fed.
        """
        if self._start < len(self._buffer) or not data.endswith(b","):
            return None
        payload = data[data.find(b":") + 1 : -1]
        size = len(payload)
        return payload if data.startswith(b"%d:" % size) and size <= self._limit else None

    @property
    def partial(self) -> bool:
        """Whether bytes are held: netstrings not yet taken, or the beginning of one."""
        return self._start < len(self._buffer)

    def next_payload(self) -> bytes | None:
        """Give the next whole payload, or ``None`` until more is fed.

        :raises NetstringError: at, and ever after, the first byte that cannot be part of a netstring.
        """
        buffer, start = self._buffer, self._start
        if len(buffer) <= start or len(buffer) <= self._scanned:
            return None
        colon = buffer.find(b":", start, start + self._digits + 1)
        if colon < 0:
            self._check_length(bytes(buffer[start : start + self._digits + 1]))
            return None
        digits = bytes(buffer[start:colon])
        if not digits.isdigit() or digits[0] == 0x30:
            self._check_length(digits)
        size = int(digits)
        if size > self._limit:
            raise NetstringError(f"netstring of {size} bytes is above the limit of {self._limit}")
        end = colon + 1 + size
        if len(buffer) <= end:
            self._scanned = end  # where its comma will be
            return None
        if buffer[end] != 0x2C:
            raise NetstringError("netstring does not end in a comma")
        self._start = end + 1
        return bytes(buffer[colon + 1 : end])

    def _check_length(self, head: bytes) -> None:
        if not head.isdigit():
            raise NetstringError("netstring does not begin with its length")
        if head[0] == 0x30 and len(head) > 1:
            raise NetstringError("netstring length has a leading zero")
        if len(head) > self._digits:
            raise NetstringError(f"netstring length has more than {self._digits} digits")
