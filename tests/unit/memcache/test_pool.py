from __future__ import annotations

from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from socketmap_memcache.errors import TemporaryError
from socketmap_memcache.memcache.interface import ICache, Limits
from socketmap_memcache.memcache.pool import ClientPool
from socketmap_memcache.memcache.server import Server

SERVER = Server.parse("inet:192.0.2.1:11211")
OTHER = Server.parse("inet:192.0.2.1:11212")


class TestPool(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.pool = ClientPool(self.reactor)

    def is_closed(self, cache: ICache) -> bool:
        results: list[object] = []
        cache.get(b"k", Limits()).addBoth(results.append)
        return bool(results)

    def test_shared(self) -> None:
        """All tables that name the same server have the same client; another server has another one."""
        first, second, other = self.pool.memcached(SERVER), self.pool.memcached(SERVER), self.pool.memcached(OTHER)
        assert first is second
        assert first is not other
        assert first.name == "inet:192.0.2.1:11211"

    def test_connects(self) -> None:
        """A client connects to its server, at the first command."""
        client = self.pool.memcached(SERVER)
        assert self.reactor.tcpClients == []
        client.get(b"k", Limits(timeout=9))
        assert self.reactor.tcpClients[0][:2] == ("192.0.2.1", 11211)

    def test_release(self) -> None:
        """A client is closed when the last of its users has let it go; later users get another one."""
        client = self.pool.memcached(SERVER)
        self.pool.memcached(SERVER)
        self.pool.release(client)
        assert not self.is_closed(client)
        self.pool.release(self.pool.memcached(SERVER))
        client = self.pool.memcached(SERVER)
        self.pool.release(client)
        self.reactor.advance(10)
        self.pool.release(client)
        self.failureResultOf(client.get(b"k", Limits()), TemporaryError)
        assert self.pool.memcached(SERVER) is not client

    def test_memory(self) -> None:
        """Memory is never shared, and closed on its own."""
        first, second = self.pool.memory("memory:", 1000), self.pool.memory("memory:", 1000)
        for cache in (first, second):
            cache.set(b"k", b"v", 0, 0, Limits())
        self.pool.release(first)
        assert self.successResultOf(first.get(b"k", Limits())) is None
        assert self.successResultOf(second.get(b"k", Limits())) == b"v"
