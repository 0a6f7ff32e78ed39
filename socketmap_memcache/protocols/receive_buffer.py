"""What has been received, in any chunks, and was not yet taken."""

from __future__ import annotations


class ReceiveBuffer:
    """The part that readers have in common; no byte is copied or searched more often than it has to be."""

    __slots__ = ("_buffer", "_scanned", "_skip", "_start")

    def __init__(self) -> None:
        """Start at the beginning of a stream."""
        self._buffer: bytes | bytearray = b""
        self._start = 0  # where in the buffer what was not yet taken begins
        self._scanned = 0  # what is looked for, as a line end, does not come before this
        self._skip = 0  # bytes of a value that is too long, and its line end, still to be dropped

    def feed(self, data: bytes) -> None:
        """Take what was received."""
        if self._skip:
            dropped = min(self._skip, len(data))
            self._skip -= dropped
            data = data[dropped:]
        if self._start == len(self._buffer):
            self._buffer = data
        elif isinstance(self._buffer, bytearray):
            del self._buffer[: self._start]
            self._buffer += data
        else:
            self._buffer = bytearray(self._buffer[self._start :])
            self._buffer += data
        self._scanned -= self._start
        self._start = 0
