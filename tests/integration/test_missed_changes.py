"""A memcached that missed an update or delete comes back, and never serves the old value."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack
from typing import Any, cast

from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.interfaces import ITCPTransport
from twisted.internet.protocol import connectionDone
from twisted.internet.task import deferLater
from twisted.protocols.portforward import ProxyFactory, ProxyServer
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from socketmap_memcache.errors import TableError
from socketmap_memcache.memcache.pool import ClientPool
from socketmap_memcache.tables.interface import ITable
from socketmap_memcache.tables.registry import TableContext

from .harness.memcached import Memcached
from .harness.processes import free_port, scratch_directory, write_config

reactor: Any = global_reactor

LIMITS = "timeout = 1\nmax_try = 1\n"
KEYS = [b"%d@example.com" % number for number in range(20)]


class Cable:
    """A way to a server that can be cut."""

    def __init__(self, server: Memcached) -> None:
        host, port = server.address.removeprefix("inet:").split(":")
        cable = self
        self._ends: set[ProxyServer] = set()

        class End(ProxyServer):
            def connectionMade(self) -> None:
                super().connectionMade()
                cable._ends.add(self)

            def connectionLost(self, reason: Failure = connectionDone) -> None:
                super().connectionLost(reason)
                cable._ends.discard(self)

        self._factory = ProxyFactory(host, int(port))
        self._factory.protocol = End
        self._factory.noisy = False
        self._port: int = free_port()
        self.address = f"inet:127.0.0.1:{self._port}"
        self._listening: Any = None

    def mend(self) -> None:
        self._listening = reactor.listenTCP(self._port, self._factory, interface="127.0.0.1")

    def cut(self) -> Deferred[Any] | None:
        for end in list(self._ends):
            cast(ITCPTransport, end.transport).abortConnection()
        listening, self._listening = self._listening, None
        return listening.stopListening() if listening is not None else None


class MissedChanges(TestCase):
    timeout = 30

    def setUp(self) -> None:
        self.stack = ExitStack()
        self.addCleanup(self.stack.close)
        self.directory = self.stack.enter_context(scratch_directory())
        self.memcacheds: list[Memcached] = []
        for number in range(3):
            place = self.directory / f"mc{number}"
            place.mkdir()
            self.memcacheds.append(self.stack.enter_context(Memcached(place, tcp=True)))

    def open(self, lines: str) -> ITable:
        """Open a table, until the end of the test."""
        cf = write_config(self.directory / "t.cf", LIMITS + lines.format(directory=self.directory))
        context = TableContext(ClientPool(reactor))
        table = context.open_table(f"memcache:{cf}", create=True)
        self.addCleanup(table.close)
        assert context.warnings == []
        return table

    @inlineCallbacks
    def change(self, table: ITable) -> Generator[Deferred[Any], Any, None]:
        """Update half of the keys, and delete the others."""
        for number, key in enumerate(KEYS):
            if number % 2:
                yield table.update(key, b"new")
            else:
                yield table.delete(key)

    @inlineCallbacks
    def look(self, table: ITable, seconds: float, failures: bool = False) -> Generator[Deferred[Any], Any, None]:
        """Look all keys up, again and again, at least twice: none may have its old value."""
        end = reactor.seconds() + seconds
        rounds = 0
        while rounds < 2 or reactor.seconds() < end:
            rounds += 1
            for number, key in enumerate(KEYS):
                try:
                    value = yield table.lookup(key)
                except TableError:
                    assert failures
                else:
                    assert value == (b"new" if number % 2 else None), (number, value)
            yield deferLater(reactor, 0.02, lambda: None)

    @inlineCallbacks
    def miss(
        self, table: ITable, away: Callable[[], Any], back: Callable[[], Any]
    ) -> Generator[Deferred[Any], Any, None]:
        """Change all keys while a server is away, and see what comes of it when it is back."""
        for key in KEYS:
            yield table.update(key, b"old")
            assert (yield table.lookup(key)) == b"old"
        yield away()
        yield self.change(table)
        yield self.look(table, 0)
        yield back()
        yield self.look(table, 1.5)

    def held(self, server: Memcached) -> list[bytes]:
        """Give the keys that a server has the old value of."""
        return [key for key in KEYS if server.get(key) == b"old"]

    @inlineCallbacks
    def test_hung(self) -> Generator[Deferred[Any], Any, None]:
        """One server that hung, with a backup."""
        server = self.memcacheds[0]
        table = self.open(f"memcache = {server.address}\nbackup = lmdb:{{directory}}/backup\n")
        yield self.miss(table, server.freeze, server.thaw)
        assert self.held(server) == []

    @inlineCallbacks
    def test_cut(self) -> Generator[Deferred[Any], Any, None]:
        """One server that could not be reached, with a backup."""
        server = self.memcacheds[0]
        cable = Cable(server)
        cable.mend()
        self.addCleanup(cable.cut)
        table = self.open(f"memcache = {cable.address}\nbackup = lmdb:{{directory}}/backup\n")
        yield self.miss(table, cable.cut, cable.mend)
        assert self.held(server) == []

    @inlineCallbacks
    def test_stand_ins(self) -> Generator[Deferred[Any], Any, None]:
        """One of three, the next taking its place; nor does that one serve what it had when the first fails again."""
        servers = ", ".join(server.address for server in self.memcacheds)
        lines = f"memcache = {servers}\nmemcache_failure = next\nbackup = lmdb:{{directory}}/backup\n"
        table = self.open(lines)
        away = self.memcacheds[0]
        yield self.miss(table, away.freeze, away.thaw)
        assert self.held(away) == []
        away.kill()
        yield self.look(table, 0)

    @inlineCallbacks
    def test_replicas(self) -> Generator[Deferred[Any], Any, None]:
        """One of three, with two replicas and no backup; nor does it when it is the only one left."""
        servers = ", ".join(server.address for server in self.memcacheds)
        table = self.open(f"memcache = {servers}\nreplicas = 2\n")
        away, *others = self.memcacheds
        yield self.miss(table, away.freeze, away.thaw)
        assert self.held(away) == []
        for other in others:
            other.kill()
        yield self.look(table, 0, failures=True)
