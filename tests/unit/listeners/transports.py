"""A client of a listener, as the listener sees it: a transport that is no socket."""

from __future__ import annotations

from typing import cast

from twisted.internet.address import IPv4Address
from twisted.internet.interfaces import IPushProducer
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from socketmap_memcache.listeners.stream import StreamConnection, StreamFactory


class Client(StringTransport):
    """The client's end of a connection to a listener."""

    def __init__(self, factory: StreamFactory) -> None:
        super().__init__(peerAddress=IPv4Address("TCP", "192.0.2.7", 4711), lenient=True)
        self.protocol = cast(StreamConnection, factory.buildProtocol(self.getPeer()))
        self.protocol.makeConnection(self)

    def send(self, data: bytes) -> None:
        """Send, in one chunk, to a listener that reads."""
        assert self.is_reading()
        self.protocol.dataReceived(data)

    def is_reading(self) -> bool:
        """Whether the listener reads from this client."""
        return self.producerState == "producing"

    def received(self) -> bytes:
        """Give what came since the last call."""
        data: bytes = self.value()
        self.clear()
        return data

    def block(self) -> None:
        """Stop reading replies."""
        cast(IPushProducer, self.producer).pauseProducing()

    def unblock(self) -> None:
        """Read replies again."""
        cast(IPushProducer, self.producer).resumeProducing()

    def shut(self) -> None:
        """Say that no more will be sent, and still read."""
        self.protocol.readConnectionLost()

    def leave(self, reason: Exception) -> None:
        """Go away, or hear that the listener has closed the connection."""
        self.connected = False
        self.protocol.connectionLost(Failure(reason))

    def is_aborted(self) -> bool:
        """Whether the listener cut the connection."""
        return self.disconnected

    def is_closed(self) -> bool:
        """Whether the listener closed the connection in good order."""
        return self.disconnecting and not self.disconnected
