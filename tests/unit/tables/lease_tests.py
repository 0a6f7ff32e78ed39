"""What the tests of leases have in common: two hosts, their cache, and a slow backup."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from socketmap_memcache.tables.memcache import MemcacheTable
from tests.unit.tables.lease_fakes import LeaseCache, SlowTable, host


class Hosts(SynchronousTestCase):
    """Two hosts with one cache and one backup that takes 0.3 seconds."""

    stale_ttl = 0
    negative_ttl = 0

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_000_000_000)
        self.cache = LeaseCache(self.clock)
        self.backup = SlowTable(self.clock, b"kept")
        self.one, self.two = self.open(), self.open()

    def open(self, **settings: int) -> MemcacheTable:
        options = {"stale_ttl": self.stale_ttl, "negative_ttl": self.negative_ttl, "lease_timeout": 3}
        return host(self.clock, self.cache, self.backup, **{**options, **settings})

    def wait(self, seconds: float) -> None:
        self.clock.pump([0.01] * (round(seconds * 100) + 1))

    def ask(self, *tables: MemcacheTable, key: bytes = b"k") -> list[Deferred[bytes | None]]:
        return [table.lookup(key) for table in tables]

    def answers(self, asked: list[Deferred[bytes | None]]) -> list[bytes | None]:
        return [self.successResultOf(answer) for answer in asked]

    def commands(self) -> list[str]:
        commands = [line.split(" ")[0] for line in self.cache.trace]
        self.cache.trace.clear()
        return commands
