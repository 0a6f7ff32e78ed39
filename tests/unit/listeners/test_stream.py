from __future__ import annotations

import gc
from typing import cast
from weakref import ref

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from socketmap_memcache.listeners.stream import Request, StreamConnection
from socketmap_memcache.protocols.netstring import NetstringReader
from tests.unit.listeners.transports import Client
from tests.unit.logs import texts

from .plain_listener import PlainConnection, PlainFactory, StreamTests, requests


class TestReplies(StreamTests):
    def test_interface(self) -> None:
        """A connection hears of a client that sends no more."""
        verifyObject(IHalfCloseableProtocol, self.server)

    def test_at_once(self) -> None:
        """A request that can be answered at once is."""
        self.client.send(requests(b"!1"))
        assert self.client.received() == b"!1"

    def test_order(self) -> None:
        """Replies are sent in the order of the requests, whatever order they are known in."""
        self.client.send(requests(b"a", b"b", b"!c", b"d", b"e"))
        self.server.answer(1)
        assert self.client.received() == b""
        self.server.answer(0)
        assert self.client.received() == b"ab!c"
        self.server.answer(3)
        assert self.client.received() == b""
        self.server.answer(2)
        assert self.client.received() == b"de"

    def test_chunks(self) -> None:
        """A request may come in any pieces."""
        for byte in requests(b"!one", b"!two"):
            self.client.send(bytes([byte]))
        assert self.client.received() == b"!one!two"

    def test_client_left(self) -> None:
        """A reply for a client that has left goes nowhere, and harms nobody."""
        other = Client(self.factory)
        self.client.send(requests(b"a", b"b"))
        self.client.leave(ConnectionLost())
        self.server.answer(1, 0)
        assert self.client.received() == b""
        other.send(requests(b"!x"))
        assert other.received() == b"!x"
        assert self.factory.connections == {other.protocol}

    def test_what_the_client_left(self) -> None:
        """The half of a request that was received is forgotten with the client, and not some time later."""

        class Reader(NetstringReader):
            """Unlike its base class, this one can be watched."""

        self.server._reader = Reader(1000)
        reader = ref(self.server._reader)
        self.client.send(b"999:half")
        gc.disable()
        self.addCleanup(gc.enable)
        self.client.leave(ConnectionDone())
        assert reader() is None

    def test_normal_end(self) -> None:
        """That a client closes its connection is not logged."""
        with capturedLogs() as logs:
            self.client.send(requests(b"!a"))
            self.client.leave(ConnectionDone())
        assert logs == []

    def test_half_close(self) -> None:
        """A client that sends no more gets its answers before the connection is closed."""
        self.client.send(requests(b"a", b"b"))
        self.client.shut()
        self.server.writeConnectionLost()
        assert not self.client.is_closed()
        self.server.answer(0)
        assert not self.client.is_closed()
        self.server.answer(1)
        assert self.client.received() == b"ab"
        assert self.client.is_closed()

    def test_half_close_of_idle(self) -> None:
        """A client that sends no more and waits for nothing is closed at once."""
        self.client.shut()
        assert self.client.is_closed()


@given(st.permutations(list(range(8))), st.sets(st.integers(0, 7)))
def test_any_order(order: list[int], at_once: set[int]) -> None:
    """Whatever order the replies become known in, they are sent in the order of the requests, and none is lost."""
    client = Client(PlainFactory(Clock(), 400))
    payloads = [b"!%d" % number if number in at_once else b"%d" % number for number in range(8)]
    client.send(requests(*payloads))
    server = cast(PlainConnection, client.protocol)
    waiting = {int(payload): place for place, (payload, _) in enumerate(server.asked)}
    for number in order:
        if number in waiting:
            server.answer(waiting[number])
    assert client.received() == b"".join(payloads)


class TestMalformed(StreamTests):
    def test_closed(self) -> None:
        """Garbage closes the connection, with one log line that names the client and the reason."""
        other = Client(self.factory)
        with capturedLogs() as logs:
            self.client.send(b"GET / HTTP/1.1\r\n")
        assert texts(logs) == [
            "plain client [192.0.2.7]:4711: netstring does not begin with its length; connection closed"
        ]
        assert self.client.is_closed()
        assert not other.is_closed()

    def test_in_a_loop(self) -> None:
        """A client that sends garbage again and again does not fill the log; how often it did is told later."""
        with capturedLogs() as logs:
            for _ in range(1000):
                Client(self.factory).send(b"garbage")
            lines = len(logs)
            self.clock.advance(60)
            Client(self.factory).send(b"garbage")
        assert lines < 50
        (last,) = texts(logs)[lines:]
        assert last.endswith(f"; connection closed ({1000 - lines} times more since this was last logged)")

    def test_good_ones_first(self) -> None:
        """The requests before the garbage are answered; nothing after it is read."""
        self.client.send(requests(b"a", b"!b") + b"x" + requests(b"!c"))
        assert not self.client.is_closed()
        assert not self.client.is_reading()
        self.server.dataReceived(requests(b"!d"))
        self.server.answer(0)
        assert self.client.received() == b"a!b"
        assert self.client.is_closed()


class TestBase(SynchronousTestCase):
    def test_abstract(self) -> None:
        """A connection has to say what it does with a request."""
        connection = StreamConnection(NetstringReader(10))
        self.assertRaises(NotImplementedError, connection.request_received, b"", Request())
