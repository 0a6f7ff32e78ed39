"""Stores that block: what they are asked, and what they give. A table puts each in a thread of its own."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from math import inf
from typing import NamedTuple
from typing import Protocol as Structure

#: Entries, and bytes, that a walk reads ahead, about.
READ_AHEAD = 100
READ_AHEAD_SIZE = 64 * 1024


class Kind(Enum):
    """What is asked of a store."""

    LOOKUP = "lookup"  # the result is the value, or None
    UPDATE = "update"  # True
    DELETE = "delete"  # whether the key was there
    AFTER = "after"  # some entries, the next after the key in the store's order (b"": the first); none; or Halfway
    KEYS = "keys"  # some keys, the next ones after the key, in byte order: for a store whose own order changes
    SOME = "some"  # some keys in its own order, after the first that exists of those in the value (NUL between them)


class Halfway(NamedTuple):
    """In place of the entries after a key: so much had to be passed over that it is better done in steps.

    :ivar key: how far it was; the entries that were asked for come after it.
    """

    key: bytes


Entry = tuple[bytes, bytes]


class ReadAhead:
    """As many entries as a store should give for ``AFTER``: at least one, if there is one.

    :ivar entries: what has been added.
    :ivar has_room: whether there should be more.
    """

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.has_room = True
        self._size = 0

    def add(self, key: bytes, value: bytes) -> None:
        """Add an entry, unless it has the key of the last: that is another form of the same."""
        if not self.entries or self.entries[-1][0] != key:
            self.entries.append((key, value))
            self._size += len(key) + len(value)
            self.has_room = len(self.entries) < READ_AHEAD and self._size < READ_AHEAD_SIZE


class Operation:
    """One thing asked of a store.

    :ivar ttl: seconds that an update is to live, or ``None`` for ever.
    :ivar deadline: when it is given up, in reactor seconds.
    :ivar given_up: whether nobody waits for the result any more, and it need not be done. May be read in any thread: a
        store that had to wait, for a lock say, looks before it changes anything.
    """

    __slots__ = ("deadline", "given_up", "key", "kind", "ttl", "value")

    def __init__(
        self, kind: Kind, key: bytes, value: bytes = b"", ttl: int | None = None, deadline: float = inf
    ) -> None:
        self.kind = kind
        self.key = key
        self.value = value
        self.ttl = ttl
        self.deadline = deadline
        self.given_up = False


class Store(Structure):
    """The blocking side of a table. Its methods are called in one thread, one at a time."""

    def execute(self, operations: Sequence[Operation]) -> Sequence[object]:
        """Do the operations in their order, in as few transactions as possible.

        :return: a result for each, or a :class:`TableError` in its place; anything at all for one that is given up.
            What is reported as done is on the disk.
        :raises TableError: all of them have failed.
        """

    def close(self) -> None:
        """Give back what the store holds."""
