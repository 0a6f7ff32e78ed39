from __future__ import annotations

from typing import Any

import attrs
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IProtocolFactory, IStreamClientEndpoint
from twisted.internet.testing import StringTransport
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from socketmap_memcache.errors import LookupTimeout
from socketmap_memcache.memcache.greeting import QUESTION, Greeter, GreetingError, GreetingTimeout, greeter_for
from socketmap_memcache.memcache.security import PLAIN, Security
from socketmap_memcache.memcache.server import Server

from .successor import SUCCESSORS, Successor

LOGIN = b"set auth 0 -1 11\r\nuser secret\r\n"


@implementer(IStreamClientEndpoint)
class Endpoint:
    """Connects when the test says so."""

    def __init__(self) -> None:
        self.connecting: Deferred[Any] = Deferred()
        self.transport: Any = StringTransport(peerAddress=IPv4Address("TCP", "192.0.2.1", 11211))

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:
        self.factory = protocolFactory
        return self.connecting

    def accept(self) -> None:
        protocol: Any = self.factory.buildProtocol(self.transport.getPeer())
        self.transport.protocol = protocol
        protocol.makeConnection(self.transport)
        self.connecting.callback(protocol)

    def sent(self) -> bytes:
        data: bytes = self.transport.value()
        self.transport.clear()
        return data

    def send(self, data: bytes) -> None:
        self.transport.protocol.dataReceived(data)

    def lose(self, error: Exception | None = None) -> None:
        self.transport.protocol.connectionLost(Failure(error or ConnectionDone()))


@attrs.define
class ScriptedVerification:
    """A handshake that comes when the test says so, in clear."""

    problem: str = ""
    shaken: list[bool] = attrs.field(factory=list)

    def wrap(self, factory: IProtocolFactory) -> IProtocolFactory:
        wrapping = WrappingFactory(factory)
        wrapping.protocol = ScriptedTls
        return wrapping

    def verify(self, connection: object) -> None:
        assert connection == "the connection"
        if self.problem:
            raise ValueError(self.problem)

    def explain(self, error: BaseException, shaken: bool) -> str:
        self.shaken.append(shaken)
        return f"explained {type(error).__name__}"


class ScriptedTls(ProtocolWrapper):
    def getHandle(self) -> str:
        return "the connection"


class GreetingCase(SynchronousTestCase):
    verification: ScriptedVerification | None = None
    words = LOGIN

    def setUp(self) -> None:
        self.endpoint = Endpoint()
        greeter = Greeter(self.words, self.verification)  # type: ignore[arg-type]
        self.done = greeter.connect(self.endpoint, SUCCESSORS)

    def refused(self) -> str:
        """Give the text of the failure, after which the connection is gone."""
        failure = self.failureResultOf(self.done, GreetingError)
        assert self.endpoint.transport.disconnected
        self.endpoint.lose()
        return str(failure.value)


class TestLogin(GreetingCase):
    def test_good(self) -> None:
        """When the login is answered, the connection is another protocol's, as if it had always been."""
        self.endpoint.accept()
        assert self.endpoint.sent() == LOGIN
        self.endpoint.send(b"STOR")
        self.assertNoResult(self.done)
        self.endpoint.send(b"ED\r\n")
        protocol = self.successResultOf(self.done)
        assert isinstance(protocol, Successor)
        assert protocol.made is self.endpoint.transport
        assert self.endpoint.transport.protocol is protocol
        self.endpoint.send(b"data")
        assert protocol.data == b"data"
        assert self.endpoint.sent() == b""

    def test_wrong_password(self) -> None:
        """A refused login says so, and not with which password."""
        self.endpoint.accept()
        self.endpoint.send(b"CLIENT_ERROR authentication failure\r\n")
        assert self.refused() == "wrong username or password."

    def test_other_answer(self) -> None:
        """Any other answer, more than one, or one without an end, is a failure that shows its beginning."""
        for answer in (b"ERROR\r\n", b"STORED\r\nSTORED\r\n", b"STORED\r\nS", b"x" * 1000, b"CLIENT_ERROR x\r\n"):
            self.setUp()
            self.endpoint.accept()
            self.endpoint.send(answer)
            assert self.refused().startswith(f"unexpected reply to the login: {answer[:10].split()[0]!r}"[:-1])

    def test_closed(self) -> None:
        """A server that closes the connection instead may expect TLS."""
        self.endpoint.accept()
        self.endpoint.lose()
        failure = self.failureResultOf(self.done, GreetingError)
        assert failure.getErrorMessage().endswith("without an answer to the login; does it expect tls:?")

    def test_not_connected(self) -> None:
        """What the endpoint fails with is handed on."""
        self.endpoint.connecting.errback(OSError("refused"))
        self.failureResultOf(self.done, OSError)

    def test_too_late(self) -> None:
        """Who cancels while the answer is awaited hears what was missing."""
        self.endpoint.accept()
        self.done.cancel()
        self.failureResultOf(self.done, LookupTimeout)
        assert self.endpoint.transport.disconnected
        self.endpoint.lose()


class TestTls(GreetingCase):
    words = QUESTION

    def setUp(self) -> None:
        self.verification = ScriptedVerification()
        super().setUp()

    def shake(self) -> None:
        self.endpoint.accept()
        assert self.endpoint.sent() == b""
        self.endpoint.transport.protocol.wrappedProtocol.handshakeCompleted()

    def test_good(self) -> None:
        """After the handshake a question must be answered before the connection is another protocol's."""
        self.shake()
        assert self.endpoint.sent() == b"get socketmap-memcache:greeting\r\n"
        self.endpoint.send(b"END\r\n")
        protocol = self.successResultOf(self.done)
        assert self.endpoint.transport.protocol.wrappedProtocol is protocol
        self.endpoint.send(b"data")
        assert protocol.data == b"data"

    def test_wrong_name(self) -> None:
        """A server with the wrong name is not sent anything."""
        assert self.verification is not None
        self.verification.problem = "not for us"
        self.shake()
        assert self.refused() == "not for us"
        assert self.endpoint.sent() == b""

    def test_wants_login(self) -> None:
        """A server that wants a login says so in its answer."""
        self.shake()
        self.endpoint.send(b"CLIENT_ERROR unauthenticated\r\n")
        assert self.refused() == "the server wants a username and a password (username, password_file)."

    def test_other_answer(self) -> None:
        """Any other answer to the question is a failure."""
        self.shake()
        self.endpoint.send(b"SERVER_ERROR x\r\n")
        assert self.refused() == "unexpected reply to a question: b'SERVER_ERROR x'."

    def test_closed(self) -> None:
        """Why a connection ended is explained, also whether that was before the end of the handshake."""
        self.endpoint.accept()
        self.endpoint.lose()
        assert self.failureResultOf(self.done, GreetingError).getErrorMessage() == "explained ConnectionDone"
        self.setUp()
        self.shake()
        self.endpoint.lose()
        self.failureResultOf(self.done, GreetingError)
        assert self.verification is not None
        assert self.verification.shaken == [True]

    def test_too_late(self) -> None:
        """A handshake that does not come to an end is a failure that says so; so is a question without an answer."""
        self.endpoint.accept()
        self.done.cancel()
        failure = self.failureResultOf(self.done, GreetingTimeout)
        assert failure.getErrorMessage() == "no TLS handshake in time; does the server speak TLS?"
        self.setUp()
        self.shake()
        self.done.cancel()
        assert self.failureResultOf(self.done).getErrorMessage() == "no answer to a question in time."


class TestGreeterFor(SynchronousTestCase):
    def test_plain(self) -> None:
        """A plain server is not greeted; with a username it is, also on a UNIX socket."""
        assert greeter_for(Server.parse("inet:192.0.2.1:11211"), PLAIN) is None
        assert greeter_for(Server.parse("inet:192.0.2.1:11211"), Security(ca=b"for others")) is None
        for server in ("inet:192.0.2.1:11211", "unix:/run/mc"):
            greeter = greeter_for(Server.parse(server), Security(username=b"user", password=b"secret"))
            assert greeter is not None
            assert greeter.words == LOGIN
            assert greeter.verification is None
