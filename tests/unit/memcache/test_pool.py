from __future__ import annotations

from typing import Any, cast

from twisted.internet.address import IPv4Address
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.trial.unittest import SynchronousTestCase

from socketmap_memcache.errors import TemporaryError
from socketmap_memcache.memcache.interface import ICache, Limits
from socketmap_memcache.memcache.link import State
from socketmap_memcache.memcache.pool import ClientPool
from socketmap_memcache.memcache.security import Security
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

    def test_security(self) -> None:
        """Tables with the same server, but another password, do not share a client."""
        first = self.pool.memcached(SERVER, Security(username=b"user", password=b"one"))
        second = self.pool.memcached(SERVER, Security(username=b"user", password=b"two"))
        assert first is not second
        assert first is self.pool.memcached(SERVER, Security(username=b"user", password=b"one"))
        assert first is self.pool.memcached(SERVER, Security(ca=b"for others", username=b"user", password=b"one"))
        self.pool.release(second)
        assert self.is_closed(second)
        for _ in range(3):
            assert self.pool._clients
            self.pool.release(first)
        assert self.is_closed(first)

    def test_greeting(self) -> None:
        """A client logs in where there is a username."""
        client = self.pool.memcached(SERVER, Security(username=b"user", password=b"secret"))
        answer = client.get(b"k", Limits())
        factory = self.reactor.tcpClients[0][2]
        transport = StringTransport(peerAddress=IPv4Address("TCP", "192.0.2.1", 11211))
        protocol: Any = cast(Any, factory).buildProtocol(transport.getPeer())
        transport.protocol = protocol  # type: ignore[attr-defined]
        protocol.makeConnection(transport)
        assert transport.value() == b"set auth 0 -1 11\r\nuser secret\r\n"
        transport.clear()
        transport.setTcpNoDelay = transport.setTcpKeepAlive = lambda _: None  # type: ignore[attr-defined]
        protocol.dataReceived(b"STORED\r\n")
        assert transport.value() == b"get k\r\n"
        transport.protocol.dataReceived(b"VALUE k 0 1\r\nv\r\nEND\r\n")  # type: ignore[attr-defined]
        assert self.successResultOf(answer) == b"v"

    def test_refresh(self) -> None:
        """After a refresh, servers that have a name get new clients; the old ones go on for those who have them."""
        named = Server.parse("inet:mc.example:11211")
        before = {server: self.pool.memcached(server) for server in (SERVER, named, Server.parse("unix:/run/mc"))}
        self.pool.refresh()
        after = {server: self.pool.memcached(server) for server in before}
        assert [server for server in before if before[server] is not after[server]] == [named]
        self.pool.release(before[named])
        assert self.is_closed(before[named])
        assert after[named] is self.pool.memcached(named)
        assert not self.is_closed(after[named])

    def test_debts(self) -> None:
        """The client that takes the place of another owes the server the deletes that the other one still owed."""
        named = Server.parse("inet:mc.example:11211")
        before = self.pool.memcached(named)
        before.owe(b"k")
        self.pool.refresh()
        after = self.pool.memcached(named)
        assert len(after._owed) == 1
        before.owe(b"l")
        self.pool.release(before)
        assert len(after._owed) == 2

    def test_history(self) -> None:
        """It knows when the server came back, too; and where that was away, that it is back when it connects."""
        server = Server.parse("unix:/run/mc")
        first = self.pool.memcached(server, Security(b"ca", username=b"u", password=b"1"))
        first._link.up_since = 5.0
        second = self.pool.memcached(server, Security(b"ca", username=b"u", password=b"2"))
        assert second.up_since == 5
        for state, used, knows in ((State.UP, True, False), (State.DOWN, True, True), (State.IDLE, False, False)):
            first._link.state, first._link._used = state, used
            self.pool.release(second)
            second = self.pool.memcached(server, Security(b"ca", username=b"u", password=b"2"))
            assert second._link._used is knows

    def test_memory(self) -> None:
        """Memory is never shared, and closed on its own."""
        first, second = self.pool.memory("memory:", 1000), self.pool.memory("memory:", 1000)
        for cache in (first, second):
            cache.set(b"k", b"v", 0, 0, Limits())
        self.pool.release(first)
        assert self.successResultOf(first.get(b"k", Limits())) is None
        assert self.successResultOf(second.get(b"k", Limits())) == b"v"
