"""The commands: each knows how to be written, and what a reply means for it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from socketmap_memcache.asker import Asker
from socketmap_memcache.errors import TableError
from socketmap_memcache.memcache.interface import Limits
from socketmap_memcache.pipelined_command import PipelinedCommand
from socketmap_memcache.protocols import memcache
from socketmap_memcache.protocols.memcache import MemcacheError, Reply, ReplyReader

#: What a command takes from a reply of which some is missing.
UNFINISHED = object()

_UNFORESEEN = "an answer of memcached led to an unforeseen error"


class CommandRefusedError(Exception):
    """The server answered, in good order, that it did not do what was asked."""


class Command(PipelinedCommand):
    """One command, from the request for it to the last of its tries.

    :ivar started: when it was asked for, in reactor seconds.
    :ivar uncertain: whether a connection was lost with it: the server may have done, or may yet do, what it says.
    :cvar changes: whether it changes what the server has.
    :cvar repeated: whether it goes out again when its connection is lost through no fault of its own.
    :cvar fenced: whether a miss of its counts only when a fence behind it is answered.
    """

    __slots__ = ("key", "limits", "started", "uncertain")

    changes = False
    repeated = True
    fenced = False

    def __init__(self, key: bytes, wire: bytes, limits: Limits, asker: Asker, token: Any) -> None:
        """Make a command that was not sent yet."""
        super().__init__(wire, asker, token)
        self.key = key
        self.limits = limits
        self.uncertain = False
        self.started = 0.0

    def take(self, reader: ReplyReader) -> object:
        """Read the reply and say what it means, or give :data:`UNFINISHED` until all of it has come.

        :return: what :meth:`succeed` is to hand over.
        :raises CommandRefusedError: the try has failed, and the connection is in order.
        :raises MemcacheError: what was received is not a reply to this command: the connection cannot be trusted any
            more.
        """
        reply = self.read(reader)
        return UNFINISHED if reply is None else self.result(reply)

    def read(self, reader: ReplyReader) -> Reply | None:
        """Read the reply, or give ``None`` until all of it has come.

        :raises MemcacheError: what was received is no reply.
        """
        return reader.next_reply(self.limits.line_size_limit, self.limits.data_size_limit)

    def result(self, reply: Reply) -> object:
        """Say what a reply means; see :meth:`take`."""
        raise NotImplementedError

    def missed(self, result: Any) -> bool:
        """Say whether a result of a command that is fenced is a miss."""
        raise NotImplementedError

    def succeed(self, result: Any) -> None:
        """Hand over the result."""
        try:
            self.asker.answered(result, self.token)
        except Exception:  # noqa: BLE001 (the server and all others have nothing to do with it)
            self._log.failure(_UNFORESEEN)


class Get(Command):
    """``get``: the value, or ``None``. All who want the same at the same time share one."""

    __slots__ = ("_others", "_under_way", "fenced")

    def __init__(self, key: bytes, limits: Limits, under_way: dict[bytes, Get], asker: Asker, token: Any) -> None:
        """Make a command that may be shared until it has its result.

        :param under_way: those that may be shared, by key; this one adds itself, and goes when it is done.
        """
        # As in Command, but not by it: this is done for each look-up.
        self.key = key
        self.wire = b"get %b\r\n" % key
        self.limits = limits
        self.tries = 0
        self.asker = asker
        self.token = token
        self.fenced = limits.fenced
        self.uncertain = False
        self._others: list[tuple[Asker, Any]] | None = None
        self._under_way = under_way
        under_way[key] = self

    def share(self, asker: Asker, token: Any) -> None:
        """Let somebody else, too, hear of the result."""
        if self._others is None:
            self._others = []
        self._others.append((asker, token))

    def take(self, reader: ReplyReader) -> object:
        limits = self.limits
        value = reader.next_hit(self.key, limits.line_size_limit, limits.data_size_limit)
        if value is None and not reader.next_is(b"END\r\n", limits.line_size_limit):
            return super().take(reader)
        return value

    def succeed(self, result: Any) -> None:
        if self._under_way.get(self.key) is self:
            del self._under_way[self.key]
        try:  # as in Command, but not by it: this is done for each look-up
            self.asker.answered(result, self.token)
        except Exception:  # noqa: BLE001 (the server and all others have nothing to do with it)
            self._log.failure(_UNFORESEEN)
        if self._others is not None:
            for asker, token in self._others:
                self.asker, self.token = asker, token
                super().succeed(result)

    def fail(self, error: TableError) -> None:
        if self._under_way.get(self.key) is self:
            del self._under_way[self.key]
        super().fail(error)
        for asker, token in self._others or ():
            self.asker, self.token = asker, token
            super().fail(error)

    def missed(self, result: bytes | None) -> bool:
        return result is None

    def result(self, reply: Reply) -> bytes | None:
        status, key, value, too_long = reply
        if status == b"END" and (key is None or key == self.key):
            if too_long:
                raise CommandRefusedError(
                    f"value of {too_long} bytes (data_size_limit is {self.limits.data_size_limit})"
                )
            return value
        raise unexpected(reply)


class GetMany(Command):
    """One ``get`` for several keys: a dictionary of those that exist, where ``None`` is a value that is too long."""

    __slots__ = ("_reader", "fenced", "keys", "values")

    def __init__(self, keys: Collection[bytes], limits: Limits, asker: Asker, token: Any) -> None:
        super().__init__(b"", memcache.get_many(keys), limits, asker, token)
        self.fenced = limits.fenced
        self.keys = frozenset(keys)
        self.values: dict[bytes, bytes | None] = {}
        self._reader: ReplyReader | None = None

    def read(self, reader: ReplyReader) -> Reply | None:
        if reader is not self._reader:  # what came on another connection may have been wrong
            self._reader, self.values = reader, {}
        reply = reader.next_values(self.values, self.limits.line_size_limit, self.limits.data_size_limit)
        if len(self.values) > len(self.keys):  # at once, and not only with END: there might be no end of them
            raise MemcacheError("a value for another key")
        return reply

    def missed(self, result: dict[bytes, bytes | None]) -> bool:
        return len(result) < len(self.keys)

    def result(self, reply: Reply) -> dict[bytes, bytes | None]:
        if reply.status != b"END":
            raise unexpected(reply)
        if not self.values.keys() <= self.keys:
            raise MemcacheError("a value for another key")
        return self.values


class Set(Command):
    """``set``: ``True``."""

    __slots__ = ()

    changes = True

    def __init__(
        self, key: bytes, value: bytes, flags: int, ttl: int, limits: Limits, asker: Asker, token: Any
    ) -> None:
        # As in Command, but not by it: this is done for each mail that greylisting defers.
        self.key = key
        self.wire = memcache.set_(key, value, flags, ttl)
        self.limits = limits
        self.asker = asker
        self.token = token
        self.tries = 0
        self.uncertain = False

    def take(self, reader: ReplyReader) -> object:
        return reader.next_is(b"STORED\r\n", self.limits.line_size_limit) or super().take(reader)

    def result(self, reply: Reply) -> bool:
        if reply.status != b"STORED":
            # A memcached that did not like the first line may take the data for a second command.
            raise MemcacheError(str(unexpected(reply)))
        return True


class Delete(Command):
    """``delete``: whether the key was there."""

    __slots__ = ()

    changes = True

    def __init__(self, key: bytes, limits: Limits, asker: Asker, token: Any) -> None:
        super().__init__(key, memcache.delete(key), limits, asker, token)

    def result(self, reply: Reply) -> bool:
        if reply.status not in {b"DELETED", b"NOT_FOUND"}:
            raise unexpected(reply)
        return reply.status == b"DELETED"


def unexpected(reply: Reply) -> Exception:
    """Make the error for a reply that is not one to the command; see :meth:`Command.take`."""
    if reply.key is not None:
        return MemcacheError(f"a value for another key, {reply.key[:30]!r}")
    if reply.status.startswith((b"CLIENT_ERROR unauthenticated", b"CLIENT_ERROR bad authentication")):
        # All other commands would get the same.
        return MemcacheError("the server wants a username and a password (username, password_file).")
    text = f"unexpected reply {reply.status[:30]!r}"
    word = reply.status.partition(b" ")[0]
    refused = word in {b"ERROR", b"CLIENT_ERROR", b"SERVER_ERROR"}
    return CommandRefusedError(text) if refused else MemcacheError(text)
