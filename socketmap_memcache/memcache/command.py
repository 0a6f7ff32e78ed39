"""The commands: each knows how to be written, and what a reply means for it."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from socketmap_memcache.memcache.interface import Limits
from socketmap_memcache.protocols import memcache
from socketmap_memcache.protocols.memcache import MemcacheError, Reply


class CommandRefusedError(Exception):
    """The server answered, in good order, that it did not do what was asked."""


class Command:
    """One command, from the request for it to the last of its tries.

    :ivar wire: its bytes.
    :ivar done: fires with the command's result, or fails when its last try has failed.
    :ivar tries: how many tries have failed.
    :ivar started: when it was asked for, in reactor seconds.
    :ivar deadline: when the present try is over, in reactor seconds.
    """

    __slots__ = ("deadline", "done", "key", "limits", "started", "tries", "wire")

    def __init__(self, key: bytes, wire: bytes, limits: Limits) -> None:
        self.key = key
        self.wire = wire
        self.limits = limits
        self.done: Deferred[Any] = Deferred()
        self.tries = 0
        self.started = 0.0
        self.deadline = 0.0

    def result(self, reply: Reply) -> object:
        """Say what a reply means.

        :return: what ``done`` fires with.
        :raises CommandRefusedError: the try has failed, and the connection is in order.
        :raises MemcacheError: the reply is not one to this command: the connection cannot be trusted any more.
        """
        raise NotImplementedError


class Get(Command):
    """``get``: the value, or ``None``."""

    __slots__ = ()

    def __init__(self, key: bytes, limits: Limits) -> None:
        super().__init__(key, memcache.get(key), limits)

    def result(self, reply: Reply) -> bytes | None:
        status, key, value, too_long = reply
        if status == b"END" and (key is None or key == self.key):
            if too_long:
                raise CommandRefusedError(
                    f"value of {too_long} bytes (data_size_limit is {self.limits.data_size_limit})"
                )
            return value
        raise _unexpected(reply)


class Set(Command):
    """``set``: nothing."""

    __slots__ = ()

    def __init__(self, key: bytes, value: bytes, flags: int, ttl: int, limits: Limits) -> None:
        super().__init__(key, memcache.set_(key, value, flags, ttl), limits)

    def result(self, reply: Reply) -> None:
        if reply.status != b"STORED":
            # A memcached that did not like the first line may take the data for a second command.
            raise MemcacheError(str(_unexpected(reply)))


class Delete(Command):
    """``delete``: whether the key was there."""

    __slots__ = ()

    def __init__(self, key: bytes, limits: Limits) -> None:
        super().__init__(key, memcache.delete(key), limits)

    def result(self, reply: Reply) -> bool:
        if reply.status not in {b"DELETED", b"NOT_FOUND"}:
            raise _unexpected(reply)
        return reply.status == b"DELETED"


def _unexpected(reply: Reply) -> Exception:
    if reply.key is not None:
        return MemcacheError(f"a value for another key, {reply.key[:30]!r}")
    text = f"unexpected reply {reply.status[:30]!r}"
    word = reply.status.partition(b" ")[0]
    refused = word in {b"ERROR", b"CLIENT_ERROR", b"SERVER_ERROR"}
    return CommandRefusedError(text) if refused else MemcacheError(text)
