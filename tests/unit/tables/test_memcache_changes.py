"""Updates, deletes and walks of ``memcache:`` tables."""

from __future__ import annotations

from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs, formatEvent
from zope.interface.verify import verifyObject

from socketmap_memcache.errors import LookupTimeout, TemporaryError
from socketmap_memcache.memcache.memory import MONTH
from socketmap_memcache.tables.interface import (
    IBatchTable,
    ICursor,
    IRefusing,
    ITable,
    NoBackupError,
    ReadOnlyError,
    RefusedError,
    sweep,
)
from socketmap_memcache.tables.memcache import MemcacheTable
from socketmap_memcache.tables.partial_keys import PartialKeys, PartialKeysTable
from socketmap_memcache.tables.read_only import ReadOnlyTable
from tests.unit.tables.fakes import Domains, FakePool, MemcacheTableTests, open_table


class ChangeTests(MemcacheTableTests):
    def update(self, table: MemcacheTable, key: bytes = b"k", value: bytes = b"v", ttl: int | None = None) -> bool:
        return self.successResultOf(table.update(key, value, ttl))

    def delete(self, table: MemcacheTable, key: bytes = b"k") -> bool:
        return self.successResultOf(table.delete(key))


class TestSweep(ChangeTests):
    def test_backup(self) -> None:
        """A sweep goes through the backup, also behind partial keys; without one there is nothing to go through."""
        table = open_table(self.cache, self.backup)
        for each in (table, PartialKeysTable(table, PartialKeys("address"))):
            assert self.successResultOf(sweep(each).next()) == (b"k", b"kept")
        self.failureResultOf(sweep(open_table(self.cache)).next(), NoBackupError)


class TestUpdate(ChangeTests):
    def test_interface(self) -> None:
        """It is a table that can look up several keys at once."""
        verifyObject(IBatchTable, open_table(self.cache))

    def test_order(self) -> None:
        """An update goes to the cache first and to the backup last, with the folded key; the backup's result counts."""
        table = open_table(self.cache, self.backup, flags=-1, ttl=60, key_format="p:%s")
        assert self.update(table, b"K", b"v", 30) is True
        self.assertTrace("set b'p:k' b'v' -1 30", "backup update b'k' b'v' 30")
        self.backup.changed = False
        assert self.update(table) is False
        self.backup.changed = TemporaryError("full")
        self.failureResultOf(table.update(b"k", b"v"), TemporaryError)

    def test_cache_first(self) -> None:
        """The backup is changed when the cache has answered, and not before."""
        stored: Deferred[Any] = Deferred()
        self.cache.set_answer = stored
        done = open_table(self.cache, self.backup).update(b"k", b"v")
        self.assertTrace("set b'k' b'v' 0 3600")
        stored.callback(None)
        assert self.successResultOf(done) is True
        self.assertTrace("backup update b'k' b'v' None")

    def test_cache_fails(self) -> None:
        """With a backup a failure of the cache is no matter; without one it is the result."""
        for error in (TemporaryError("down"), LookupTimeout("slow")):
            self.cache.set_answer = error
            assert self.update(open_table(self.cache, self.backup)) is True
            assert self.failureResultOf(open_table(self.cache).update(b"k", b"v")).value is error

    def test_unforeseen(self) -> None:
        """What is no failure of a cache is told, and not hidden by the backup."""
        self.cache.set_answer = ZeroDivisionError()
        self.failureResultOf(open_table(self.cache, self.backup).update(b"k", b"v"), ZeroDivisionError)
        self.assertTrace("set b'k' b'v' 0 3600")

    def test_no_backup(self) -> None:
        """Without a backup the cache alone keeps the value."""
        assert self.update(open_table(self.cache)) is True
        self.assertTrace("set b'k' b'v' 0 3600")

    def test_too_long(self) -> None:
        """A value above data_size_limit goes to the backup only, as with Postfix; without a backup it is not stored."""
        assert self.update(open_table(self.cache, self.backup, data_size_limit=3), value=b"long") is True
        self.assertTrace("backup update b'k' b'long' None")
        assert self.update(open_table(self.cache, data_size_limit=3), value=b"long") is False
        self.assertTrace()

    def test_long_key(self) -> None:
        """A key that memcached cannot store goes to the backup only; without a backup the operation fails."""
        key = b"x" * 251
        assert self.update(open_table(self.cache, self.backup), key) is True
        assert self.delete(open_table(self.cache, self.backup), key) is True
        self.assertTrace(f"backup update {key!r} b'v' None", f"backup delete {key!r}")
        self.failureResultOf(open_table(self.cache).update(key, b"v"), TemporaryError)
        self.failureResultOf(open_table(self.cache).delete(key), TemporaryError)
        self.assertTrace()

    def test_domain_without_backup(self) -> None:
        """Without a backup, too, the domain list is asked before the cache."""
        assert self.update(open_table(self.cache, None, Domains(self.trace, True)), b"k@x") is True
        self.assertTrace("domain of b'k@x'", "set b'k@x' b'v' 0 3600")

    def test_skipped(self) -> None:
        """A key that look-ups skip is not stored anywhere: an update says so in the log, a delete says nothing."""
        tables = [
            (open_table(self.cache, self.backup, Domains([], False)), b"K@x"),
            (open_table(self.cache, self.backup, key_format="%d"), b"K"),
            (open_table(self.cache, self.backup), b"K X"),
            (open_table(self.cache), b"K Y"),
        ]
        with capturedLogs() as logs:
            for table, key in tables:
                assert self.delete(table, key) is False
            assert list(logs) == []
            for table, key in tables:
                assert self.update(table, key) is False
        self.assertTrace()
        assert [formatEvent(event) for event in logs] == [
            f"memcache:/x.cf: skipping update for key {key.lower()!r}" for _, key in tables
        ]

    def test_refused(self) -> None:
        """What cannot be a key, a value or a ttl is refused, before anything is changed."""
        table = open_table(self.cache, self.backup)
        for key in (b"", b"\xff"):
            self.failureResultOf(table.update(key, b"v"), RefusedError)
            assert self.delete(table, key) is False
        for value in (b"\xff", b"a\nb", b"a\0b"):
            self.failureResultOf(table.update(b"k", value), RefusedError)
        for ttl in (0, -1):
            self.failureResultOf(table.update(b"k", b"v", ttl), RefusedError)
        self.assertTrace()

    def test_read_only_backup(self) -> None:
        """With a backup that cannot be changed an update is refused, and the cache is not touched."""

        class Fixed(ReadOnlyTable):
            name = "fixed:x"

        table = open_table(self.cache, cast(ITable, Fixed()))
        for operation, done in (("update", table.update(b"k", b"v")), ("delete", table.delete(b"k"))):
            failure = self.failureResultOf(done, ReadOnlyError)
            assert failure.getErrorMessage() == f"table fixed:x: {operation} operation is not supported"
        self.assertTrace()

    def test_read_only_behind(self) -> None:
        """It is so, too, where the backup that cannot be changed is that of the backup, or has partial keys."""

        class Fixed(ReadOnlyTable):
            name = "fixed:x"

        fixed = PartialKeysTable(cast(ITable, Fixed()), PartialKeys("address"))
        table = open_table(self.cache, open_table(self.cache, fixed))
        verifyObject(IRefusing, table)
        self.failureResultOf(table.update(b"k", b"v"), ReadOnlyError)
        self.failureResultOf(table.delete(b"k"), ReadOnlyError)
        self.assertTrace()

    def test_domain(self) -> None:
        """An update waits for the domain list; when that fails nothing is changed, and the update fails."""
        for matches in (True, TemporaryError("down")):
            matched: Deferred[Any] = Deferred()
            done = open_table(self.cache, self.backup, Domains([], matched)).update(b"k", b"v")
            self.assertTrace()
            if isinstance(matches, Exception):
                matched.errback(matches)
                self.failureResultOf(done, TemporaryError)
                self.assertTrace()
            else:
                matched.callback(matches)
                assert self.successResultOf(done) is True
                self.trace.clear()

    def test_close(self) -> None:
        """An update that is under way when the table is closed is finished with a backup that is still open."""
        stored: Deferred[Any] = Deferred()
        self.cache.set_answer = stored
        table = open_table(self.cache, self.backup)
        done = table.update(b"k", b"v")
        table.close()
        stored.callback(None)
        assert self.successResultOf(done) is True
        self.assertTrace("set b'k' b'v' 0 3600", "backup update b'k' b'v' None", "close cache", "close backup")

    def test_ttl(self) -> None:
        """The cache keeps a value no longer than its ttl, and with a backup no longer than the table's own."""
        now = 1_700_000_000
        later = now + 100  # the table's ttl may be a UNIX time
        last = 2**31 - 1  # a UNIX time after it is in the past for memcached, which has 32 bits for it
        for default, ttl, with_backup, without in (
            (3600, None, 3600, 3600),
            (3600, 60, 60, 60),
            (3600, 7200, 3600, 7200),
            (0, None, 0, 0),
            (0, 60, 60, 60),
            (0, MONTH, MONTH, MONTH),
            (0, MONTH + 1, now + MONTH + 1, now + MONTH + 1),
            (3600, MONTH + 1, 3600, now + MONTH + 1),
            (MONTH, MONTH + 1, MONTH, now + MONTH + 1),
            (0, last - now, last, last),
            (0, last - now + 1, 0, 0),
            (later, 50, 50, 50),
            (later, 200, later, 200),
            (-1, None, -1, -1),
            (-1, 60, -1, 60),
        ):
            for backup, expected in ((self.backup, with_backup), (None, without)):
                table = open_table(self.cache, backup, ttl=default)
                cast(FakePool, table._pool).reactor.advance(now)
                self.update(table, ttl=ttl)
                assert self.trace[0] == f"set b'k' b'v' 0 {expected}", (default, ttl, backup)
                self.trace.clear()


class TestDelete(ChangeTests):
    def test_order(self) -> None:
        """A delete goes to the cache first and to the backup last; the backup's result counts."""
        table = open_table(self.cache, self.backup, key_format="p:%s")
        for changed in (True, False):
            self.backup.changed = changed
            assert self.delete(table, b"K") is changed
            self.assertTrace("delete b'p:k'", "backup delete b'k'")
        self.backup.changed = TemporaryError("down")
        self.failureResultOf(table.delete(b"k"), TemporaryError)

    def test_cache_fails(self) -> None:
        """With a backup a failure of the cache is no matter; without one it is the result."""
        self.cache.delete_answer = TemporaryError("down")
        assert self.delete(open_table(self.cache, self.backup)) is True
        self.failureResultOf(open_table(self.cache).delete(b"k"), TemporaryError)

    def test_no_backup(self) -> None:
        """Without a backup the result says whether the cache had the key."""
        for was_there in (True, False):
            self.cache.delete_answer = was_there
            assert self.delete(open_table(self.cache)) is was_there
        self.assertTrace("delete b'k'", "delete b'k'")


class TestCursor(ChangeTests):
    def test_backup(self) -> None:
        """The walk is one through the backup."""
        cursor = open_table(self.cache, self.backup).cursor()
        verifyObject(ICursor, cursor)
        assert self.successResultOf(cursor.next()) == (b"k", b"kept")
        assert self.successResultOf(cursor.next()) is None

    def test_no_backup(self) -> None:
        """Without a backup there is nothing to walk through, and each step says so."""
        failure = self.failureResultOf(open_table(self.cache).cursor().next(), NoBackupError)
        assert failure.getErrorMessage() == "database memcache:/x.cf: first/next support requires backup database"


class TestStale(ChangeTests):
    """Look-ups while the key is changed."""

    def setUp(self) -> None:
        super().setUp()
        self.cache.get_answer = None
        self.query: Deferred[Any] = Deferred()
        self.backup.known = self.query
        self.table = open_table(self.cache, self.backup)

    def test_begun_before(self) -> None:
        """A look-up that began before an update has the old value; it is not cached, and nobody else gets it."""
        for change in (lambda: self.update(self.table), lambda: self.delete(self.table)):
            query: Deferred[Any] = Deferred()
            self.backup.known = query
            before = self.table.lookup(b"k")
            change()
            self.backup.known = b"new"
            assert self.lookup(self.table) == b"new"
            self.trace.clear()
            query.callback(b"old")
            assert self.successResultOf(before) == b"old"
            self.assertTrace()

    def test_begun_meanwhile(self) -> None:
        """A look-up that begins during a change may read the value before it, and does not cache it."""
        changed: Deferred[Any] = Deferred()
        self.backup.changed = changed
        done = self.table.delete(b"k")
        self.backup.known = b"old"
        assert self.lookup(self.table) == b"old"
        self.backup.known = self.query
        lasting = self.table.lookup(b"K")
        changed.callback(True)
        assert self.successResultOf(done) is True
        self.query.callback(b"old")
        assert self.successResultOf(lasting) == b"old"
        assert not [line for line in self.trace if line.startswith("set")]

    def test_afterwards(self) -> None:
        """When all changes of a key are done, whatever came of them, look-ups cache its value again."""
        one: Deferred[Any] = Deferred()
        self.backup.changed = one
        self.table.update(b"k", b"1")
        other: Deferred[Any] = Deferred()
        self.backup.changed = other
        failing = self.table.update(b"k", b"2")
        self.backup.known = b"v"
        one.callback(True)
        self.trace.clear()
        self.lookup(self.table)
        self.assertTrace("get b'k'", "backup b'k'")
        other.errback(TemporaryError("down"))
        self.failureResultOf(failing, TemporaryError)
        self.lookup(self.table)
        self.assertTrace("get b'k'", "backup b'k'", "set b'k' b'v' 0 3600")
        assert self.table._changes._queries is not None
        assert self.table._changes._queries._changing == {}

    def test_other_keys(self) -> None:
        """Changes of other keys are no matter."""
        before = self.table.lookup(b"k")
        self.update(self.table, b"other")
        self.query.callback(b"v")
        assert self.successResultOf(before) == b"v"
        assert self.trace[-1] == "set b'k' b'v' 0 3600"
