"""The clients of a process: one for each server, shared by the tables that name it."""

from __future__ import annotations

from functools import partial
from threading import Lock
from typing import Any
from weakref import WeakValueDictionary

from socketmap_memcache.memcache.client import MemcacheClient
from socketmap_memcache.memcache.greeting import greeter_for
from socketmap_memcache.memcache.history import History
from socketmap_memcache.memcache.interface import ICache
from socketmap_memcache.memcache.memory import MemoryCache
from socketmap_memcache.memcache.security import PLAIN, Security
from socketmap_memcache.memcache.server import Server


class ClientPool:
    """Opens caches, and closes each when the last table that uses it has let it go."""

    def __init__(self, reactor: Any) -> None:
        """Make an empty pool.

        :param reactor: for connections, name look-ups and time.
        """
        self.reactor = reactor
        self._clients: dict[tuple[Server, Security], MemcacheClient] = {}
        self._users: dict[MemcacheClient, int] = {}
        self._histories: WeakValueDictionary[str, History] = WeakValueDictionary()
        self._lock = Lock()  # a reload opens tables in a thread, while old ones may be let go

    def memcached(self, server: Server, security: Security = PLAIN) -> MemcacheClient:
        """Give the client of a server, which connects when it is first used.

        It is shared only where the security, too, is the same: with the present contents of all files.

        :raises ValueError: the security's contents cannot be used.
        """
        shared_by = (server, security if server.tls else security.without_tls())
        with self._lock:
            client = self._clients.get(shared_by)
            if client is None:
                connect = partial(server.connect, self.reactor, greeter=greeter_for(server, security))
                client = self._clients[shared_by] = MemcacheClient(server.name, connect, self.reactor)
                for other in self._users:
                    if other.name == server.name:
                        client.learn(other)
            self._users[client] = self._users.get(client, 0) + 1
            return client

    def history(self, name: str) -> History:
        """Give the history of the servers of a cluster, which there is for as long as anybody uses it.

        :param name: of the cluster.
        """
        with self._lock:
            return self._histories.setdefault(name, History())

    def memory(self, name: str, size_limit: int) -> ICache:
        """Give a cache of its own in memory, of about ``size_limit`` bytes at most."""
        return MemoryCache(name, size_limit, self.reactor)

    def refresh(self) -> None:
        """Give new clients from now on for servers that have a name, whose addresses may have changed.

        The clients of before go on for those who have them.
        """
        with self._lock:
            for shared_by in [shared_by for shared_by in self._clients if not shared_by[0].has_address]:
                del self._clients[shared_by]

    def release(self, cache: Any) -> None:
        """Take back what one call of :meth:`memcached` or :meth:`memory` gave, or close a cache of another kind."""
        if isinstance(cache, MemcacheClient):
            with self._lock:
                users = self._users.get(cache, 1) - 1
                if users:
                    self._users[cache] = users
                    return
                self._users.pop(cache, None)
                for shared_by in [shared_by for shared_by, client in self._clients.items() if client is cache]:
                    del self._clients[shared_by]
                heir = next((client for client in self._clients.values() if client.name == cache.name), None)
            cache.close(heir)
        else:
            cache.close()
