from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from socketmap_memcache.errors import TemporaryError
from socketmap_memcache.memcache.client import MemcacheClient
from socketmap_memcache.memcache.interface import ILeaseCache, Leased, LeasesUnsupportedError, Limits

from .scripted import ScriptedConnection, ScriptedServer

ONCE = Limits(max_try=1, data_size_limit=10)


class LeaseCommandTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.server = ScriptedServer()
        self.clock = Clock()
        self.client = MemcacheClient("inet:memcached:11211", self.server.connect, self.clock)
        self.connection = self.connect()

    def connect(self) -> ScriptedConnection:
        answer = self.client.get(b"first", ONCE)
        connection = self.server.accept()
        connection.received()
        connection.send(b"END\r\n")
        self.successResultOf(answer)
        return connection

    def ask(self, reply: bytes, limits: Limits = ONCE) -> Deferred[Leased]:
        answer = self.client.get_leased(b"k", limits, 3, 60)
        assert self.connection.received() == b"mg k v k c N3 R60\r\n"
        self.connection.send_slowly(reply)
        return answer


class TestGetLeased(LeaseCommandTests):
    def test_interface(self) -> None:
        """The client is a cache with leases."""
        verifyObject(ILeaseCache, self.client)

    def test_answers(self) -> None:
        """What memcached says of a key: won, waiting, fresh, stale and won, stale, empty."""
        for reply, leased in (
            (b"VA 0 kk c7 W\r\n\r\n", Leased(None, True, False, b"7")),
            (b"VA 0 kk c7 Z\r\n\r\n", Leased(None, False, False, b"7")),
            (b"VA 1 kk c8\r\nv\r\n", Leased(b"v", False, True, b"8")),
            (b"VA 1 kk c8 W\r\nv\r\n", Leased(b"v", True, False, b"8")),
            (b"VA 1 kk c8 X Z\r\nv\r\n", Leased(b"v", False, False, b"8")),
            (b"VA 0 kk c9\r\n\r\n", Leased(b"", False, True, b"9")),
        ):
            assert self.successResultOf(self.ask(reply)) == leased

    def test_unsupported(self) -> None:
        """A server without meta commands, or without leases, is known by its reply, and not asked again."""
        for reply in (b"ERROR\r\n", b"CLIENT_ERROR unauthenticated\r\n", b"EN\r\n"):
            asked = self.ask(reply, Limits(max_try=2))
            error = self.failureResultOf(asked, LeasesUnsupportedError).value
            assert str(error) == (
                "memcached inet:memcached:11211 has no leases: its reply to mg is "
                f"{reply.strip()!r}. Connect directly to memcached 1.6 or later, or set lease = no"
            )
        assert not self.connection.is_aborted()

    def test_refused(self) -> None:
        """A server that cannot do it now has failed."""
        error = self.failureResultOf(self.ask(b"SERVER_ERROR out of memory\r\n"), TemporaryError).value
        assert not isinstance(error, LeasesUnsupportedError)
        self.failureResultOf(self.ask(b"VA 11 kk c1\r\n" + b"x" * 11 + b"\r\n"), TemporaryError)
        assert not self.connection.is_aborted()

    def test_unexpected(self) -> None:
        """Anything else spoils the connection."""
        for reply in (b"VA 1 kother c1\r\nv\r\n", b"VA 1 kk\r\nv\r\n", b"VA 1 kk c\r\nv\r\n", b"STORED\r\n"):
            self.failureResultOf(self.ask(reply), TemporaryError)
            assert self.connection.is_aborted()
            self.connection = self.connect()

    def test_connection_closed(self) -> None:
        """It does not go out again when the connection is closed, as a proxy does that does not know it."""
        answer = self.client.get_leased(b"k", ONCE, 3, 60)
        self.connection.lose()
        self.failureResultOf(answer, TemporaryError)
        assert self.server.attempts == []


class TestRefill(LeaseCommandTests):
    def test_answers(self) -> None:
        """It is stored, or somebody has changed or deleted the key."""
        for reply, stored in (
            (b"HD\r\n", True),
            (b"OK\r\n", True),
            (b"EX\r\n", False),
            (b"NF\r\n", False),
            (b"NS\r\n", False),
        ):
            answer = self.client.refill(b"k", b"v", 5, 60, b"7", ONCE)
            assert self.connection.received() == b"ms k 1 C7 F5 T60\r\nv\r\n"
            self.connection.send(reply)
            assert self.successResultOf(answer) is stored

    def test_unexpected(self) -> None:
        """After any other reply the data may have been taken for a command: the connection is spoilt."""
        answer = self.client.refill(b"k", b"v", 5, 60, b"7", ONCE)
        self.connection.send(b"CLIENT_ERROR bad data chunk\r\n")
        self.failureResultOf(answer, TemporaryError)
        assert self.connection.is_aborted()

    def test_sharing(self) -> None:
        """Who asks after a refill, or after a lease has been given up, does not share what was asked before."""
        for change in (
            lambda: self.client.refill(b"k", b"v", 5, 60, b"7", ONCE),
            lambda: self.client.give_up(b"k", b"7", ONCE),
        ):
            self.client.get(b"k", ONCE)
            change()
            self.client.get(b"k", ONCE)
            self.clock.advance(0)
            assert self.connection.received().count(b"get k\r\n") == 2
            self.connection.send(b"END\r\nHD\r\nEND\r\n")


class TestGiveUp(LeaseCommandTests):
    def test_answers(self) -> None:
        """The mark is gone, or somebody has changed or deleted the key before."""
        for reply, deleted in ((b"HD\r\n", True), (b"OK\r\n", True), (b"EX\r\n", False), (b"NF\r\n", False)):
            answer = self.client.give_up(b"k", b"7", ONCE)
            assert self.connection.received() == b"md k C7\r\n"
            self.connection.send(reply)
            assert self.successResultOf(answer) is deleted

    def test_refused(self) -> None:
        """A server that refuses has failed."""
        answer = self.client.give_up(b"k", b"7", ONCE)
        self.connection.send(b"ERROR\r\n")
        self.failureResultOf(answer, TemporaryError)
