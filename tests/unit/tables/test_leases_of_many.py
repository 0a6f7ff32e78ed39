from __future__ import annotations

from collections.abc import Collection

from twisted.internet.defer import Deferred
from zope.interface import implementer

from socketmap_memcache.errors import TemporaryError
from socketmap_memcache.memcache.interface import IBatchCache, Limits
from socketmap_memcache.tables.cache_entries import MISSING
from socketmap_memcache.tables.memcache import MemcacheTable
from tests.unit.tables.lease_fakes import LeaseCache, host

from .lease_tests import Hosts


class TestSeveral(Hosts):
    stale_ttl = 10

    def first(self, table: MemcacheTable, *keys: bytes) -> Deferred[tuple[int, bytes] | None]:
        return table.lookup_first(keys)

    def test_marks(self) -> None:
        """Marks are no values: the backup is asked for such keys."""
        self.cache.put(b"a", None, 3)
        found = self.first(self.one, b"a", b"b")
        self.wait(3.5)
        assert self.successResultOf(found) == (0, b"kept")

    def test_missing(self) -> None:
        """Marks of missing keys are heeded."""
        self.cache.put(b"a", MISSING, 60)
        self.cache.put(b"b", b"B", 60)
        assert self.successResultOf(self.first(self.one, b"a", b"b")) == (1, b"B")
        assert self.successResultOf(self.first(self.one, b"a")) is None
        assert self.backup.asked == 0

    def test_stale(self) -> None:
        """A stale value that counts is served, and a new one fetched; one that does not count is left alone."""
        self.cache.put(b"a", b"A", 5)
        self.cache.put(b"b", b"B", 5)
        assert self.successResultOf(self.first(self.one, b"a", b"b")) == (0, b"A")
        self.wait(0.4)
        assert self.cache.value(b"a") == b"kept"
        assert self.cache.value(b"b") == b"B"

    def test_not_stale(self) -> None:
        """Without ``stale_ttl`` nothing is asked behind a value's back."""
        table = self.open(stale_ttl=0)
        self.cache.put(b"a", b"A", 5)
        assert self.successResultOf(self.first(table, b"a")) == (0, b"A")
        assert self.commands() == ["get"]

    def test_long_key(self) -> None:
        """A key that memcached would refuse is asked for in the backup, without a lease."""
        found = self.first(self.one, b"x" * 251)
        self.wait(0.3)
        assert self.successResultOf(found) == (0, b"kept")
        assert self.commands() == []

    def test_failure(self) -> None:
        """A failure of the cache leads to the backup, without a lease."""
        self.cache.error = TemporaryError("down")
        found = self.first(self.one, b"k")
        self.wait(0.3)
        assert self.successResultOf(found) == (0, b"kept")
        assert "mg" not in self.commands()


@implementer(IBatchCache)
class BatchLeaseCache(LeaseCache):
    """Can be asked for many keys."""

    def get_many(self, keys: Collection[bytes], limits: Limits) -> Deferred[dict[bytes, bytes | None]]:
        found = {key: self.value(key) for key in keys}
        return self._did("gets", {key: value for key, value in found.items() if value is not None})


class TestMany(Hosts):
    def test_all(self) -> None:
        """Of many keys, those that the cache knows are answered from there, and the rest is leased."""
        self.cache = BatchLeaseCache(self.clock)
        self.cache.put(b"a", b"A", 60)
        self.cache.put(b"gone", MISSING, 60)
        self.cache.put(b"leased", None, 1)
        found = self.open().lookup_all([b"a", b"gone", b"leased", b"cold"])
        self.wait(2)
        assert self.successResultOf(found) == [b"A", None, b"kept", b"kept"]
        assert self.backup.asked == 2

    def test_empty(self) -> None:
        """Without leases an empty value is a value."""
        self.cache = BatchLeaseCache(self.clock)
        self.cache.put(b"a", b"", 60)
        table = host(self.clock, self.cache, self.backup, lease=False)
        assert self.successResultOf(table.lookup_all([b"a"])) == [b""]
        assert self.successResultOf(host(self.clock, self.cache, None).lookup_all([b"a", b"b"])) == [b"", None]
