from __future__ import annotations

from twisted.internet.defer import Deferred

from socketmap_memcache.errors import TemporaryError
from socketmap_memcache.memcache.memory import MONTH
from socketmap_memcache.tables.cache_entries import MISSING
from socketmap_memcache.tables.memcache import MemcacheTable
from socketmap_memcache.tables.memcache_settings import LeaseSettings
from tests.unit.tables.fakes import MemcacheTableTests, open_table

MARKED = LeaseSettings(negative_ttl=60)


class TestNegativeTtl(MemcacheTableTests):
    def setUp(self) -> None:
        super().setUp()
        self.cache.get_answer = None
        self.backup.known = None
        self.table = open_table(self.cache, self.backup, leases=MARKED)

    def test_missing(self) -> None:
        """That the backup does not have a key is cached for ``negative_ttl``."""
        assert self.lookup(self.table) is None
        self.assertTrace("get b'k'", "backup b'k'", f"set b'k' {MISSING!r} 0 60")

    def test_marked(self) -> None:
        """A mark from the cache means missing, and the backup is not asked."""
        self.cache.get_answer = MISSING
        assert self.lookup(self.table) is None
        assert self.successResultOf(self.table.lookup_first([b"k"])) is None
        self.assertTrace("get b'k'", "get b'k'")

    def test_switched_off(self) -> None:
        """A mark is known, too, by a table that makes none (any more)."""
        self.cache.get_answer = MISSING
        assert self.lookup(open_table(self.cache, self.backup)) is None
        self.assertTrace("get b'k'")

    def test_default(self) -> None:
        """By default nothing is cached for a missing key."""
        assert self.lookup(open_table(self.cache, self.backup)) is None
        self.assertTrace("get b'k'", "backup b'k'")

    def test_failure(self) -> None:
        """A failure of the backup is never cached."""
        self.backup.known = TemporaryError("down")
        self.failureResultOf(self.table.lookup(b"k"), TemporaryError)
        self.assertTrace("get b'k'", "backup b'k'")

    def test_no_backup(self) -> None:
        """Without a backup there is nothing to mark."""
        assert self.lookup(open_table(self.cache, leases=MARKED)) is None
        self.assertTrace("get b'k'")

    def test_changed_meanwhile(self) -> None:
        """A key that is added while the backup is asked is not marked."""
        asking: Deferred[bytes | None] = Deferred()
        self.backup.known = asking
        asked = self.table.lookup(b"k")
        self.successResultOf(self.table.update(b"k", b"v"))
        asking.callback(None)
        assert self.successResultOf(asked) is None
        self.assertTrace("get b'k'", "backup b'k'", "set b'k' b'v' 0 3600", "backup update b'k' b'v' None")

    def test_same_value(self) -> None:
        """A value that looks like the mark is never cached."""
        self.backup.known = MISSING
        assert self.lookup(self.table) == MISSING
        self.assertTrace("get b'k'", "backup b'k'")


class TestStaleTtl(MemcacheTableTests):
    def stored_for(self, ttl: int, stale_ttl: int) -> str:
        table: MemcacheTable = open_table(
            self.cache, self.backup, ttl=ttl, leases=LeaseSettings(lease=True, stale_ttl=stale_ttl)
        )
        self.successResultOf(table.update(b"k", b"v"))
        stored = self.trace[0].rpartition(" ")[2]
        self.trace.clear()
        return stored

    def test_ttl(self) -> None:
        """A value lives ``stale_ttl`` longer than its ttl, whichever of memcached's three kinds that is."""
        assert self.stored_for(60, 10) == "70"
        assert self.stored_for(0, 10) == "0"  # for ever
        assert self.stored_for(-1, 10) == "-1"  # not at all
        assert self.stored_for(MONTH, 0) == str(MONTH)
        assert self.stored_for(MONTH, 10) == str(MONTH + 10)  # a UNIX time: the clock stands at 0
        assert self.stored_for(1_700_000_000, 10) == "1700000010"
