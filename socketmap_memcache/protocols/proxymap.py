"""The protocol of Postfix's proxymap(8): requests and replies for tables that another process has open.

Both are attribute lists: ``name NUL value NUL`` for each attribute, and one more NUL (attr_print0 in Postfix). There
are three dialects. Up to Postfix 3.5 the server keeps silent until it is asked; since 3.6 it greets each connection;
since 3.11 it also wants, and returns, more flags. A client that takes a greeting or none, and learns from the answer
to its first ``open`` which flags are wanted, speaks them all.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple

from socketmap_memcache.errors import ProtocolError

#: A longer list is refused, in bytes. Postfix itself has no limit; no reply of its daemons' tables comes near this one.
LIST_LIMIT = 1024 * 1024

Attributes = list[tuple[bytes, bytes]]

GREETING: Attributes = [(b"protocol", b"proxymap_protocol")]


class Flag:
    """Properties of a table (dict.h in Postfix); the numbers are the same in all of its versions."""

    FIXED = 16  # of fixed strings: keys are folded to lower case
    LOCK = 64
    DUP_REPLACE = 128
    SYNC_UPDATE = 256


#: What is wanted of a table: a lock for each access, as others use it too; updates replace and go to the disk. A server
#: opens the table with them, if no other client has done so before with the same; a backup behind it, as that of
#: memcache:, keeps them. Not OPEN_LOCK: a server that finds it with LOCK aborts. Not UTF8_REQUEST: who asks for a table
#: checks what is UTF-8, and others may have it open for what is not.
FLAGS = Flag.LOCK | Flag.DUP_REPLACE | Flag.SYNC_UPDATE


class Dialect(Enum):
    """What a server wants in a request."""

    FLAGS = "up to Postfix 3.10"
    INSTANCE_FLAGS = "since Postfix 3.11"


class Status(Enum):
    """The outcome of a request."""

    OK = 0
    NOKEY = 1
    RETRY = 2
    BAD = 3
    DENY = 4
    CONFIG = 5


class Function(Enum):
    """What is asked for; the value is the request's name."""

    OPEN = b"open"
    LOOKUP = b"lookup"
    UPDATE = b"update"
    DELETE = b"delete"
    SEQUENCE = b"sequence"


# What a reply has after its status and flags.
_REPLY = {
    Function.OPEN: (),
    Function.LOOKUP: (b"value",),
    Function.UPDATE: (),
    Function.DELETE: (),
    Function.SEQUENCE: (b"key", b"value"),
}


class ProxymapError(ProtocolError):
    """The server's reply is not one; the connection is of no use any more."""


class Request(NamedTuple):
    """One thing asked of a table.

    :ivar first: of a sequence: whether it begins anew.
    """

    function: Function
    key: bytes = b""
    value: bytes = b""
    first: bool = False


class Reply(NamedTuple):
    """One reply.

    :ivar flags: of the table, where the server tells; else 0.
    :ivar key: of the entry that a sequence has come to.
    """

    status: Status
    flags: int = 0
    key: bytes = b""
    value: bytes = b""


def encode(attributes: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Make a list of attributes.

    :raises ValueError: a name or a value has a NUL, which would begin another attribute.
    """
    items = [item for attribute in attributes for item in attribute]
    if any(b"\0" in item for item in items):
        raise ValueError("an attribute cannot have a NUL")
    return b"".join(item + b"\0" for item in items) + b"\0"


def encode_request(request: Request, table: bytes, flags: int, dialect: Dialect) -> bytes:
    """Encode a request.

    :param table: ``type:name``. It is in each request, because a server keeps nothing for a connection.
    :param flags: :data:`FLAGS`; in the later dialect those that came with the reply to ``open``.
    :raises ValueError: the table, key or value has a NUL.
    """
    function = request.function
    attributes = [(b"request", function.value), (b"table", table)]
    if dialect is Dialect.INSTANCE_FLAGS:
        attributes.append((b"instance_flags", b"%d" % FLAGS))
    if dialect is Dialect.FLAGS or function is not Function.OPEN:
        attributes.append((b"flags", b"%d" % flags))
    if function is Function.SEQUENCE:
        attributes.append((b"function", b"0" if request.first else b"1"))
    elif function is not Function.OPEN:
        attributes.append((b"key", request.key))
    if function is Function.UPDATE:
        attributes.append((b"value", request.value))
    return encode(attributes)


def parse_reply(attributes: Attributes, function: Function, dialect: Dialect) -> Reply:
    """Read a reply. As with Postfix, the attributes come in their order, and more may follow.

    :raises ProxymapError: an attribute is missing, out of order, or not the number that it should be.
    """
    names = [b"status"]
    if function is Function.OPEN or dialect is Dialect.INSTANCE_FLAGS:
        names.append(b"flags")
    names += _REPLY[function]
    if attributes == [(b"status", b"3")]:
        return Reply(Status.BAD)  # to a request that the server does not know by name
    found = [name for name, _ in attributes[: len(names)]]
    if found != names:
        raise ProxymapError(f"unexpected reply: {_show(found)} instead of {_show(names)}")
    fields = dict(attributes[: len(names)])
    number = _number(fields[b"status"])
    try:
        status = Status(number)
    except ValueError:
        raise ProxymapError(f"unexpected reply: status {number}") from None
    flags = _number(fields[b"flags"]) if b"flags" in fields else 0
    return Reply(status, flags, fields.get(b"key", b""), fields.get(b"value", b""))


def _number(text: bytes) -> int:
    if not text.isdigit() or len(text) > 10:
        raise ProxymapError(f"unexpected reply: {text[:30]!r} is not a number")
    return int(text)


def _show(names: list[bytes]) -> str:
    return b",".join(names)[:100].decode("ascii", "replace") or "nothing"


class AttributeReader:
    """Takes bytes in any chunks and gives back attribute lists.

    It never searches the same bytes twice, and holds at most one list of the limit's size plus the chunk received last.
    """

    __slots__ = ("_buffer", "_items", "_limit", "_scanned", "_start")

    def __init__(self, limit: int = LIST_LIMIT) -> None:
        """Start at the beginning of a stream.

        :param limit: the longest list accepted, in bytes.
        """
        self._limit = limit
        self._buffer = bytearray()
        self._items: list[bytes] = []  # names and values in turn
        self._start = 0  # where in the buffer the next of them begins
        self._scanned = 0  # no NUL is between there and here

    def feed(self, data: bytes) -> None:
        """Take what was received."""
        self._buffer += data

    def next_list(self) -> Attributes | None:
        """Give the next whole list, or ``None`` until more is fed.

        :raises ProxymapError: at, and ever after, a list that is longer than the limit.
        """
        buffer, items = self._buffer, self._items
        while (end := buffer.find(b"\0", self._scanned, self._limit)) >= 0:
            item = bytes(buffer[self._start : end])
            self._start = self._scanned = end + 1
            if not item and len(items) % 2 == 0:  # an empty name
                del buffer[: end + 1]
                self._start = self._scanned = 0
                self._items = []
                return list(zip(items[::2], items[1::2], strict=True))
            items.append(item)
        if len(buffer) >= self._limit:
            raise ProxymapError(f"attribute list of more than {self._limit} bytes")
        self._scanned = len(buffer)
        return None
