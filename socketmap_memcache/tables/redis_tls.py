"""TLS to a Redis."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IHandshakeListener, IReactorTime
from twisted.internet.protocol import Factory, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from socketmap_memcache.errors import TemporaryError
from socketmap_memcache.memcache.security import Security
from socketmap_memcache.memcache.server import Server
from socketmap_memcache.memcache.tls import ServerVerification
from socketmap_memcache.tables.redis_connection import RedisConnection


def connect_securely(server: Server, security: Security, reactor: Any, timeout: float) -> Deferred[RedisConnection]:
    """Connect, and fire when the server's certificate has been verified: before that nothing is said to it.

    :raises ValueError: there can be no certificate for such a name.
    """
    verification = ServerVerification.make(security, server.host)
    factory = Factory.forProtocol(lambda: SecureRedisConnection(server.name, reactor, verification))
    factory.noisy = False
    connected: Deferred[Any] = server.connect(reactor, verification.wrap(factory), timeout)
    return connected.addCallback(lambda wrapper: wrapper.wrappedProtocol.verified)


@implementer(IHandshakeListener)
class SecureRedisConnection(RedisConnection):
    """A connection with TLS.

    :ivar verified: fires with the connection when it may be used, or fails with :class:`TemporaryError`.
    """

    def __init__(self, server: str, reactor: IReactorTime, verification: ServerVerification) -> None:
        """Make a connection that is not connected yet."""
        super().__init__(server, reactor)
        self.verified: Deferred[RedisConnection] = Deferred(self._give_up)
        self._verification = verification
        self._shaken = False

    def handshakeCompleted(self) -> None:
        """Verify the server's name; OpenSSL has verified its certificate."""
        self._shaken = True
        transport: Any = self._transport
        try:
            self._verification.verify(transport.getHandle())
        except ValueError as error:
            self.verified.errback(TemporaryError(str(error)))
            transport.abortConnection()
        else:
            self.verified.callback(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Hear that the connection is gone, perhaps before it was one."""
        if not self.verified.called:
            self.verified.errback(TemporaryError(self._verification.explain(reason.value, self._shaken)))
        super().connectionLost(reason)

    def _give_up(self, verified: Deferred[RedisConnection]) -> None:
        verified.errback(CancelledError("no TLS handshake in time; does the server speak TLS?"))
        self._transport.abortConnection()

    def reason(self, reason: Failure) -> str:
        """In TLS 1.3 a server looks at the client's certificate when for the client all is well."""
        return super().reason(reason) if self.has_answered else self._verification.explain(reason.value, self._shaken)
