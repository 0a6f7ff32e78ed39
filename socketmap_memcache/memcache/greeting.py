"""What comes first on a connection that is not a plain one: the TLS handshake, a login, and an answer."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHandshakeListener, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.protocols.policies import ProtocolWrapper
from twisted.python.failure import Failure
from zope.interface import implementer

from socketmap_memcache.errors import LookupTimeout, TemporaryError
from socketmap_memcache.memcache.security import Security
from socketmap_memcache.memcache.server import Server

if TYPE_CHECKING:
    from socketmap_memcache.memcache.tls import ServerVerification

#: Asks for nothing that exists: a server with which all is well answers it, and so does a proxy.
QUESTION = b"get socketmap-memcache:greeting\r\n"

# No answer to a greeting is longer.
_ANSWER_LIMIT = 1000


class GreetingError(TemporaryError):
    """The server is there, but cannot be used; the text says why, without naming the server."""


class GreetingTimeout(GreetingError, LookupTimeout):
    """The server is there, but does not answer in time."""


def greeter_for(server: Server, security: Security) -> Greeter | None:
    """Give what greets this server, or ``None`` for a plain server, which is not greeted.

    :raises ValueError: the security's contents cannot be used.
    :raises ImportError: of what TLS needs.
    """
    verification = None
    if server.tls:
        from socketmap_memcache.memcache.tls import ServerVerification

        verification = ServerVerification.make(security, server.host)
    elif not security.username:
        return None
    return Greeter(_login(security) if security.username else QUESTION, verification)


def _login(security: Security) -> bytes:
    """Write a login as memcached's doc/protocol.txt has it.

    A server without authentication stores what it gets. So the value is one whose time is over.
    """
    words = b"%b %b" % (security.username, security.password)
    return b"set auth 0 -1 %d\r\n%b\r\n" % (len(words), words)


def _outcome(connected: Any) -> Deferred[Any]:
    done: Deferred[Any] = getattr(connected, "wrappedProtocol", connected).done
    return done


class Greeter:
    """Greets one server, on each new connection."""

    def __init__(self, words: bytes, verification: ServerVerification | None) -> None:
        """Make a greeter.

        :param words: :data:`QUESTION` or a login. In TLS 1.3 only an answer shows that the server has accepted us.
        :param verification: for TLS.
        """
        self.words = words
        self.verification = verification

    def connect(self, endpoint: IStreamClientEndpoint, factory: IProtocolFactory) -> Deferred[Any]:
        """Connect, greet, and fire with a connected protocol of the factory's.

        It fails as the endpoint does, or with :class:`GreetingError`.
        """
        greetings: Any = Factory.forProtocol(partial(Greeting, self, factory))
        greetings.noisy = False
        if self.verification is not None:
            greetings = self.verification.wrap(greetings)
        attempt: Deferred[Any] = endpoint.connect(greetings)
        return attempt.addCallback(_outcome)


@implementer(IHandshakeListener)
class Greeting(Protocol):
    """Greets, and leaves the connection to another protocol when the server has answered.

    :ivar done: fires with that protocol, or fails with :class:`GreetingError`. May be cancelled.
    """

    def __init__(self, greeter: Greeter, successors: IProtocolFactory) -> None:
        """Make the first protocol of a connection.

        :param successors: builds the other one.
        """
        self.done: Deferred[Any] = Deferred(self._give_up)
        self._words = greeter.words
        self._verification = greeter.verification
        self._successors = successors
        self._shaken = False
        self._answer = b""

    def connectionMade(self) -> None:
        """Begin: with the login, where there is no TLS."""
        if self._verification is None:
            self._transport.write(self._words)

    def handshakeCompleted(self) -> None:
        """Verify the server's name, then ask or log in."""
        assert self._verification is not None
        self._shaken = True
        try:
            self._verification.verify(self._transport.getHandle())
        except ValueError as error:
            self._fail(GreetingError(str(error)))
        else:
            self._transport.write(self._words)

    def dataReceived(self, data: bytes) -> None:
        """Read the answer."""
        self._answer += data
        line, end, rest = self._answer.partition(b"\r\n")
        if not end and len(line) < _ANSWER_LIMIT:
            return
        if rest or line != (b"END" if self._words is QUESTION else b"STORED"):
            self._fail(GreetingError(self._meaning(line)))
        else:
            self._hand_over()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Say why, as far as can be known."""
        if self.done.called:
            return
        if self._verification is not None:
            text = self._verification.explain(reason.value, self._shaken)
        else:
            text = "the server closed the connection without an answer to the login; does it expect tls:?"
        self.done.errback(GreetingError(text))

    @property
    def _transport(self) -> Any:
        return self.transport

    def _meaning(self, line: bytes) -> str:
        if line == b"CLIENT_ERROR authentication failure":
            return "wrong username or password."
        if line == b"CLIENT_ERROR unauthenticated":
            return "the server wants a username and a password (username, password_file)."
        what = "a question" if self._words is QUESTION else "the login"
        return f"unexpected reply to {what}: {line[:60]!r}."

    def _hand_over(self) -> None:
        transport = self._transport
        protocol: Any = self._successors.buildProtocol(transport.getPeer())
        # From here on, all is as if there had never been another.
        if isinstance(transport, ProtocolWrapper):
            transport.wrappedProtocol = protocol
        else:
            transport.protocol = protocol
        protocol.makeConnection(transport)
        self.done.callback(protocol)

    def _give_up(self, _: object) -> None:
        if self._verification is not None and not self._shaken:
            text = "no TLS handshake in time; does the server speak TLS?"
        else:
            text = f"no answer to {'a question' if self._words is QUESTION else 'the login'} in time."
        self._fail(GreetingTimeout(text))

    def _fail(self, error: GreetingError) -> None:
        self.done.errback(error)
        self._transport.abortConnection()
