"""RESP, version 2 (https://redis.io/docs/latest/develop/reference/protocol-spec/): commands and replies of Redis."""

from __future__ import annotations

import re

import attrs

from socketmap_memcache.errors import ProtocolError
from socketmap_memcache.protocols.receive_buffer import ReceiveBuffer

#: Bytes of a line that is not data: a status, an error, a number.
LINE_LIMIT = 4096

#: Items of one reply, those of arrays within arrays included.
ITEM_LIMIT = 100_000

#: Bytes of all values of one reply: more than any that is asked for has, a hundred values of the largest size.
REPLY_LIMIT = 2**27

#: Arrays within arrays.
DEPTH_LIMIT = 4

_PLAIN_VALUE = re.compile(rb"\$(0|[1-9][0-9]{0,8})\r\n")
_NUMBER = re.compile(rb"-?[0-9]{1,19}")


class RedisProtocolError(ProtocolError):
    """What the server sent is no reply. What follows on the connection cannot be matched with commands any more."""


class Status(bytes):
    """A reply without data: ``OK``, ``PONG``."""

    __slots__ = ()


@attrs.frozen
class ErrorReply:
    """The server did not do what was asked.

    :ivar text: begins with a word in capitals that says why: ``WRONGTYPE Operation against a key...``
    """

    text: bytes

    @property
    def code(self) -> bytes:
        """That word."""
        return self.text.partition(b" ")[0]

    def __str__(self) -> str:
        shown = self.text[:200].decode(errors="backslashreplace")
        return "".join(character if character.isprintable() else "?" for character in shown)


@attrs.frozen
class TooLong:
    """In place of a value above the limit: how many bytes it had."""

    size: int


#: A value is ``bytes`` (and not :class:`Status`); ``None`` stands for one that does not exist.
Reply = bytes | int | ErrorReply | TooLong | list["Reply"] | None


class Unfinished:
    """Of a reply some is missing."""


#: The only one of its kind.
UNFINISHED = Unfinished()


@attrs.frozen
class _Begin:
    """An array of so many items begins."""

    count: int


def command(*words: bytes) -> bytes:
    """Encode a command; words may have any bytes."""
    parts = [b"*%d\r\n" % len(words)]
    parts += [b"$%d\r\n%b\r\n" % (len(word), word) for word in words]
    return b"".join(parts)


def glob_escape(text: bytes) -> bytes:
    """Return a pattern, for ``SCAN ... MATCH``, that only this text matches."""
    return re.sub(rb"([\\*?\[\]])", rb"\\\1", text)


class ReplyReader(ReceiveBuffer):
    """Takes bytes in any chunks and gives back replies.

    It never searches the same bytes twice. It holds at most one reply, whose items and lines are bounded, as are its
    values, each and all together, and the chunk received last.
    """

    __slots__ = ("_arrays", "_bytes", "_items", "_size", "_too_long", "_value_limit")

    def __init__(self, value_limit: int) -> None:
        """Start at the beginning of a stream.

        :param value_limit: bytes of a value; a longer one is read, dropped, and told by :class:`TooLong`.
        """
        super().__init__()
        self._value_limit = value_limit
        self._size = -1  # of the value whose data comes next
        self._too_long: TooLong | None = None
        self._arrays: list[tuple[list[Reply], int]] = []  # those not complete, and how many items each is to have
        self._items = 0  # of the reply until now
        self._bytes = 0  # of its values

    @property
    def idle(self) -> bool:
        """Whether no byte has come since the last whole reply."""
        return self._start == len(self._buffer) and self._size < 0 and not self._arrays and self._too_long is None

    def next_reply(self) -> Reply | Unfinished:
        """Give the next whole reply, or :data:`UNFINISHED` until more is fed.

        :raises RedisProtocolError: what was received is no reply. The reader is of no use then.
        """
        while True:
            item = self._next_item()
            if isinstance(item, Unfinished):
                return item
            if isinstance(item, _Begin):
                self._begin(item.count)
                if item.count:
                    continue
                item = self._arrays.pop()[0]
            reply = self._add(item)
            if not isinstance(reply, Unfinished):
                self._items = self._bytes = 0
                return reply

    def _begin(self, count: int) -> None:
        self._items += count
        if self._items > ITEM_LIMIT or len(self._arrays) >= DEPTH_LIMIT:
            raise RedisProtocolError(f"a reply of more than {ITEM_LIMIT} items, or {DEPTH_LIMIT} arrays deep")
        self._arrays.append(([], count))

    def _add(self, item: Reply) -> Reply | Unfinished:
        """Put an item where it belongs, and give the reply if it was the last of it."""
        if self._arrays and isinstance(item, bytes):
            self._bytes += len(item)
            if self._bytes > REPLY_LIMIT:
                raise RedisProtocolError(f"a reply with values of more than {REPLY_LIMIT} bytes")
        while self._arrays:
            items, count = self._arrays[-1]
            items.append(item)
            if len(items) < count:
                return UNFINISHED
            self._arrays.pop()
            item = items
        return item

    def _next_item(self) -> Reply | _Begin | Unfinished:
        if self._too_long is not None:
            return self._end_of_too_long()
        if self._size >= 0:
            return self._read_value()
        if self._scanned <= self._start:
            # Most replies are a whole value, within the limits.
            match = _PLAIN_VALUE.match(self._buffer, self._start)
            if match is not None:
                begin = match.end()
                end = begin + int(match[1])
                if end - begin <= self._value_limit and self._buffer[end : end + 2] == b"\r\n":
                    self._start = end + 2
                    return bytes(self._buffer[begin:end])
        line = self._line()
        return UNFINISHED if line is None else self._item(line)

    def _item(self, line: bytes) -> Reply | _Begin | Unfinished:
        kind, rest = line[:1], line[1:]
        if kind == b"+":
            return Status(rest)
        if kind == b"-":
            return ErrorReply(rest)
        if kind not in {b":", b"$", b"*"} or not _NUMBER.fullmatch(rest):
            raise RedisProtocolError(f"unexpected reply {line[:30]!r}")
        number = int(rest)
        if kind == b":":
            return number
        if number == -1:
            return None
        if number < 0:
            raise RedisProtocolError(f"unexpected reply {line[:30]!r}")
        if kind == b"*":
            return _Begin(number)
        if number > self._value_limit:
            self._too_long = TooLong(number)
            held = bytes(self._buffer[self._start :])
            self._start = len(self._buffer)
            self._skip = number + 2
            self.feed(held)
            return self._end_of_too_long()
        self._size = number
        return self._read_value()

    def _end_of_too_long(self) -> TooLong | Unfinished | None:
        if self._skip:
            return UNFINISHED
        too_long, self._too_long = self._too_long, None
        return too_long

    def _read_value(self) -> bytes | Unfinished:
        end = self._start + self._size
        if len(self._buffer) < end + 2:
            return UNFINISHED
        if self._buffer[end : end + 2] != b"\r\n":
            raise RedisProtocolError("a value is not followed by a line end")
        value = bytes(self._buffer[self._start : end])
        self._start = end + 2
        self._size = -1
        return value

    def _line(self) -> bytes | None:
        buffer, start = self._buffer, self._start
        end = buffer.find(b"\n", max(start, self._scanned))
        if (end if end >= 0 else len(buffer)) - start > LINE_LIMIT:
            raise RedisProtocolError(f"a reply line of more than {LINE_LIMIT} bytes")
        if end < 0:
            self._scanned = len(buffer)
            return None
        if end == start or buffer[end - 1] != 0x0D:
            raise RedisProtocolError(f"unexpected reply {bytes(buffer[start : min(end, start + 30)])!r}")
        self._start = end + 1
        return bytes(buffer[start : end - 1])
