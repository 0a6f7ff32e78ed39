"""The server's end of Redis connections, which says what a test wants, when it wants."""

from __future__ import annotations

from typing import Any

import attrs
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IReactorTime
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from socketmap_memcache.protocols.redis import ReplyReader, Unfinished
from socketmap_memcache.tables.redis_connection import RedisConnection


class Transport(StringTransport):
    def setTcpNoDelay(self, enabled: bool) -> None:
        pass

    def setTcpKeepAlive(self, enabled: bool) -> None:
        pass


class Peer:
    """The server's end of one connection."""

    def __init__(
        self,
        clock: IReactorTime,
        protocol: RedisConnection | None = None,
        peer: IPv4Address | UNIXAddress | None = None,
    ) -> None:
        self.protocol = protocol or RedisConnection("s", clock)
        self.transport = Transport(peerAddress=peer or IPv4Address("TCP", "192.0.2.1", 6379))
        self.protocol.makeConnection(self.transport)

    def received(self) -> list[bytes]:
        """Give the commands that came since the last call, their words joined by blanks."""
        reader = ReplyReader(10**6)  # commands look like replies
        reader.feed(self.transport.value())
        self.transport.clear()
        commands = []
        while not isinstance(command := reader.next_reply(), Unfinished):
            assert isinstance(command, list)
            commands.append(b" ".join(word for word in command if isinstance(word, bytes)))
        return commands

    def send(self, data: bytes) -> None:
        self.protocol.dataReceived(data)

    def answer(self, **replies: bytes) -> None:
        """Answer each command that has come, by its first word."""
        for command in self.received():
            self.send(replies[command.partition(b" ")[0].decode()])

    def lose(self) -> None:
        self.protocol.connectionLost(Failure(ConnectionDone()))

    def is_aborted(self) -> bool:
        return self.transport.disconnected

    def is_closed(self) -> bool:
        return self.transport.disconnecting


@attrs.define
class Attempt:
    """An attempt to connect that has not come to its end."""

    timeout: float
    cancelled: bool = False
    done: Deferred[RedisConnection] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.done = Deferred(self._cancel)

    def _cancel(self, _: object) -> None:
        self.cancelled = True


class Redis:
    """What a client's ``connect`` meets."""

    def __init__(self, clock: IReactorTime) -> None:
        self.clock = clock
        self.attempts: list[Attempt] = []

    def connect(self, timeout: float) -> Deferred[Any]:
        self.attempts.append(Attempt(timeout))
        return self.attempts[-1].done

    def accept(self) -> Peer:
        """Let the only attempt succeed."""
        (attempt,) = self.attempts
        self.attempts.clear()
        peer = Peer(self.clock)
        attempt.done.callback(peer.protocol)
        return peer

    def refuse(self, error: Exception) -> None:
        """Let the only attempt fail."""
        (attempt,) = self.attempts
        self.attempts.clear()
        attempt.done.errback(Failure(error))


def bulk(value: bytes | None) -> bytes:
    """Write the reply that is a value."""
    return b"$-1\r\n" if value is None else b"$%d\r\n%b\r\n" % (len(value), value)


def array(*items: bytes) -> bytes:
    """Write the reply that has these replies in it."""
    return b"*%d\r\n%b" % (len(items), b"".join(items))
