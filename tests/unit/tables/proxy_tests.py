"""What the tests of proxy: tables have in common: a table, and the server's end of its connections."""

from __future__ import annotations

from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from socketmap_memcache.errors import (
    TableError,
)
from socketmap_memcache.memcache.pool import ClientPool
from socketmap_memcache.protocols.proxymap import FLAGS
from socketmap_memcache.tables.proxy import ProxyTable
from socketmap_memcache.tables.registry import TableContext

FIXED, PATTERN = "16", "32"
OPEN = f"request|open|table|btree:/x|flags|{FLAGS}||"
GREETING = "protocol|proxymap_protocol||"


class Server:
    """The server's end of one connection: text with ``|`` for NUL."""

    def __init__(self, path: str, factory: Any) -> None:
        self.path = path
        self.transport = StringTransport()
        self.protocol = factory.buildProtocol(cast(Any, None))
        self.protocol.makeConnection(self.transport)

    def received(self) -> str:
        """Give what came since the last call."""
        data: bytes = self.transport.value()
        self.transport.clear()
        return data.decode().replace("\0", "|")

    def send(self, text: str) -> None:
        self.protocol.dataReceived(text.encode().replace(b"|", b"\0"))

    def lose(self) -> None:
        self.protocol.connectionLost(Failure(ConnectionDone()))

    def dropped(self) -> bool:
        return bool(self.transport.disconnected)


def result_of(answer: Deferred[Any]) -> Any:
    """Give the result or the error, which is there already."""
    results: list[Any] = []
    answer.addBoth(results.append)
    (result,) = results
    return result.value if isinstance(result, Failure) else result


class ProxyTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.table = self.open("btree:/x")

    def open(self, name: str) -> ProxyTable:
        table = TableContext(ClientPool(self.reactor)).open_table(f"proxy:{name}")
        assert isinstance(table, ProxyTable)
        return table

    def accept(self) -> Server:
        """Let the only attempt to connect succeed."""
        ((path, factory, *_),) = self.reactor.unixClients
        self.reactor.unixClients.clear()
        return Server(path, factory)

    def refuse(self, error: Exception) -> None:
        """Let the only attempt to connect fail."""
        ((_, factory, *_),) = self.reactor.unixClients
        self.reactor.unixClients.clear()
        factory.clientConnectionFailed(cast(Any, None), Failure(error))

    def opened(self, flags: str = FIXED) -> Server:
        """Let the only attempt to connect succeed, greet, and open the table."""
        server = self.accept()
        server.send(GREETING)
        assert server.received() == OPEN
        server.send(f"status|0|flags|{flags}||")
        return server

    def deny(self, path: str) -> None:
        server = self.accept()
        assert server.path == path
        server.send(GREETING + "status|4|flags|0||")

    def error_of(self, answer: Deferred[Any], kind: type[TableError], text: str) -> None:
        error = result_of(answer)
        assert type(error) is kind, error
        assert text in str(error), error

    def quiet(self) -> None:
        """Nothing is connected or waited for."""
        assert self.reactor.getDelayedCalls() == []
        assert self.reactor.unixClients == []
