from __future__ import annotations

from typing import Any, cast

import pytest
from twisted.internet.defer import succeed
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from socketmap_memcache.errors import TemporaryError
from socketmap_memcache.memcache.security import PLAIN
from socketmap_memcache.memcache.server import Server
from tests.unit.tables.redis_scripted import Peer, Transport

pytest.importorskip("OpenSSL")
pytest.importorskip("service_identity")

from socketmap_memcache.tables.redis_servers import Hosts, Login
from socketmap_memcache.tables.redis_tls import SecureRedisConnection


class Verification:
    """Finds what it is told."""

    def __init__(self) -> None:
        self.problem = ""

    def verify(self, connection: object) -> None:
        if self.problem:
            raise ValueError(self.problem)

    def explain(self, error: BaseException | None, shaken: bool) -> str:
        return f"explained, {shaken}."


class SecureTransport(Transport):
    def getHandle(self) -> None:
        pass


class TestSecureConnection(SynchronousTestCase):
    def setUp(self) -> None:
        self.verification = Verification()
        self.connection = SecureRedisConnection("s", Clock(), cast(Any, self.verification))
        self.transport = SecureTransport()
        self.connection.makeConnection(self.transport)

    def lose(self) -> None:
        self.connection.connectionLost(Failure(ConnectionLost()))

    def error(self, kind: type[Exception] = TemporaryError) -> str:
        return str(self.failureResultOf(self.connection.verified, kind).getErrorMessage())

    def test_verified(self) -> None:
        """When the name has been verified the connection may be used; what ends it before an answer is explained."""
        self.assertNoResult(self.connection.verified)
        self.connection.handshakeCompleted()
        assert self.successResultOf(self.connection.verified) is self.connection
        answer = self.connection.ask(b"PING")
        self.lose()
        assert self.failureResultOf(answer, TemporaryError).getErrorMessage() == "redis s: explained, True."

    def test_lost(self) -> None:
        """After the greeting a connection that is lost is just lost."""
        self.connection.handshakeCompleted()
        self.connection.has_answered = True
        answer = self.connection.ask(b"PING")
        self.connection.connectionLost(Failure(ConnectionDone()))
        assert "connection lost" in self.failureResultOf(answer, TemporaryError).getErrorMessage()

    def test_other_name(self) -> None:
        """A certificate for another name ends the connection before anything is said."""
        self.verification.problem = "it is not for s."
        self.connection.handshakeCompleted()
        assert self.error() == "it is not for s."
        assert self.transport.disconnected
        assert self.transport.value() == b""
        self.lose()

    def test_no_handshake(self) -> None:
        """A connection that ends before the handshake does is explained."""
        self.lose()
        assert self.error() == "explained, False."

    def test_cancelled(self) -> None:
        """Who waits no longer for the handshake gets a reason, and the connection ends."""
        self.connection.verified.cancel()
        assert self.transport.disconnected
        assert "does the server speak TLS?" in self.error(Exception)
        self.lose()

    def test_hosts(self) -> None:
        """Of a server with TLS that does not begin with it, the reason says so."""
        clock = Clock()
        self.patch(Server, "connect", lambda *arguments: self.connected(arguments[2]))
        hosts = Hosts([Server.parse("tls:localhost:1")], Login(), clock, masters_only=False, security=PLAIN)
        done = hosts.connect(2)
        clock.advance(2)
        failure = self.failureResultOf(done, TemporaryError)
        assert failure.getErrorMessage() == "tls:localhost:1: no TLS handshake in time; does the server speak TLS?"

    def connected(self, factory: Any) -> Any:
        """Give what a server's ``connect`` gives, with a server that says nothing."""
        wrapper = factory.buildProtocol(None)
        Peer(Clock(), wrapper)
        return succeed(wrapper)
