"""A cache in this process' memory, for hosts without memcached."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from zope.interface import implementer

from socketmap_memcache.asker import Asker
from socketmap_memcache.clock import time_of_day
from socketmap_memcache.memcache.interface import ICache, Limits

#: Above this, in seconds, memcached takes a ttl for a UNIX time (its doc/protocol.txt).
MONTH = 30 * 24 * 3600

#: What an entry costs beside its key and value, in bytes, about: two bytes objects, a tuple and a place in the dict.
_OVERHEAD = 250


@implementer(ICache)
class MemoryCache:
    """Keeps what was used last within a bound of bytes, and nothing beyond its ttl."""

    def __init__(self, name: str, size_limit: int, reactor: IReactorTime) -> None:
        """Make an empty cache.

        :param size_limit: how many bytes all entries together may take, about.
        :param reactor: for time.
        """
        self.name = name
        self._size_limit = size_limit
        self._reactor = reactor
        self._time_of_day = time_of_day(reactor)
        self._size = 0
        self._entries: OrderedDict[bytes, tuple[bytes, float]] = OrderedDict()

    def get(self, key: bytes, limits: Limits) -> Deferred[bytes | None]:
        """Fire at once; see :class:`ICache`."""
        return succeed(self.use(key))

    def get_for(self, key: bytes, limits: Limits, asker: Asker, token: Any) -> None:
        """Tell at once; see :class:`ICache`."""
        asker.answered(self.use(key), token)

    def use(self, key: bytes) -> bytes | None:
        """Give a value, or ``None``."""
        value = self.peek(key)
        if value is not None:
            self._entries.move_to_end(key)
        return value

    def peek(self, key: bytes) -> bytes | None:
        """Give a value, or ``None``, and do not count that as use."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        value, end = entry
        if end <= self._reactor.seconds():
            self.remove(key)
            return None
        return value

    def keys(self) -> list[bytes]:
        """Give all keys, the one used longest ago first; some may be over their ttl."""
        return list(self._entries)

    def set(self, key: bytes, value: bytes, flags: int, ttl: int, limits: Limits) -> Deferred[bool]:
        """Store at once; see :class:`ICache`. What is too large for the whole cache is not stored."""
        self.put(key, value, ttl)
        return succeed(True)

    def set_for(self, key: bytes, value: bytes, flags: int, ttl: int, limits: Limits, asker: Asker, token: Any) -> None:
        """Store at once; see :class:`ICache`."""
        self.put(key, value, ttl)
        asker.answered(True, token)

    def put(self, key: bytes, value: bytes, ttl: int) -> None:
        """Store a value, in place of the one that is there; what is too large for the whole cache is not stored."""
        self.remove(key)
        now = self._reactor.seconds()
        end = float("inf") if ttl == 0 else now + (ttl - self._time_of_day() if ttl > MONTH else ttl)
        size = len(key) + len(value) + _OVERHEAD
        if end > now and size <= self._size_limit:
            self._entries[key] = (value, end)
            self._size += size
            while self._size > self._size_limit:
                self.remove(next(iter(self._entries)))

    def delete(self, key: bytes, limits: Limits) -> Deferred[bool]:
        """Delete at once; see :class:`ICache`."""
        return succeed(self.remove(key))

    def close(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._size = 0

    def remove(self, key: bytes) -> bool:
        """Delete a key; gives whether it was there, be its ttl over or not."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return False
        self._size -= len(key) + len(entry[0]) + _OVERHEAD
        return True
