from __future__ import annotations

from typing import cast
from unittest.mock import patch

from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.logger import capturedLogs

from socketmap_memcache.listeners.stream import IN_FLIGHT_LIMIT, SLICE, SLICE_TIME, Request
from socketmap_memcache.prompt_writer import WRITES_TOGETHER
from tests.unit.listeners.transports import Client

from .plain_listener import PlainConnection, StreamTests, requests


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

    def test_slow_requests(self) -> None:
        """After a request that took its time it is the others' turn, however many are left."""
        answer = PlainConnection.request_received

        def answer_slowly(connection: PlainConnection, payload: bytes, request: Request) -> None:
            self.clock.rightNow += SLICE_TIME / 2
            answer(connection, payload, request)

        with patch.object(PlainConnection, "request_received", answer_slowly):
            self.client.send(requests(*[b"!x"] * 5))
            assert self.client.received() == b"!x" * 2
            assert not self.client.is_reading()
            self.clock.advance(0)
        assert self.client.received() == b"!x" * 3
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
