"""What is done with an input to each listener, and to the client of memcached, and what must hold then.

All of it is the service's own, with a clock and transports that are not real.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import TYPE_CHECKING, Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure

from socketmap_memcache.config.service import load
from socketmap_memcache.errors import TableError
from socketmap_memcache.listeners.entrance import Entrance
from socketmap_memcache.listeners.pipelined import Pipelined
from socketmap_memcache.listeners.policy import PolicyFactory
from socketmap_memcache.listeners.socketmap import SocketmapFactory
from socketmap_memcache.listeners.stream import StreamFactory
from socketmap_memcache.listeners.tcp_table import TcpTableFactory
from socketmap_memcache.memcache.pool import ClientPool
from socketmap_memcache.protocols import socketmap
from socketmap_memcache.protocols.netstring import NetstringReader
from socketmap_memcache.tables.registry import TableContext
from tests.fuzz.mutate import cut
from tests.fuzz.target import Target
from tests.unit.listeners.transports import Client

if TYPE_CHECKING:
    from typing_extensions import Self

_NOW = 1_700_000_000

_CONFIG = """\
tables = aliases=memcache:$config_directory/memory.cf fixed=inline:{alice@example.com=b} broken=fail:x
    large=static:LARGE remote=memcache:$config_directory/remote.cf
policies = greylist
greylist_table = memory:
greylist_client_whitelist =
greylist_recipient_whitelist =
"""

_PROBE_ANSWER = b"NOT_FOUND\r\n"

_FILES = {
    "memory.cf": "memcache = memory:\npartial_keys = address\nbackup = inline:{alice@example.com=b, example.net=c}\n",
    "remote.cf": "memcache = inet:127.0.0.1:11211\nmax_try = 2\nretry_pause = 1\ntimeout = 1\ndata_size_limit = 300\n",
}


class World:
    """The service's parts on a clock; a context manager: at its end nothing is left."""

    def __init__(self) -> None:
        self.reactor: Any = MemoryReactorClock()
        self.reactor.advance(_NOW)
        self._directory = TemporaryDirectory(prefix="fuzz-")
        directory = Path(self._directory.name)
        for name, text in _FILES.items():
            (directory / name).write_text(text)
        (directory / "main.cf").write_text(_CONFIG.replace("LARGE", "x" * 5000))
        self.pool = ClientPool(self.reactor)
        self.config = load(str(directory / "main.cf"), [], TableContext(self.pool), self.reactor)
        tables = {name.encode(): table for name, table in self.config.tables.items()}
        self.remote: Any = tables.pop(b"remote")
        self.servers: list[_Memcached] = []
        self.entrance, self.pipelined = Entrance(self.reactor, 10), Pipelined(10)
        self.socketmap = self._ready(SocketmapFactory(tables, self.reactor, 310))
        self.tcp_table = self._ready(TcpTableFactory(b"fixed", tables, self.reactor, 310))
        self.policy = self._ready(PolicyFactory(self.config.policies, self.reactor, 310))

    def _ready(self, factory: Any) -> Any:
        factory.entrance, factory.pipelined = self.entrance, self.pipelined
        factory.doStart()
        return factory

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for factory in (self.socketmap, self.tcp_table, self.policy):
            factory.drain()
        self.config.close()
        for server in self.servers:
            server.end()
        self.reactor.advance(1000)
        self._directory.cleanup()
        assert self.reactor.getDelayedCalls() == []


def _serve(world: World, factory: StreamFactory, chunks: Sequence[bytes], random: Random) -> bytes:
    """Let a client send, in its own way, and leave; return what it got."""
    client = Client(factory)
    stubborn = random.getrandbits(3) == 0  # one that does not read for a while
    for chunk in chunks:
        _wait(world, client)
        if client.is_closed():
            break
        client.send(chunk)
        if stubborn and not client.is_closed():
            client.block()
    _wait(world, client)
    if random.getrandbits(1):
        client.shut()
        assert client.is_closed()
    received = client.received()
    client.leave(random.choice((ConnectionDone, ConnectionLost))())
    assert not factory.connections
    assert world.entrance._clients == 0
    assert world.pipelined.count == 0
    return received


def _wait(world: World, client: Client) -> None:
    """Let a client read what it gets until it can send again, or its connection is closed.

    :raises AssertionError: neither happens.
    """
    for _ in range(1000):
        if client.is_reading() or client.is_closed():
            return
        client.unblock()
        world.reactor.advance(0.01)
    raise AssertionError("it hangs")


def _whole(data: bytes) -> list[bytes]:
    return [data] if data else []


def _socketmap(world: World, data: bytes, random: Random) -> None:
    replies = [_serve(world, world.socketmap, chunks, random) for chunks in (_whole(data), cut(random, data))]
    assert replies[0] == replies[1], replies
    reader = NetstringReader(socketmap.REPLY_LIMIT)
    reader.feed(replies[0])
    while (payload := reader.next_payload()) is not None:
        socketmap.parse_reply(payload)
    assert not reader.partial


def _tcp_table(world: World, data: bytes, random: Random) -> None:
    replies = [_serve(world, world.tcp_table, chunks, random) for chunks in (_whole(data), cut(random, data))]
    assert replies[0] == replies[1], replies
    for line in replies[0].splitlines():
        assert line[:4] in {b"200 ", b"400 ", b"500 "}, line


def _policy(world: World, data: bytes, random: Random) -> None:
    received = _serve(world, world.policy, cut(random, data), random)
    *actions, rest = received.split(b"\n\n")
    assert rest == b""
    for action in actions:
        assert action.startswith((b"action=DUNNO", b"action=DEFER_IF_PERMIT ", b"action=PREPEND ")), action
    world.reactor.advance(random.choice((0, 1, 400)))


class _Memcached(StringTransport):
    """The server's end of a connection."""

    def __init__(self, factory: Any) -> None:
        super().__init__(peerAddress=IPv4Address("TCP", "127.0.0.1", 11211), lenient=True)
        self._protocol = factory.buildProtocol(self.getPeer())
        self._protocol.makeConnection(self)

    def answer(self) -> None:
        """Answer what has been asked: nothing exists."""
        commands = self.value().splitlines()
        self.clear()
        self.send([_PROBE_ANSWER if command.startswith(b"delete ") else b"END\r\n" for command in commands])

    def send(self, chunks: Sequence[bytes]) -> None:
        """Send, until the connection is closed."""
        for chunk in chunks:
            if not self.is_closed():
                self._protocol.dataReceived(chunk)

    def is_closed(self) -> bool:
        """Whether the client has closed the connection."""
        return self.disconnected or self.disconnecting

    def end(self) -> None:
        """Hear that it is closed."""
        self._protocol.connectionLost(Failure(ConnectionDone()))

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Do nothing."""

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """Do nothing."""


def _memcached(world: World, data: bytes, random: Random) -> None:
    """Whatever a server answers, each look-up ends; when it is in order again, so are the answers."""
    outcomes: list[object] = []
    if random.getrandbits(1):  # to begin with a new connection
        while world.servers:
            world.servers.pop().end()
    for key in (b"a", b"b", b"a"):
        _ask(world, key, outcomes)
    _pass_time(world, lambda: True)
    world.reactor.advance(0)
    for server in world.servers:
        if server.value().startswith(b"delete ") and random.getrandbits(2):
            server.send([_PROBE_ANSWER])
        server.clear()
        server.send(cut(random, data))
        if random.getrandbits(1):
            server.send([_PROBE_ANSWER])
    _pass_time(world, lambda: len(outcomes) == 3)
    assert len(outcomes) == 3, outcomes
    for outcome in outcomes:
        assert outcome is None or outcome is TableError or isinstance(outcome, bytes), outcome
        assert not isinstance(outcome, bytes) or len(outcome) <= 300

    later: list[object] = [TableError]

    def in_order() -> bool:
        if later[-1] is TableError:
            _ask(world, b"b", later)
        return later[-1] is None

    _pass_time(world, in_order)
    assert later[-1] is None, later


def _ask(world: World, key: bytes, outcomes: list[object]) -> None:
    answer: Deferred[bytes | None] = world.remote.lookup(key)
    answer.addErrback(lambda failure: failure.trap(TableError))
    answer.addBoth(outcomes.append)


def _pass_time(world: World, done: Callable[[], bool]) -> None:
    """Let a server that works accept and answer, until something is so, or for long."""
    world.reactor.advance(0)
    for _ in range(40):
        while world.reactor.tcpClients:
            world.servers.append(_Memcached(world.reactor.tcpClients.pop()[2]))
            world.reactor.connectors.clear()
        for server in list(world.servers):
            if server.is_closed():
                world.servers.remove(server)
                server.end()
        if done():
            return
        for server in world.servers:
            server.answer()
        world.reactor.advance(0.5)


CONNECTIONS = (
    Target("socketmap listener", ("socketmap-requests",), _socketmap, World),
    Target("tcp_table listener", ("tcp-table-requests",), _tcp_table, World),
    Target("policy listener", ("policy-requests",), _policy, World),
    Target("memcached client", ("memcache-replies",), _memcached, World),
)
