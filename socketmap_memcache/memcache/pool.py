"""The clients of a process: one for each server, shared by the tables that name it."""

from __future__ import annotations

from functools import partial
from threading import Lock
from typing import Any

from socketmap_memcache.memcache.client import MemcacheClient
from socketmap_memcache.memcache.interface import ICache
from socketmap_memcache.memcache.memory import MemoryCache
from socketmap_memcache.memcache.server import Server


class ClientPool:
    """Opens caches, and closes each when the last table that uses it has let it go."""

    def __init__(self, reactor: Any) -> None:
        """Make an empty pool.

        :param reactor: for connections, name look-ups and time.
        """
        self.reactor = reactor
        self._clients: dict[str, ICache] = {}
        self._users: dict[str, int] = {}
        self._lock = Lock()  # a reload opens tables in a thread, while old ones may be let go

    def memcached(self, server: Server) -> ICache:
        """Give the client of a server, which connects when it is first used."""
        name = server.name
        with self._lock:
            if name not in self._clients:
                self._clients[name] = MemcacheClient(name, partial(server.connect, self.reactor), self.reactor)
            self._users[name] = self._users.get(name, 0) + 1
            return self._clients[name]

    def memory(self, name: str, size_limit: int) -> ICache:
        """Give a cache of its own in memory, of about ``size_limit`` bytes at most."""
        return MemoryCache(name, size_limit, self.reactor)

    def release(self, cache: ICache) -> None:
        """Take back what one call of :meth:`memcached` or :meth:`memory` gave, or close a cache of another kind."""
        name = cache.name
        with self._lock:
            if self._clients.get(name) is cache:
                self._users[name] -= 1
                if self._users[name]:
                    return
                del self._users[name], self._clients[name]
        cache.close()
