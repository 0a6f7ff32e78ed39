"""A memcached that does what the test says, over connections that are no sockets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import attrs
from twisted.internet import error as errors
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from socketmap_memcache.memcache.connection import MemcacheConnection
from socketmap_memcache.memcache.probe import PROBE_KEY

#: What a client sends to a server that it does not trust, and what is answered where all is well.
PROBE, PROBE_REPLY = b"delete %b\r\n" % PROBE_KEY, b"NOT_FOUND\r\n"


class ScriptedTransport(StringTransport):
    """Remembers each write, and the options that were set."""

    def __init__(self, peer: IPv4Address | UNIXAddress) -> None:
        super().__init__(peerAddress=peer)
        self.writes: list[bytes] = []
        self.options: list[str] = []

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def setTcpNoDelay(self, enabled: bool) -> None:
        self.options.append("nodelay")

    def setTcpKeepAlive(self, enabled: bool) -> None:
        self.options.append("keepalive")


class ScriptedConnection:
    """The server's end of one connection."""

    def __init__(self, protocol: MemcacheConnection, peer: IPv4Address | UNIXAddress) -> None:
        self.protocol = protocol
        self.transport = ScriptedTransport(peer)
        protocol.makeConnection(self.transport)

    def received(self) -> bytes:
        """Give what came since the last call."""
        return b"".join(self.writes())

    def writes(self) -> list[bytes]:
        """Give each write since the last call."""
        writes, self.transport.writes = self.transport.writes, []
        return writes

    def send(self, data: bytes) -> None:
        """Send, in one chunk."""
        self.protocol.dataReceived(data)

    def send_slowly(self, data: bytes) -> None:
        """Send byte by byte."""
        for byte in data:
            self.protocol.dataReceived(bytes([byte]))

    def lose(self, reason: type[Exception] = ConnectionDone) -> None:
        """Close the connection, or tell the client that its closing is done."""
        self.protocol.connectionLost(Failure(reason()))

    def is_aborted(self) -> bool:
        """Whether the client cut the connection."""
        return self.transport.disconnected

    def is_closed(self) -> bool:
        """Whether the client closed the connection in good order."""
        return self.transport.disconnecting and not self.transport.disconnected


@attrs.define
class Attempt:
    """An attempt to connect that has not come to its end."""

    factory: IProtocolFactory
    timeout: float
    cancelled: bool = False
    done: Deferred[MemcacheConnection] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.done = Deferred(self._cancel)

    def _cancel(self, _: object) -> None:
        self.cancelled = True


class ScriptedServer:
    """What a client's ``connect`` meets: attempts wait until the test accepts or refuses them."""

    def __init__(self) -> None:
        self.attempts: list[Attempt] = []
        self.connections: list[ScriptedConnection] = []
        self.peer: IPv4Address | UNIXAddress = IPv4Address("TCP", "192.0.2.1", 11211)

    def connect(self, factory: IProtocolFactory, timeout: float) -> Deferred[MemcacheConnection]:
        """Begin an attempt, as a client's ``connect`` does."""
        attempt = Attempt(factory, timeout)
        self.attempts.append(attempt)
        return attempt.done

    def accept(self) -> ScriptedConnection:
        """Let the only attempt succeed."""
        (attempt,) = self.attempts
        self.attempts.clear()
        protocol = cast(MemcacheConnection, attempt.factory.buildProtocol(cast(Any, self.peer)))
        connection = ScriptedConnection(protocol, self.peer)
        self.connections.append(connection)
        attempt.done.callback(protocol)
        return connection

    def accept_probe(self) -> ScriptedConnection:
        """Let the only attempt succeed, and answer the probe that follows."""
        connection = self.accept()
        assert connection.received() == PROBE
        connection.send(PROBE_REPLY)
        return connection

    def refuse(self, error: Exception | None = None) -> None:
        """Let the only attempt fail."""
        (attempt,) = self.attempts
        self.attempts.clear()
        attempt.done.errback(Failure(error or errors.ConnectionRefusedError()))


def value(key: bytes, data: bytes, end: bytes = b"END\r\n") -> bytes:
    """Write the reply that is a value."""
    return b"VALUE %b 0 %d\r\n%b\r\n%b" % (key, len(data), data, end)


def gets(keys: Iterable[bytes]) -> bytes:
    """Write the commands that ask for keys."""
    return b"".join(b"get %b\r\n" % key for key in keys)
