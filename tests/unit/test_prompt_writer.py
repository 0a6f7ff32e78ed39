from __future__ import annotations

import socket
from collections.abc import Generator
from typing import Any, cast

from twisted.internet import reactor as real_reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.internet.tcp import Connection
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from socketmap_memcache.prompt_writer import WRITES_TOGETHER, PromptWriter

reactor: Any = real_reactor

#: More than the buffers of two sockets take.
MUCH = b"0123456789abcdef" * 2**19


class TestOtherTransports(SynchronousTestCase):
    """What is no plain socket is written to in its own way."""

    def setUp(self) -> None:
        self.heard: list[str] = []
        self.transport = StringTransport()
        self.writer = PromptWriter(
            self.transport, lambda: self.heard.append("full"), lambda: self.heard.append("drained")
        )

    def test_write(self) -> None:
        """What is written goes to the transport, in order."""
        self.writer.write(b"a")
        self.writer.write(b"b")
        assert self.transport.value() == b"ab"
        assert self.heard == []

    def test_full(self) -> None:
        """The transport says when its buffer is full and when it is empty again."""
        assert self.transport.streaming is True
        producer = cast(IPushProducer, self.transport.producer)
        for full, happens in ((True, producer.pauseProducing), (False, producer.resumeProducing)):
            happens()
            assert self.writer.full is full
            self.writer.write(b"a")
        assert self.heard == ["full", "drained"]
        assert self.transport.producer is self.writer

    def test_close(self) -> None:
        """A closed writer lets the transport go, so that it closes when all is written."""
        self.writer.close()
        assert self.transport.producer is None
        assert self.transport.disconnecting

    def test_together(self) -> None:
        """What is written together leaves at the end, in order."""
        other = StringTransport()
        with WRITES_TOGETHER:
            self.writer.write(b"a")
            PromptWriter(other).write(b"b")
            self.writer.write(b"c")
            assert self.transport.value() + other.value() == b""
        assert self.transport.value() == b"ac"
        assert other.value() == b"b"
        self.writer.write(b"d")
        assert self.transport.value() == b"acd"

    def test_together_inside(self) -> None:
        """What is written together inside of others leaves with them."""
        with WRITES_TOGETHER:
            with WRITES_TOGETHER:
                self.writer.write(b"a")
            assert self.transport.value() == b""
            self.writer.write(b"b")
        assert self.transport.value() == b"ab"

    def test_unforeseen_together(self) -> None:
        """A writer that fails does not keep from the others what is theirs."""
        broken = PromptWriter(StringTransport())
        with WRITES_TOGETHER:
            broken.write(b"text")
            broken._transport = cast(Any, None)
            self.writer.write(b"a")
        assert self.transport.value() == b"a"
        assert len(self.flushLoggedErrors(AttributeError)) == 1

    def test_closed_together(self) -> None:
        """What was held back is written before its writer is closed."""
        with WRITES_TOGETHER:
            self.writer.write(b"a")
            self.writer.close()
            assert self.transport.value() == b"a"

    def test_nobody_listens(self) -> None:
        """Nobody needs to listen to the state of the buffer, nor to the end of the connection."""
        writer = PromptWriter(StringTransport())
        writer.pauseProducing()
        writer.resumeProducing()
        writer.stopProducing()
        assert not writer.full


class Server(Protocol):
    """Has a writer, and tells what happens to the connection."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.lost: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.writer = PromptWriter(
            self.transport, lambda: self.heard.append("full"), lambda: self.heard.append("drained")
        )

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.heard.append("lost")
        self.lost.callback(None)


class TestSockets(TestCase):
    """Real sockets, connected with each other."""

    timeout = 20

    @inlineCallbacks
    def connect(self) -> Generator[Deferred[Any], Any, tuple[Server, socket.socket]]:
        factory = Factory.forProtocol(Server)
        factory.noisy = False
        accepted: Deferred[Server] = Deferred()
        build = factory.buildProtocol

        def build_and_tell(address: Any) -> Any:
            protocol = build(address)
            reactor.callLater(0, accepted.callback, protocol)
            return protocol

        self.patch(factory, "buildProtocol", build_and_tell)
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")
        client = socket.socket()
        self.addCleanup(client.close)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
        client.connect(("127.0.0.1", port.getHost().port))
        client.setblocking(False)
        server = yield accepted
        yield port.stopListening()
        assert isinstance(server.transport, Connection)
        server.transport.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**16)
        return server, client

    @inlineCallbacks
    def read(self, client: socket.socket, size: int) -> Generator[Deferred[Any], Any, bytes]:
        """Read that many bytes, or all until the end."""
        data = bytearray()
        while len(data) < size:
            try:
                chunk = client.recv(2**20)
            except BlockingIOError:
                yield deferLater(reactor, 0.001)
                continue
            if not chunk:
                break
            data += chunk
        return bytes(data)

    @inlineCallbacks
    def test_at_once(self) -> Generator[Deferred[Any], Any, None]:
        """What the socket takes is sent at once, before the reactor's next turn."""
        server, client = yield self.connect()
        server.writer.write(b"hello")
        assert client.recv(10) == b"hello"
        assert not server.writer.full
        server.writer.close()
        yield server.lost
        assert client.recv(10) == b""
        assert server.heard == ["lost"]

    @inlineCallbacks
    def test_much(self) -> Generator[Deferred[Any], Any, None]:
        """What the socket does not take waits in the buffer; all arrives, in order, and again after that."""
        server, client = yield self.connect()
        for _ in range(2):
            server.writer.write(MUCH)
            assert server.writer.full
            server.writer.write(b"end")
            data = yield self.read(client, len(MUCH) + 3)
            assert data == MUCH + b"end"
            while server.writer.full:
                yield deferLater(reactor, 0.001)
            server.writer.write(b"more")
            data = yield self.read(client, 4)
            assert data == b"more"
        assert server.heard == ["full", "drained"] * 2
        server.writer.close()
        yield server.lost

    @inlineCallbacks
    def test_close_when_full(self) -> Generator[Deferred[Any], Any, None]:
        """What is in the buffer at the end is still sent before the connection closes."""
        server, client = yield self.connect()
        server.writer.write(MUCH)
        server.writer.close()
        data = yield self.read(client, len(MUCH) + 1)
        assert data == MUCH
        yield server.lost
        assert server.heard == ["full", "drained", "lost"]

    @inlineCallbacks
    def test_peer_left(self) -> Generator[Deferred[Any], Any, None]:
        """Writing to a peer that has left, before or after the transport knows, raises nothing."""
        server, client = yield self.connect()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        server.writer.write(b"x")
        server.writer.write(b"x")
        yield server.lost
        server.writer.write(b"x")
        server.writer.write(b"x")
        server.writer.close()
        assert "lost" in server.heard

    @inlineCallbacks
    def test_lost_when_full(self) -> Generator[Deferred[Any], Any, None]:
        """A connection that is lost with a full buffer is only told as lost."""
        server, client = yield self.connect()
        server.writer.write(MUCH)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        yield server.lost
        assert server.heard == ["full", "lost"]
