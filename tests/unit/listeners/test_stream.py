from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any, cast
from weakref import ref

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.task import Clock
from twisted.logger import LogEvent, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from socketmap_memcache.listeners.stream import IN_FLIGHT_LIMIT, SLICE, Request, StreamConnection, StreamFactory
from socketmap_memcache.prompt_writer import WRITES_TOGETHER
from socketmap_memcache.protocols.netstring import NetstringReader, encode
from tests.unit.listeners.transports import Client


class PlainConnection(StreamConnection):
    """Leaves each request to the test, but for those that begin with a ``!``, which it answers at once."""

    factory: PlainFactory

    def __init__(self) -> None:
        super().__init__(NetstringReader(1000))
        self.asked: list[tuple[bytes, Request]] = []

    def request_received(self, payload: bytes, request: Request) -> None:
        if payload.startswith(b"!"):
            self.reply(request, payload)
        else:
            self.asked.append((payload, request))

    def answer(self, *places: int) -> None:
        """Answer the requests that the test was left, by their number."""
        for place in places:
            payload, request = self.asked[place]
            self.reply(request, payload)


class PlainFactory(StreamFactory):
    protocol = cast(Any, PlainConnection)
    kind = "plain"


def requests(*payloads: bytes) -> bytes:
    return b"".join(map(encode, payloads))


def texts(events: Sequence[LogEvent]) -> list[str]:
    return [formatEvent(event) for event in events]


class StreamTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.factory = PlainFactory(self.clock, 400)
        self.factory.doStart()
        self.client = Client(self.factory)

    @property
    def server(self) -> PlainConnection:
        return cast(PlainConnection, self.client.protocol)


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

    def test_good_ones_first(self) -> None:
        """The requests before the garbage are answered; nothing after it is read."""
        self.client.send(requests(b"a", b"!b") + b"x" + requests(b"!c"))
        assert not self.client.is_closed()
        assert not self.client.is_reading()
        self.server.dataReceived(requests(b"!d"))
        self.server.answer(0)
        assert self.client.received() == b"a!b"
        assert self.client.is_closed()


class TestPauses(StreamTests):
    def test_in_flight_limit(self) -> None:
        """With too many requests in flight no more is read, until half of them are answered."""
        self.client.send(requests(*[b"x"] * (IN_FLIGHT_LIMIT - 1)))
        assert self.client.is_reading()
        self.client.send(requests(b"last", b"one more"))
        assert not self.client.is_reading()
        assert len(self.server.asked) == IN_FLIGHT_LIMIT
        self.server.answer(*range(IN_FLIGHT_LIMIT // 2 - 1))
        assert not self.client.is_reading()
        self.server.answer(IN_FLIGHT_LIMIT // 2 - 1)
        assert self.client.is_reading()
        assert self.server.asked[-1][0] == b"one more"
        assert len(self.server.asked) == IN_FLIGHT_LIMIT + 1

    def test_many_in_one_chunk(self) -> None:
        """Requests that came before the pause wait for their turn, and all of them are answered in order."""
        count = IN_FLIGHT_LIMIT * 3
        payloads = [b"%d" % number for number in range(count)]
        self.client.send(requests(*payloads))
        assert len(self.server.asked) == IN_FLIGHT_LIMIT
        for place in range(count):
            self.server.answer(place)
            self.clock.advance(0)
            assert len(self.server._requests) <= IN_FLIGHT_LIMIT
        assert self.client.received() == b"".join(payloads)
        assert self.client.is_reading()

    def test_many_at_once(self) -> None:
        """Of requests that are answered at once, and came in one chunk, so many are answered before others' turn."""
        payloads = [b"!%d" % number for number in range(SLICE * 2 + 1)]
        self.client.send(requests(*payloads))
        assert self.client.received() == b"".join(payloads[:SLICE])
        assert not self.client.is_reading()
        self.clock.advance(0)
        assert self.client.received() == b"".join(payloads[SLICE:])
        assert self.client.is_reading()

    def test_replies_between_slices(self) -> None:
        """A reply that becomes known between two slices does not bring on the next one."""
        self.client.send(requests(b"a", *[b"!x"] * SLICE))
        self.server.answer(0)
        assert len(self.client.received()) == 1 + 2 * (SLICE - 1)
        self.clock.advance(0)
        assert self.client.received() == b"!x"

    def test_client_leaves_between_slices(self) -> None:
        """Nothing is left of a client that leaves when its requests are answered in part."""
        self.client.send(requests(*[b"!x"] * SLICE * 3))
        self.client.leave(ConnectionLost())
        assert len(self.clock.getDelayedCalls()) == 1  # the idle time's

    def test_end_between_slices(self) -> None:
        """A listener that ends does not begin another slice."""
        self.client.send(requests(*[b"!x"] * SLICE * 3))
        self.factory.drain()
        self.clock.advance(0)
        assert self.client.received() == b"!x" * SLICE
        assert self.client.is_closed()

    def test_data_during_a_pause(self) -> None:
        """What was received before the pause took effect is kept for later."""
        self.client.block()
        assert not self.client.is_reading()
        self.server.dataReceived(requests(b"!a")[:3])
        self.server.dataReceived(requests(b"!a")[3:])
        assert self.client.received() == b""
        self.client.unblock()
        assert self.client.received() == b"!a"
        assert self.client.is_reading()

    def test_client_does_not_read(self) -> None:
        """Nothing is read from a client that does not read its replies."""
        self.client.send(requests(b"a"))
        self.client.block()
        assert not self.client.is_reading()
        self.server.answer(0)
        assert not self.client.is_reading()
        self.client.unblock()
        assert self.client.is_reading()
        self.client.unblock()
        assert self.client.is_reading()

    def test_writes_together(self) -> None:
        """A client that sends many requests and does not read is paused as soon also where writes are held back."""
        other = Client(self.factory)
        with WRITES_TOGETHER:
            other.send(requests(b"!other"))
            assert other.received() == b""
            self.patch(self.client, "write", self.write_and_block)
            self.client.send(requests(*[b"!%d" % number for number in range(10)]))
        assert other.received() == b"!other"
        assert self.client.received() == b"!0"
        self.client.unblock()
        assert self.client.received() == b"!1"

    def write_and_block(self, data: bytes) -> None:
        Client.write(self.client, data)
        self.client.block()

    def test_garbage_during_a_pause(self) -> None:
        """Garbage behind a pause closes the connection when it is come upon."""
        self.client.send(requests(*[b"x"] * IN_FLIGHT_LIMIT) + b"garbage")
        self.client.block()
        self.client.unblock()
        with capturedLogs() as logs:
            self.server.answer(*range(IN_FLIGHT_LIMIT))
            self.clock.advance(0)
        assert len(logs) == 1
        assert self.client.is_closed()
        assert self.client.received() == b"x" * IN_FLIGHT_LIMIT


class TestLimits(StreamTests):
    """What all clients together may have."""

    def setUp(self) -> None:
        super().setUp()
        self.factory.pipelined.limit = 4
        self.other = Client(self.factory)
        self.server_of_other = cast(PlainConnection, self.other.protocol)

    def test_requests(self) -> None:
        """With too many requests of all clients in flight, each has one more at most; all are answered, in order."""
        self.client.send(requests(b"1", b"2", b"3", b"4"))
        assert self.factory.pipelined.count == 3
        self.other.send(requests(b"a", b"b", b"c", b"d"))
        assert [payload for payload, _ in self.server_of_other.asked] == [b"a", b"b"]
        assert not self.other.is_reading()
        assert self.factory.pipelined.count == 4
        third = Client(self.factory)
        third.send(requests(b"x", b"y"))
        assert [payload for payload, _ in cast(PlainConnection, third.protocol).asked] == [b"x"]
        cast(PlainConnection, third.protocol).answer(0)
        cast(PlainConnection, third.protocol).answer(1)
        assert third.received() == b"xy"
        assert third.is_reading()
        self.server.answer(3, 2, 1, 0)
        assert self.factory.pipelined.count == 1
        self.server_of_other.answer(0, 1, 2, 3)
        assert self.other.received() == b"abcd"
        assert self.other.is_reading()
        assert self.factory.pipelined.count == 0

    def test_one_at_a_time(self) -> None:
        """Without room for more, clients are served one request after the other."""
        self.factory.pipelined.limit = 0
        self.client.send(requests(b"1", b"2"))
        for place in range(2):
            assert len(self.server.asked) == place + 1
            self.server.answer(place)
        assert self.client.received() == b"12"

    def test_client_leaves(self) -> None:
        """The requests of a client that has left do not count."""
        self.client.send(requests(b"1", b"2", b"3", b"4"))
        self.client.leave(ConnectionLost())
        assert self.factory.pipelined.count == 0
        self.server.answer(0, 1, 2, 3)
        assert self.factory.pipelined.count == 0

    def test_clients(self) -> None:
        """The listener tells how many clients there are, and each is counted once."""
        entrance = self.factory.entrance
        is_open = []
        for change in (
            lambda: setattr(entrance, "limit", 2),
            lambda: self.client.leave(ConnectionDone()),
            lambda: self.factory.forget(self.server),
            lambda: setattr(entrance, "limit", 1),
        ):
            change()
            is_open.append(entrance.is_open)
        assert is_open == [False, True, True, False]


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


class TestBase(SynchronousTestCase):
    def test_abstract(self) -> None:
        """A connection has to say what it does with a request."""
        connection = StreamConnection(NetstringReader(10))
        self.assertRaises(NotImplementedError, connection.request_received, b"", Request())
