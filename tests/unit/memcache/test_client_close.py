from __future__ import annotations

from twisted.internet.defer import Deferred

from socketmap_memcache.errors import LookupTimeout
from socketmap_memcache.memcache.client import MemcacheClient
from tests.unit.memcache.scripted import value

from .client_tests import LIMITS, ONE_TRY, ClientTests


class TestClose(ClientTests):
    def test_idle(self) -> None:
        """A client with nothing under way closes its connection, and leaves no timer."""
        connection = self.connect()
        self.client.close()
        assert connection.is_closed()
        assert self.timers() == []
        connection.lose()
        self.assertFailed(self.get(), "the client is closed")
        assert self.timers() == []
        assert not self.server.attempts

    def test_unused(self) -> None:
        """A client that was never used can be closed, also twice."""
        self.client.close()
        self.client.close()
        assert self.timers() == []

    def test_in_flight(self) -> None:
        """What is in flight, waits for its next try, or for the connection, is still answered; then all is let go."""
        connection = self.connect()
        pausing, flying = self.get(b"pausing"), self.get(b"flying")
        self.flush()
        connection.send(b"ERROR\r\n")
        self.client.close()
        connection.send(value(b"flying", b"1"))
        assert self.successResultOf(flying) == b"1"
        assert not connection.is_closed()
        self.clock.advance(1)
        connection.send(value(b"pausing", b"2"))
        assert self.successResultOf(pausing) == b"2"
        assert connection.is_closed()
        assert self.timers() == []

    def test_waiting(self) -> None:
        """A command that waits for the connection is still answered."""
        done = self.get()
        self.client.close()
        connection = self.server.accept()
        connection.send(value(b"k", b"v"))
        assert self.successResultOf(done) == b"v"
        assert connection.is_closed()

    def test_hang(self) -> None:
        """A server that hangs keeps a client that closes no longer than its commands may take."""
        self.connect()
        done = self.get()
        self.client.close()
        self.clock.advance(2)
        self.assertNoResult(done)
        self.clock.advance(1)
        self.server.accept()
        self.clock.advance(2)
        self.assertFailed(done, "no answer", LookupTimeout)
        assert self.timers() == []

    def test_command_of_a_last_answer(self) -> None:
        """A command that the last answer brings about, as a refill, is sent and answered before the end."""
        connection = self.connect()
        stored: list[Deferred[bool]] = []
        done = self.get()
        done.addCallback(lambda _: stored.append(self.client.set(b"k", b"v", 0, 0, LIMITS)))
        self.client.close()
        connection.received()
        connection.send(b"END\r\n")
        assert connection.received() == b"set k 0 0 1\r\nv\r\n"
        assert not connection.is_closed()
        connection.send(b"STORED\r\n")
        assert self.successResultOf(stored[0]) is True
        assert connection.is_closed()

    def test_down(self) -> None:
        """Closing ends the probes."""
        self.get(limits=ONE_TRY).addErrback(lambda _: None)
        self.server.refuse()
        self.clock.advance(10)
        self.server.refuse()
        self.client.close()
        assert self.timers() == []

    def test_probe_under_way(self) -> None:
        """Closing gives up an attempt to connect."""
        self.get().addErrback(lambda _: None)
        self.server.refuse()
        self.clock.advance(2.1)
        (attempt,) = self.server.attempts
        self.client.close()
        assert attempt.cancelled
        assert self.timers() == []

    def test_closes_upon_a_refusal(self) -> None:
        """A client that is closed when its last command hears that the server is down does not probe it."""
        self.get().addErrback(lambda _: self.client.close())
        self.server.refuse()
        assert self.timers() == []

    def test_closes_upon_a_timeout(self) -> None:
        """A client that is closed when its last command times out leaves neither a connection nor a timer."""
        connection = self.connect()
        self.get(limits=ONE_TRY).addErrback(lambda _: self.client.close())
        self.clock.advance(2)
        assert connection.is_aborted()
        assert self.timers() == []
        self.client = MemcacheClient("inet:mc:11211", self.server.connect, self.clock)
        self.get(limits=ONE_TRY).addErrback(lambda _: self.client.close())
        self.clock.advance(2)
        assert self.server.attempts[0].cancelled
        assert self.timers() == []

    def test_closes_from_within(self) -> None:
        """A user may close the client upon an answer."""
        connection = self.connect()
        done = self.get()
        done.addCallback(lambda _: self.client.close())
        connection.send(b"END\r\nsurplus")
        self.successResultOf(done)
        assert connection.is_closed()
        assert self.timers() == []
