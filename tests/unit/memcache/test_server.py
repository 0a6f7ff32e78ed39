from __future__ import annotations

from typing import Any, cast

import pytest
from twisted.internet import error as errors
from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ConnectingCancelledError, DNSLookupError
from twisted.internet.interfaces import (
    IHostnameResolver,
    IHostResolution,
    IReactorPluggableNameResolver,
    IResolutionReceiver,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from socketmap_memcache.memcache.greeting import Greeter
from socketmap_memcache.memcache.server import Server


@pytest.mark.parametrize(
    "text, host, port, path",
    [
        ("inet:localhost:11211", "localhost", 11211, ""),
        ("inet:192.0.2.1:1", "192.0.2.1", 1, ""),
        ("inet:[2001:db8::1]:65535", "2001:db8::1", 65535, ""),
        ("inet:[host]:11211", "host", 11211, ""),
        ("inet:11211", "localhost", 11211, ""),
        ("inet::11211", "localhost", 11211, ""),
        ("inet:mc:smtp", "mc", 25, ""),
        ("inet:smtp", "localhost", 25, ""),
        ("unix:/run/memcached.sock", "", 0, "/run/memcached.sock"),
        ("unix:relative:with:colons", "", 0, "relative:with:colons"),
        ("local:/run/memcached.sock", "", 0, "/run/memcached.sock"),
        ("unix:/" + 106 * "x", "", 0, "/" + 106 * "x"),
    ],
)
def test_parse(text: str, host: str, port: int, path: str) -> None:
    """Servers are written as memcache_table(5) has them; a port may have a name."""
    assert Server.parse(text) == Server(text, host, port, path)


@pytest.mark.parametrize(
    "text, host, port",
    [
        ("tls:mc.example:11211", "mc.example", 11211),
        ("tls:[2001:db8::1]:11211", "2001:db8::1", 11211),
        ("tls:11211", "localhost", 11211),
    ],
)
def test_parse_tls(text: str, host: str, port: int) -> None:
    """A server that speaks TLS is written as any other, with ``tls:`` in place of ``inet:``."""
    assert Server.parse(text) == Server(text, host, port, tls=True)


def test_has_address() -> None:
    """A path or an address stays what it is; what a name stands for may change."""
    for text in ("inet:192.0.2.1:11211", "tls:[2001:db8::1]:11211", "unix:/run/mc"):
        assert Server.parse(text).has_address
    for text in ("inet:mc:11211", "tls:mc:11211", "inet:11211"):
        assert not Server.parse(text).has_address


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "is not a server"),
        ("localhost", "is not a server"),
        ("localhost:11211", "is not a server"),
        ("tcp:localhost:11211", "is not a server"),
        ("unix:", "is not a server"),
        ("unix:/" + 53 * "\N{LATIN SMALL LETTER U WITH DIAERESIS}" + "x", "has at most 107 bytes"),
        ("inet", "is not a server"),
        ("inet:", "write inet:host:port"),
        ("inet::", "write inet:host:port"),
        ("inet:::11211", "write inet:host:port"),
        ("inet:mc:", "write inet:host:port"),
        ("inet:2001:db8::1:11211", "write inet:host:port"),
        ("inet:[]:11211", "write inet:host:port"),
        ("inet:mc:0", "port 0 is not between 1 and 65535"),
        ("inet:mc:65536", "port 65536 is not between"),
        ("inet:mc:-1", "unknown port '-1'"),
        ("inet:127.0.0.1", "unknown port '127.0.0.1'"),
        ("inet:mc:no-such-service", "unknown port"),
        ("tls:", "write tls:host:port"),
        ("tls:mc:0", "port 0 is not between 1 and 65535"),
        ("tls:2001:db8::1:11211", "write tls:host:port"),
    ],
)
def test_parse_error(text: str, reason: str) -> None:
    """Anything else is refused with the reason."""
    with pytest.raises(ValueError, match=reason) as caught:
        Server.parse(text)
    assert repr(text) in str(caught.value)


class ScriptedResolver:
    """Answers when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[tuple[IResolutionReceiver, str, int]] = []

    def resolveHostName(
        self,
        receiver: IResolutionReceiver,
        hostName: str,
        portNumber: int = 0,
        *args: Any,
        **kwargs: Any,
    ) -> IHostResolution:
        self.waiting.append((receiver, hostName, portNumber))
        receiver.resolutionBegan(cast(IHostResolution, object()))
        return cast(IHostResolution, object())

    def answer(self, *hosts: str) -> None:
        receiver, _, port = self.waiting.pop()
        for host in hosts:
            receiver.addressResolved(IPv4Address("TCP", host, port))
        receiver.resolutionComplete()


@implementer(IReactorPluggableNameResolver)
class Reactor(MemoryReactorClock):
    """Looks names up when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.resolver = ScriptedResolver()
        self.nameResolver = cast(IHostnameResolver, self.resolver)


class TestConnect(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = Reactor()
        self.resolver = self.reactor.resolver
        self.factory = Factory.forProtocol(Protocol)

    def connect(self, server: str) -> Deferred[Any]:
        return Server.parse(server).connect(self.reactor, self.factory, 3)

    def test_tcp(self) -> None:
        """An address, of either kind, is connected to without asking for a name."""
        for server, host in (("inet:192.0.2.1:11211", "192.0.2.1"), ("inet:[2001:db8::1]:11211", "2001:db8::1")):
            done = self.connect(server)
            connected = self.reactor.tcpClients.pop()
            assert connected[:2] == (host, 11211)
            assert connected[3] == 3
            protocol = cast(Any, connected[2]).buildProtocol(IPv4Address("TCP", host, 11211))
            protocol.makeConnection(StringTransport())
            assert isinstance(self.successResultOf(done), Protocol)
            assert self.reactor.getDelayedCalls() == []

    def test_unix(self) -> None:
        """A UNIX socket is connected to by its path."""
        self.connect("unix:/run/mc").addErrback(lambda _: None)
        assert self.reactor.unixClients[0][0] == "/run/mc"

    def test_refused(self) -> None:
        """A refused connection fails at once, and leaves no timer."""
        done = self.connect("inet:192.0.2.1:11211")
        cast(Any, self.reactor.tcpClients[0][2]).clientConnectionFailed(None, Failure(errors.ConnectionRefusedError()))
        self.failureResultOf(done, errors.ConnectionRefusedError)
        assert self.reactor.getDelayedCalls() == []

    def test_name(self) -> None:
        """A name is looked up, and all its addresses may be tried."""
        self.connect("inet:mc:11211").addErrback(lambda _: None)
        assert self.resolver.waiting[0][1:] == ("mc", 11211)
        self.resolver.answer("192.0.2.1", "192.0.2.2")
        self.reactor.advance(0.1)
        assert [client[0] for client in self.reactor.tcpClients] == ["192.0.2.1", "192.0.2.2"]
        self.reactor.advance(3)

    def test_all_addresses(self) -> None:
        """When one address of a name refuses, the next one is connected to."""
        done = self.connect("inet:mc:11211")
        self.resolver.answer("192.0.2.1", "192.0.2.2")
        self.reactor.advance(0.1)
        first, second = (cast(Any, client[2]) for client in self.reactor.tcpClients)
        first.clientConnectionFailed(None, Failure(errors.ConnectionRefusedError()))
        self.assertNoResult(done)
        protocol = second.buildProtocol(IPv4Address("TCP", "192.0.2.2", 11211))
        protocol.makeConnection(StringTransport())
        assert isinstance(self.successResultOf(done), Protocol)

    def test_name_again(self) -> None:
        """A name is looked up anew for each connection."""
        for host in ("192.0.2.1", "192.0.2.2"):
            self.connect("inet:mc:11211").addErrback(lambda _: None)
            self.resolver.answer(host)
            self.reactor.advance(0.1)
            assert self.reactor.tcpClients.pop()[0] == host
            self.reactor.advance(3)

    def test_greeting(self) -> None:
        """What a greeter makes of the endpoint is what comes of the connection, within the same time limit."""
        greeted: Deferred[Any] = Deferred()

        class ScriptedGreeter:
            def connect(self, endpoint: TCP4ClientEndpoint, factory: Factory) -> Deferred[Any]:
                assert isinstance(endpoint, TCP4ClientEndpoint)
                return greeted

        greeter = cast(Greeter, ScriptedGreeter())
        done = Server.parse("tls:192.0.2.1:11211").connect(self.reactor, self.factory, 3, greeter)
        self.reactor.advance(2.9)
        self.assertNoResult(done)
        self.reactor.advance(0.1)
        self.failureResultOf(done, CancelledError)

    def test_slow_name(self) -> None:
        """The time limit holds for the look-up of the name too."""
        done = self.connect("inet:mc:11211")
        self.reactor.advance(2.9)
        self.assertNoResult(done)
        self.reactor.advance(0.1)
        self.failureResultOf(done, DNSLookupError, ConnectingCancelledError)
        assert self.reactor.getDelayedCalls() == []

    def test_slow_server(self) -> None:
        """The time limit holds for the look-up of the name and the attempts to connect together."""
        done = self.connect("inet:mc:11211")
        self.reactor.advance(2)
        self.resolver.answer("192.0.2.1")
        self.reactor.advance(0.9)
        self.assertNoResult(done)
        self.reactor.advance(0.1)
        self.failureResultOf(done, ConnectingCancelledError)

    def test_odd_names(self) -> None:
        """A name that cannot be one fails as any other attempt does, without raising."""
        for host in ("a..b", "x" * 300, "bücher", "\udcff", " "):
            done = self.connect(f"inet:{host}:11211")
            self.reactor.advance(3)
            self.failureResultOf(done)
