"""The classic text protocol of memcached (doc/protocol.txt in its source): commands and replies.

What counts as a reply is what Postfix's own client takes for one (memcache_table(5)).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from socketmap_memcache.errors import ProtocolError
from socketmap_memcache.protocols.receive_buffer import ReceiveBuffer

#: A longer key is refused by memcached.
KEY_LIMIT = 250

_HIT = re.compile(rb"VALUE (\S{1,250}) \d{1,10} (\d{1,10})\r\n([^\r]*)\r\nEND\r\n")
_ITEM = re.compile(rb"(VALUE (\S{1,250}) \d{1,10} (\d{1,10})\r\n([^\r]*)\r\n)")
_ITEM_LINE_LIMIT = 6 + 250 + 1 + 10 + 1 + 10 + 1
_FORBIDDEN = bytes([*range(0x21), 0x7F])


class MemcacheError(ProtocolError):
    """The server's reply is not one. What follows on the connection cannot be matched with requests any more."""


class Reply(NamedTuple):
    """One reply.

    :ivar status: its last line, without the line end: ``END``, ``STORED``, ``SERVER_ERROR out of memory``...
    :ivar key: the key that its ``VALUE`` line named, or ``None`` where it had none.
    :ivar value: the data that came with it; ``None`` where there was none, or where ``too_long`` says why not.
    :ivar too_long: the length of data that was above the limit and has been dropped; else 0.
    """

    status: bytes
    key: bytes | None = None
    value: bytes | None = None
    too_long: int = 0


def is_key(key: bytes) -> bool:
    """Whether memcached could store this key: 1 to 250 bytes, neither white space nor control characters."""
    return 0 < len(key) <= KEY_LIMIT and not has_forbidden(key)


def has_forbidden(key: bytes) -> bool:
    """Whether white space or a control character is in the key; sent, it would break the protocol."""
    return len(key.translate(None, _FORBIDDEN)) != len(key)


def get(key: bytes) -> bytes:
    """Encode a ``get``; the key must pass :func:`is_key`."""
    return b"get %b\r\n" % key


def get_many(keys: Iterable[bytes]) -> bytes:
    """Encode one ``get`` for several keys, each of which must pass :func:`is_key`."""
    return b"get %b\r\n" % b" ".join(keys)


def set_(key: bytes, value: bytes, flags: int, ttl: int) -> bytes:
    """Encode a ``set``; the key must pass :func:`is_key`. Flags and ttl (seconds) are sent as they are."""
    return b"set %b %d %d %d\r\n%b\r\n" % (key, flags, ttl, len(value), value)


def delete(key: bytes) -> bytes:
    """Encode a ``delete``; the key must pass :func:`is_key`."""
    return b"delete %b\r\n" % key


class ReplyReader(ReceiveBuffer):
    """Takes bytes in any chunks and gives back replies, within limits that may differ from reply to reply.

    It never searches the same bytes twice, and holds at most a line and a value of the limits' sizes plus the chunk
    received last.
    """

    __slots__ = ("_key", "_size", "_value")

    def __init__(self) -> None:
        """Start at the beginning of a stream."""
        super().__init__()
        # Of the VALUE whose END has not come yet:
        self._key: bytes | None = None
        self._size = 0
        self._value: bytes | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing is held: no byte has come since the last whole reply."""
        return self._key is None and self._start == len(self._buffer)

    def unfinished(self) -> Reply | None:
        """Give the value that is complete but for its ``END``, which did not come or was something else.

        Postfix takes such a value.
        """
        return None if self._value is None else Reply(b"END", self._key, self._value)

    def next_hit(self, key: bytes, line_limit: int, data_limit: int) -> bytes | None:
        """Give the value of the key, if that is the next reply, and all of it has come, and it is a plain one.

        Most replies are: a whole value within the limits and without a CR. This is several times as fast as
        :meth:`next_reply`, which is to be asked after a ``None``.
        """
        start = self._start
        if self._key is not None or self._scanned > start:
            return None
        match = _HIT.match(self._buffer, start)
        if match is None:
            return None
        named, size, value = match.groups()
        if named != key or len(value) != int(size) or len(value) > data_limit or line_limit < _ITEM_LINE_LIMIT:
            return None
        self._start = match.end()
        return value

    def next_is(self, line: bytes, line_limit: int) -> bool:
        """Take the next reply if it is this line, CR and newline included, and within the limit; say whether it was.

        Most replies without a value are the line that is expected; this, too, is much faster than :meth:`next_reply`.
        """
        start = self._start
        if self._key is not None or not self._buffer.startswith(line, start) or len(line) > line_limit + 1:
            return False
        self._start = start + len(line)
        return True

    def next_reply(self, line_limit: int, data_limit: int) -> Reply | None:
        """Give the next whole reply, or ``None`` until more is fed.

        :param line_limit: the longest line accepted, as Postfix counts ``line_size_limit``: the text and its CR.
        :param data_limit: the longest value accepted; a longer one is read, dropped, and told by ``too_long``.
        :raises MemcacheError: what was received is no reply. The reader is of no use then, but for :meth:`unfinished`.
        """
        if self._key is None:
            line = self._line(line_limit)
            if line is None:
                return None
            if not line.startswith(b"VALUE "):
                return Reply(line)
            self._begin_value(line, data_limit)
        if not self._has_value(data_limit):
            return None
        line = self._line(line_limit)
        if line is None:
            return None
        if line != b"END":
            raise MemcacheError(f"unexpected line {line[:30]!r} where END should be")
        reply = Reply(line, self._key, self._value, 0 if self._value is not None else self._size)
        self._key = self._value = None
        return reply

    def next_meta_reply(self, line_limit: int, data_limit: int) -> Reply | None:
        """Give the next whole reply to a meta command, as :meth:`next_reply` does for others.

        Its status is the first line, ``VA <size> <flags>`` where there is a value; its key is ``None``.
        """
        if self._key is None:
            line = self._line(line_limit)
            if line is None:
                return None
            if not line.startswith(b"VA "):
                return Reply(line)
            self._begin_data(line, line.split()[1:2], line, data_limit)
        if not self._has_value(data_limit):
            return None
        assert self._key is not None
        reply = Reply(self._key, None, self._value, 0 if self._value is not None else self._size)
        self._key = self._value = None
        return reply

    def next_values(self, values: dict[bytes, bytes | None], line_limit: int, data_limit: int) -> Reply | None:
        """Take as much of the reply to :func:`get_many` as has come, and give its last line when all has.

        :param values: gets the values by their keys, and ``None`` for a value longer than ``data_limit``.
        :raises MemcacheError: as :meth:`next_reply` does.
        """
        while not self._skip:
            buffer = self._buffer = bytes(self._buffer)
            start = self._start
            if line_limit >= _ITEM_LINE_LIMIT:
                start += _plain_items(values, buffer, start, data_limit)
            self._start = start
            line = self._line(line_limit)
            if line is None:
                return None
            if not line.startswith(b"VALUE "):
                return Reply(line)
            self._begin_value(line, data_limit)
            named, self._key = self._key, None
            assert named is not None
            if self._size > data_limit:
                values[named] = None
            elif self._read_value():
                values[named], self._value = self._value, None
            else:  # the line is read once more when the value is there
                self._start = start
                return None
        return None

    def _line(self, limit: int) -> bytes | None:
        buffer, start = self._buffer, self._start
        newline = buffer.find(b"\n", max(start, self._scanned))
        if (newline if newline >= 0 else len(buffer)) - start > limit:
            raise MemcacheError(f"reply line of more than {limit} bytes (line_size_limit)")
        if newline < 0:
            self._scanned = len(buffer)
            return None
        self._start = newline + 1
        end = newline - 1 if newline > start and buffer[newline - 1] == 0x0D else newline
        return bytes(buffer[start:end])

    def _begin_value(self, line: bytes, data_limit: int) -> None:
        fields = line.split()
        self._begin_data(b"".join(fields[1:2]), fields[3:4], line, data_limit)

    def _begin_data(self, key: bytes, size: list[bytes], line: bytes, data_limit: int) -> None:
        if not size or not size[0].isdigit() or len(size[0]) > 10:
            raise MemcacheError(f"unexpected reply {line[:30]!r}")
        self._key = key
        self._size = int(size[0])
        if self._size > data_limit:
            held = bytes(self._buffer[self._start :])
            self._start = len(self._buffer)
            self._skip = self._size + 2
            self.feed(held)

    def _has_value(self, data_limit: int) -> bool:
        """Say whether all of the value that was begun has come, or been dropped."""
        if self._skip:
            return False
        return self._value is not None or self._size > data_limit or self._read_value()

    def _read_value(self) -> bool:
        buffer, start = self._buffer, self._start
        end = start + self._size
        if len(buffer) < end + 2:
            return False
        if buffer[end] != 0x0D or buffer[end + 1] != 0x0A:
            raise MemcacheError("value is not followed by a line end")
        self._value = bytes(buffer[start:end])
        self._start = end + 2
        return True


def _plain_items(values: dict[bytes, bytes | None], buffer: bytes, start: int, data_limit: int) -> int:
    """Take what has come of a reply to :func:`get_many`, if all of it is plain: whole values, short, without a CR.

    Nearly all replies are, and this is several times as fast as value by value.

    :return: how many bytes were taken.
    """
    end = buffer.find(b"\r\nEND\r\n", start)
    items = _ITEM.findall(buffer, start, end + 2 if end >= 0 else len(buffer))
    if not items:
        return 0
    lines, keys, sizes, data = zip(*items, strict=True)
    lengths = list(map(len, data))
    if lengths != list(map(int, sizes)) or max(lengths) > data_limit:
        return 0
    taken = b"".join(lines)
    if not buffer.startswith(taken, start):  # something came between them
        return 0
    values.update(zip(keys, data, strict=True))
    return len(taken)
