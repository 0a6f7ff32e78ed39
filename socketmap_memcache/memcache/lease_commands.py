"""The commands for leases: of all clients that miss a key, one is to refill it."""

from __future__ import annotations

from typing import Any

from socketmap_memcache.asker import Asker
from socketmap_memcache.memcache.command import Command, CommandRefusedError, unexpected
from socketmap_memcache.memcache.interface import Leased, LeasesUnsupportedError, Limits
from socketmap_memcache.protocols.memcache import MemcacheError, Reply, ReplyReader
from socketmap_memcache.protocols.memcache_meta import meta_delete, meta_get, meta_set, reply_flags

#: What servers without meta commands say, and one that takes ``mg`` for something else.
_UNSUPPORTED = {b"ERROR", b"CLIENT_ERROR", b"EN"}

#: Done; the first releases of 1.6 say OK.
_DONE = {b"HD", b"OK"}


class _MetaCommand(Command):
    __slots__ = ()

    def read(self, reader: ReplyReader) -> Reply | None:
        return reader.next_meta_reply(self.limits.line_size_limit, self.limits.data_size_limit)


class GetLeased(_MetaCommand):
    """``mg``: a :class:`Leased`."""

    __slots__ = ("_server",)

    repeated = False  # a proxy closes each connection on which it comes

    def __init__(
        self, server: str, key: bytes, limits: Limits, lease_ttl: int, stale_ttl: int, asker: Asker, token: Any
    ) -> None:
        """Make a command that was not sent yet.

        :param server: its name, for the error where it has no leases.
        """
        super().__init__(key, meta_get(key, lease_ttl, stale_ttl), limits, asker, token)
        self._server = server

    def result(self, reply: Reply) -> Leased | LeasesUnsupportedError:
        word = reply.status.partition(b" ")[0]
        if word in _UNSUPPORTED:
            return LeasesUnsupportedError(
                f"memcached {self._server} has no leases: its reply to mg is {reply.status[:60]!r}. "
                "Connect directly to memcached 1.6 or later, or set lease = no"
            )
        if word != b"VA":
            raise unexpected(reply)
        flags = reply_flags(reply.status)
        cas = flags.get(b"c", b"")
        if flags.get(b"k") != self.key or not cas.isdigit():
            raise MemcacheError(f"unexpected reply {reply.status[:30]!r}")
        if reply.too_long:
            raise CommandRefusedError(
                f"value of {reply.too_long} bytes (data_size_limit is {self.limits.data_size_limit})"
            )
        won = b"W" in flags
        fresh = not won and b"Z" not in flags
        return Leased(reply.value if reply.value or fresh else None, won, fresh, cas)

    def succeed(self, result: Leased | LeasesUnsupportedError) -> None:
        # To try again would be in vain.
        if isinstance(result, LeasesUnsupportedError):
            self.fail(result)
        else:
            super().succeed(result)


class Refill(_MetaCommand):
    """``ms``: whether the value is stored, as nobody has changed the key since."""

    __slots__ = ()

    def __init__(
        self, key: bytes, value: bytes, flags: int, ttl: int, cas: bytes, limits: Limits, asker: Asker, token: Any
    ) -> None:
        super().__init__(key, meta_set(key, value, flags, ttl, cas), limits, asker, token)

    def result(self, reply: Reply) -> bool:
        if reply.status not in _DONE | {b"EX", b"NF", b"NS"}:
            # As with set: the data may have been taken for a second command.
            raise MemcacheError(f"unexpected reply {reply.status[:30]!r}")
        return reply.status in _DONE


class GiveUp(_MetaCommand):
    """``md``: whether the key is deleted, as nobody has changed it since."""

    __slots__ = ()

    def __init__(self, key: bytes, cas: bytes, limits: Limits, asker: Asker, token: Any) -> None:
        super().__init__(key, meta_delete(key, cas), limits, asker, token)

    def result(self, reply: Reply) -> bool:
        if reply.status not in _DONE | {b"EX", b"NF"}:
            raise unexpected(reply)
        return reply.status in _DONE
