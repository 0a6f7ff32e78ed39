from __future__ import annotations

from typing import Any, cast

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.error import ConnectionRefusedError as RefusedByServerError
from twisted.internet.error import TimeoutError as ConnectTimeoutError
from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from socketmap_memcache.errors import ConfigurationError, LookupTimeout, PermanentError, TemporaryError
from socketmap_memcache.memcache.pool import ClientPool
from socketmap_memcache.protocols.netstring import encode
from socketmap_memcache.tables.interface import ITable, ReadOnlyError
from socketmap_memcache.tables.registry import TableContext
from socketmap_memcache.tables.socketmap import SocketmapTable
from socketmap_memcache.tables.socketmap_client import CONNECTION_LIMIT, SocketmapClient, SocketmapClientConnection


@attrs.define(eq=False)
class Attempt:
    factory: IProtocolFactory
    timeout: float
    done: Deferred[SocketmapClientConnection] = attrs.Factory(Deferred)

    def accept(self) -> Connection:
        protocol = cast(SocketmapClientConnection, self.factory.buildProtocol(cast(Any, None)))
        connection = Connection(protocol)
        self.done.callback(protocol)
        return connection


class Connection:
    """The server's end."""

    def __init__(self, protocol: SocketmapClientConnection) -> None:
        self.protocol = protocol
        self.transport = StringTransport()
        protocol.makeConnection(self.transport)

    def received(self) -> bytes:
        data: bytes = self.transport.value()
        self.transport.clear()
        return data

    def send(self, data: bytes) -> None:
        self.protocol.dataReceived(data)

    def lose(self, reason: type[Exception] = ConnectionDone) -> None:
        self.protocol.connectionLost(Failure(reason()))

    def is_aborted(self) -> bool:
        return self.transport.disconnected


class Refusing(list[Attempt]):
    """Fails each attempt at once."""

    def append(self, attempt: Attempt) -> None:
        super().append(attempt)
        attempt.done.errback(OSError("no descriptors"))


class SocketmapTableTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.attempts: list[Attempt] = []
        self.table = SocketmapTable("socketmap:s:m", b"m", SocketmapClient("s", self.connect, self.clock))

    def connect(self, factory: IProtocolFactory, timeout: float) -> Deferred[SocketmapClientConnection]:
        self.attempts.append(Attempt(factory, timeout))
        return self.attempts[-1].done

    def accept(self) -> Connection:
        return self.attempts.pop(0).accept()

    def connected(self) -> Connection:
        """Give a connection that has served a look-up."""
        done = self.table.lookup(b"first")
        connection = self.accept()
        connection.send(b"4:OK x,")
        assert self.successResultOf(done) == b"x"
        connection.received()
        return connection

    def test_one_connection(self) -> None:
        """A connection is made for the first look-up, and kept for those after it."""
        assert self.attempts == []
        connection = self.connected()
        done = self.table.lookup(b"KeY ")
        assert connection.received() == b"6:m KeY ,"
        for byte in b"5:OK  v,":
            connection.send(bytes([byte]))
        assert self.successResultOf(done) == b" v"
        assert self.attempts == []

    def test_replies(self) -> None:
        """Each status has its outcome; what is none of them is a failure."""
        connection = self.connected()
        for reply, expected in {
            b"OK": b"",
            b"OK ": b"",
            b"OK a\0b": b"a",
            b"NOTFOUND": None,
            b"NOTFOUND x": None,
        }.items():
            done = self.table.lookup(b"k")
            connection.send(encode(reply))
            assert self.successResultOf(done) == expected
        for reply, error in {
            b"TEMP x": TemporaryError,
            b"TIMEOUT": LookupTimeout,
            b"PERM \xff": PermanentError,
            b"OK \xff": PermanentError,
            b"ok v": TemporaryError,
            b"": TemporaryError,
        }.items():
            done = self.table.lookup(b"k")
            connection.send(encode(reply))
            failure = self.failureResultOf(done)
            assert type(failure.value) is error, reply
            assert "socketmap:s:m" in failure.getErrorMessage()
        assert not connection.is_aborted()

    def test_text(self) -> None:
        """What the server says of a failure is shown in one line, without what a terminal would obey."""
        connection = self.connected()
        done = self.table.lookup(b"k")
        connection.send(encode(b"TEMP x\n2026 forged\x1b[2K" + b"y" * 1000))
        text = self.failureResultOf(done).getErrorMessage()
        assert "answered TEMP x?2026 forged?[2Ky" in text
        assert len(text) < 300

    def test_no_connection_at_once(self) -> None:
        """However many look-ups wait for a connection, each fails when none can be made, at once."""
        waiting = [self.table.lookup(b"k") for _ in range(CONNECTION_LIMIT + 1000)]
        attempts, self.attempts = self.attempts, Refusing()
        for attempt in attempts:
            attempt.done.errback(OSError("no descriptors"))
        for done in waiting:
            self.failureResultOf(done, TemporaryError)
        self.attempts = []
        self.connected()

    def test_keys(self) -> None:
        """A key that is not UTF-8 is missing, one above the limit fails, an empty one is sent."""
        assert self.successResultOf(self.table.lookup(b"\xff")) is None
        self.failureResultOf(self.table.lookup(b"a" * 99_999), PermanentError)
        assert self.attempts == []
        self.table.lookup(b"")
        assert self.accept().received() == b"2:m ,"

    def test_concurrent(self) -> None:
        """One request at a time is sent on each of a limited number of connections; the others wait for their turn."""
        answers = [self.table.lookup(b"%02d" % number) for number in range(CONNECTION_LIMIT + 2)]
        assert len(self.attempts) == CONNECTION_LIMIT
        connections = [self.accept() for _ in range(CONNECTION_LIMIT)]
        asked = [connection.received() for connection in connections]
        assert asked == [b"4:m %02d," % number for number in range(CONNECTION_LIMIT)]
        connections[3].send(b"4:OK 3,")
        assert self.successResultOf(answers[3]) == b"3"
        for waited in (-2, -1):
            assert connections[3].received() == b"4:m %02d," % (CONNECTION_LIMIT + 2 + waited)
            connections[3].send(b"4:OK x,")
            assert self.successResultOf(answers[waited]) == b"x"

    def test_queue_is_bounded(self) -> None:
        """When a thousand look-ups wait the next fails at once."""
        for _ in range(CONNECTION_LIMIT + 1000):
            self.table.lookup(b"k")
        self.failureResultOf(self.table.lookup(b"k"), TemporaryError)

    def test_down(self) -> None:
        """A server that does not accept fails its look-ups at once, also those that wait, and each one tries again."""
        answers = [self.table.lookup(b"k") for _ in range(CONNECTION_LIMIT + 1)]
        for _ in answers:
            self.attempts.pop(0).done.errback(RefusedByServerError())
        for answer in answers:
            assert "refused" in self.failureResultOf(answer, TemporaryError).getErrorMessage()
        answer = self.table.lookup(b"k")
        self.accept().send(b"4:OK x,")
        assert self.successResultOf(answer) == b"x"

    def test_no_connection_in_time(self) -> None:
        """A connection that cannot be made in time is a time-out."""
        answer = self.table.lookup(b"k")
        assert self.attempts[0].timeout == 10
        self.attempts[0].done.errback(ConnectTimeoutError())
        self.failureResultOf(answer, LookupTimeout)

    def test_timeout(self) -> None:
        """A reply that does not come in time is a time-out; the connection is dropped, and nothing is tried again."""
        connection = self.connected()
        answer = self.table.lookup(b"k")
        self.clock.advance(9.9)
        connection.send(b"4:OK")
        self.clock.advance(0.1)
        self.failureResultOf(answer, LookupTimeout)
        assert connection.is_aborted()
        connection.send(b" x,")
        connection.lose()
        assert self.attempts == []

    def test_hanging_server(self) -> None:
        """Of a server that hangs nobody waits longer than the time limit, also those in the queue."""
        answers = [self.table.lookup(b"k") for _ in range(20)]
        for _ in range(8):
            self.accept()
        self.clock.advance(10)
        for _ in range(12):
            self.attempts.pop(0).done.errback(ConnectTimeoutError())
        for answer in answers:
            self.failureResultOf(answer, LookupTimeout)

    def test_closed_by_server(self) -> None:
        """A look-up whose connection is closed is sent once more, on a new one; the second time it fails."""
        connection = self.connected()
        answer = self.table.lookup(b"k")
        connection.send(b"4:O")
        connection.lose()
        second = self.accept()
        assert second.received() == b"3:m k,"
        second.send(b"4:OK x,")
        assert self.successResultOf(answer) == b"x"
        answer = self.table.lookup(b"k")
        second.lose(ConnectionLost)
        self.accept().lose()
        assert "connection lost" in self.failureResultOf(answer, TemporaryError).getErrorMessage()
        assert self.attempts == []

    def test_closed_between(self) -> None:
        """A connection that the server closes between look-ups is forgotten."""
        self.connected().lose()
        self.table.lookup(b"k")
        assert len(self.attempts) == 1

    def test_garbage(self) -> None:
        """A reply that is no netstring, or above the limit, is a failure, and ends its connection."""
        for garbage in (b"x", b"01:a,", b"4:OK xx", b"100001:", b":,"):
            connection = self.connected()
            answer = self.table.lookup(b"k")
            connection.send(garbage)
            self.failureResultOf(answer, TemporaryError)
            assert connection.is_aborted()
            connection.lose()

    def test_more_than_asked_for(self) -> None:
        """What comes behind a reply, or unasked, is never taken for an answer: the connection ends."""
        connection = self.connected()
        answer = self.table.lookup(b"k")
        connection.send(b"4:OK x,7:OK EVIL,")
        assert self.successResultOf(answer) == b"x"
        assert connection.is_aborted()
        connection = self.connected()
        connection.send(b"7:OK EVIL,")
        assert connection.is_aborted()

    def test_idle(self) -> None:
        """A connection that is not used for ten seconds is closed, and no timer is left."""
        connection = self.connected()
        self.clock.advance(9)
        self.table.lookup(b"k")
        connection.send(b"4:OK x,")
        self.clock.advance(9)
        assert not connection.is_aborted()
        self.clock.advance(1)
        assert connection.is_aborted()
        assert self.clock.getDelayedCalls() == []

    def test_close(self) -> None:
        """Closing ends connections at rest at once, and others after their look-ups."""
        connection = self.connected()
        self.table.close()
        assert connection.is_aborted()
        connection = self.connected()
        assert connection.is_aborted()
        assert self.clock.getDelayedCalls() == []


class OpenTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.context = TableContext(ClientPool(MemoryReactorClock()))

    def test_names(self) -> None:
        """A map is named by its server and what follows the last colon; it is read-only, and connects when used."""
        for name in ("inet:127.0.0.1:1:m", "inet:[::1]:1:m", "unix:/a:b:m m", "unix:/a:"):
            table = self.context.open_table(f"socketmap:{name}")
            verifyObject(ITable, table)
            assert table.name == f"socketmap:{name}"
            self.failureResultOf(table.delete(b"k"), ReadOnlyError)
            table.close()
        assert self.context.reactor.tcpClients == []
        table = self.context.open_table("socketmap:inet:127.0.0.1:1:m")
        table.lookup(b"k")
        assert self.context.reactor.tcpClients[0][:2] == ("127.0.0.1", 1)

    def test_errors(self) -> None:
        """A name without a server or without a map is refused."""
        for name in ("", "m", "inet:127.0.0.1:m", "bogus:/a:m", "inet:127.0.0.1:99999:m"):
            error = self.assertRaises(ConfigurationError, self.context.open_table, f"socketmap:{name}")
            assert "write socketmap:inet:host:port:map" in str(error)
