from __future__ import annotations

from unittest.mock import patch

from twisted.internet.error import ConnectionDone
from twisted.logger import capturedLogs

from tests.unit.listeners.transports import Client
from tests.unit.logs import texts

from .plain_listener import PlainFactory, StreamTests, requests


class TestIdle(StreamTests):
    def assertAborted(self, least: float, most: float) -> None:
        """Check that the client is cut off, that many seconds from now."""
        self.clock.pump([least / 100] * 100)
        assert not self.client.is_aborted()
        self.clock.pump([(most - least) / 10] * 10)
        assert self.client.is_aborted()

    def test_nothing_said(self) -> None:
        """A client that says nothing is closed after the idle time, and a quarter of it more at most; not logged."""
        with capturedLogs() as logs:
            self.assertAborted(400, 501)
        assert logs == []

    def test_half_a_request(self) -> None:
        """A client that stops in the middle of a request is closed after the idle time, with a log line."""
        self.client.send(b"10:abc")
        with capturedLogs() as logs:
            self.assertAborted(400, 501)
        assert texts(logs) == ["plain client [192.0.2.7]:4711: stalled; closed"]

    def test_many_stalled(self) -> None:
        """Many clients that stop in the middle of a request do not fill the log."""
        for _ in range(1000):
            Client(self.factory).send(b"10:abc")
        with capturedLogs() as logs:
            self.clock.pump([100] * 5)
        assert 0 < len(logs) < 50

    def test_byte_now_and_then(self) -> None:
        """A byte now and then is no sign of life: only a whole request is."""
        self.client.send(b"100:")
        for _ in range(60):
            if not self.client.is_aborted():
                self.client.send(b"x")
            self.clock.advance(10)
        assert self.client.is_aborted()

    def test_requests(self) -> None:
        """A client that asks within the idle time is kept."""
        for _ in range(20):
            self.clock.advance(390)
            self.client.send(requests(b"!a"))
        assert not self.client.is_aborted()
        self.assertAborted(399, 501)

    def test_unforeseen(self) -> None:
        """Whatever goes wrong with one client, idle ones are closed."""
        broken = patch.object(self.factory, "connections", [None, *self.factory.connections])
        with broken:
            self.assertAborted(400, 501)
        assert self.flushLoggedErrors(AttributeError)

    def test_pending(self) -> None:
        """A client that waits for its reply is not idle, however long that takes."""
        self.client.send(requests(b"a"))
        self.clock.pump([100] * 20)
        assert not self.client.is_aborted()
        self.server.answer(0)
        self.assertAborted(299, 501)

    def test_does_not_read(self) -> None:
        """A client that does not read its replies is idle, also while it waits for others."""
        self.client.send(requests(b"a"))
        self.client.block()
        with capturedLogs() as logs:
            self.clock.pump([100] * 5)
        assert self.client.is_aborted()
        assert len(logs) == 1

    def test_does_not_read_the_last(self) -> None:
        """A client that does not read its last replies cannot keep a connection that is being closed."""
        self.client.send(requests(b"a") + b"garbage")
        self.client.block()
        self.server.answer(0)
        self.clock.pump([100] * 5)
        assert self.client.is_aborted()

    def test_change(self) -> None:
        """The idle time can be changed at any time, for connections that are open too."""
        self.factory.idle_timeout = 200
        assert self.factory.idle_timeout == 200
        self.assertAborted(200, 251)

    def test_change_before_start(self) -> None:
        """The idle time can be changed before the listener starts."""
        factory = PlainFactory(self.clock, 400)
        factory.idle_timeout = 200
        assert len(self.clock.getDelayedCalls()) == 1
        factory.doStart()
        assert len(self.clock.getDelayedCalls()) == 2

    def test_one_timer(self) -> None:
        """However many clients there are, one timer looks after them."""
        for _ in range(100):
            Client(self.factory).send(requests(b"a"))
        assert len(self.clock.getDelayedCalls()) == 1


class TestDrain(StreamTests):
    def test_nothing_open(self) -> None:
        """Without connections there is nothing to wait for, and no timer is left."""
        self.client.leave(ConnectionDone())
        self.successResultOf(self.factory.drain())
        assert self.clock.getDelayedCalls() == []

    def test_never_started(self) -> None:
        """A listener that never listened can be drained."""
        self.successResultOf(PlainFactory(self.clock, 400).drain())

    def test_answers_first(self) -> None:
        """What is in flight is answered, then the connection closes; the end is told when all are closed."""
        idle = Client(self.factory)
        self.client.send(requests(b"a"))
        drained = self.factory.drain()
        assert idle.is_closed()
        idle.leave(ConnectionDone())
        self.assertNoResult(drained)
        assert not self.client.is_closed()
        assert not self.client.is_reading()
        self.server.answer(0)
        assert self.client.received() == b"a"
        assert self.client.is_closed()
        self.assertNoResult(drained)
        self.client.leave(ConnectionDone())
        self.successResultOf(drained)
        self.factory.doStop()

    def test_abort(self) -> None:
        """Connections that do not come to their end can be cut."""
        self.client.send(requests(b"a"))
        drained = self.factory.drain()
        self.factory.abort()
        assert self.client.is_aborted()
        self.client.leave(ConnectionDone())
        self.successResultOf(drained)

    def test_twice(self) -> None:
        """A connection that is closing already is not closed again."""
        self.client.send(requests(b"a") + b"garbage")
        drained = self.factory.drain()
        self.client.shut()
        self.server.answer(0)
        assert self.client.received() == b"a"
        self.client.leave(ConnectionDone())
        self.successResultOf(drained)
