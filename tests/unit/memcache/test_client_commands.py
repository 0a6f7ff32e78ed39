from __future__ import annotations

from twisted.internet.address import UNIXAddress
from zope.interface.verify import verifyObject

from socketmap_memcache.memcache.client import MemcacheClient
from socketmap_memcache.memcache.interface import ICache, Limits
from socketmap_memcache.prompt_writer import WRITES_TOGETHER
from tests.unit.memcache.scripted import gets, value

from .client_tests import LIMITS, ClientTests


class TestCommands(ClientTests):
    def test_interface(self) -> None:
        """The client is a cache, and has the name of its server."""
        verifyObject(ICache, self.client)
        assert self.client.name == "inet:mc:11211"

    def test_connects_when_needed(self) -> None:
        """No connection is made before the first command; then one, within that command's time limit."""
        assert not self.server.attempts
        self.get(limits=Limits(timeout=7))
        self.get(b"other")
        (attempt,) = self.server.attempts
        assert attempt.timeout == 7
        assert self.server.accept().received() == gets([b"k", b"other"])

    def test_together(self) -> None:
        """Commands that are sent in one context of writing together leave in one write at its end."""
        connection = self.connect()
        with WRITES_TOGETHER:
            for key in (b"a", b"b"):
                self.get(key)
            assert not connection.writes()
        assert connection.writes() == [b"get a\r\nget b\r\n"]

    def test_hit_and_miss(self) -> None:
        """A value is an answer, an empty value is one too, and END alone is a miss."""
        connection = self.connect()
        hit, empty, miss = self.get(b"a"), self.get(b"b"), self.get(b"c")
        self.flush()
        connection.send(value(b"a", b"1\r\n2") + value(b"b", b"") + b"END\r\n")
        assert self.successResultOf(hit) == b"1\r\n2"
        assert self.successResultOf(empty) == b""
        assert self.successResultOf(miss) is None

    def test_set(self) -> None:
        """A value is stored with flags and ttl as they are."""
        connection = self.connect()
        done = self.client.set(b"k", b"v", -1, 3600, LIMITS)
        assert connection.received() == b"set k -1 3600 1\r\nv\r\n"
        self.assertNoResult(done)
        connection.send(b"STORED\r\n")
        assert self.successResultOf(done) is True

    def test_delete(self) -> None:
        """A deletion says whether the key was there."""
        connection = self.connect()
        there, missing = self.client.delete(b"a", LIMITS), self.client.delete(b"b", LIMITS)
        self.flush()
        assert connection.received() == b"delete a\r\ndelete b\r\n"
        connection.send(b"DELETED\r\nNOT_FOUND\r\n")
        assert self.successResultOf(there) is True
        assert self.successResultOf(missing) is False

    def test_one_write(self) -> None:
        """The first command of an idle connection is sent at once; all others of the turn leave in one write."""
        connection = self.connect()
        keys = [b"k%d" % number for number in range(100)]
        for key in keys:
            self.get(key)
        assert connection.writes() == [gets(keys[:1])]
        self.flush()
        assert connection.writes() == [gets(keys[1:])]
        self.get(b"later")
        assert connection.writes() == []
        self.flush()
        assert connection.writes() == [gets([b"later"])]

    def test_one_timer(self) -> None:
        """However many commands wait for their answers, one timer watches over all of them."""
        connection = self.connect()
        for number in range(1000):
            self.get(b"k%d" % number)
            self.clock.advance(0.001)
        assert len(self.clock.getDelayedCalls()) == 1
        connection.send(b"END\r\n" * 1000)
        assert len(self.clock.getDelayedCalls()) <= 1
        self.clock.advance(LIMITS.timeout)
        assert self.clock.getDelayedCalls() == []
        assert not connection.is_aborted()

    def test_slow_server(self) -> None:
        """Replies that come byte by byte are answers all the same."""
        connection = self.connect()
        a, b = self.get(b"a"), self.get(b"b")
        self.flush()
        connection.send_slowly(value(b"a", b"x" * 100) + b"END\r\n")
        assert self.successResultOf(a) == b"x" * 100
        assert self.successResultOf(b) is None

    def test_options(self) -> None:
        """A TCP connection is set to send at once and to notice a dead peer; a UNIX socket has no such options."""
        assert self.connect().transport.options == ["nodelay", "keepalive"]
        self.server.peer = UNIXAddress("/mc")
        self.client = MemcacheClient("inet:mc:11211", self.server.connect, self.clock)
        assert self.connect().transport.options == []
