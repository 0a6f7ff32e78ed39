from __future__ import annotations

from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from socketmap_memcache.memcache.memory import MONTH
from socketmap_memcache.memcache.pool import ClientPool
from socketmap_memcache.tables.interface import ICursor, ITable, RefusedError
from socketmap_memcache.tables.memory import MemoryTable
from socketmap_memcache.tables.registry import TableContext


class MemoryTableTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = MemoryReactorClock()
        self.clock.advance(1_700_000_000)
        self.context = TableContext(ClientPool(self.clock))
        self.table = MemoryTable("memory:x", 100_000, self.context)

    def lookup(self, key: bytes) -> bytes | None:
        return self.successResultOf(self.table.lookup(key))

    def update(self, key: bytes, value: bytes, ttl: int | None = None) -> None:
        assert self.successResultOf(self.table.update(key, value, ttl)) is True

    def test_interface(self) -> None:
        """It is a table, empty when it is opened, and not that of another name or time."""
        table = self.context.open_table("memory:greylist")
        verifyObject(ITable, table)
        assert table.name == "memory:greylist"
        assert self.successResultOf(table.update(b"k", b"v")) is True
        assert self.successResultOf(self.context.open_table("memory:greylist").lookup(b"k")) is None

    def test_keys(self) -> None:
        """Keys are folded; what cannot be a key is missing, and refused on update."""
        self.update("\u00dc@X".encode(), b"v")
        assert self.lookup("\u00fc@x".encode()) == b"v"
        for key in (b"", b"\xff"):
            assert self.lookup(key) is None
            assert self.successResultOf(self.table.delete(key)) is False
            self.failureResultOf(self.table.update(key, b"v"), RefusedError)

    def test_case(self) -> None:
        """Upper and lower case differ where keys are not to be folded."""
        self.context.fold_keys = False
        self.table = MemoryTable("memory:x", 100_000, self.context)
        self.update(b"K", b"v")
        assert [self.lookup(key) for key in (b"k", b"K")] == [None, b"v"]
        assert [self.successResultOf(self.table.delete(key)) for key in (b"k", b"K")] == [False, True]

    def test_refused(self) -> None:
        """Values that Postfix could not read back, and a ttl that is none, are refused; the old value stays."""
        self.update(b"k", b"old")
        for value in (b"a\0b", b"a\nb", b"\xff"):
            self.failureResultOf(self.table.update(b"k", value), RefusedError)
        for ttl in (0, -1):
            self.failureResultOf(self.table.update(b"k", b"v", ttl), RefusedError)
        assert self.lookup(b"k") == b"old"

    def test_delete(self) -> None:
        """A delete says whether the key was there."""
        self.update(b"k", b"v")
        assert [self.successResultOf(self.table.delete(b"K")) for _ in range(2)] == [True, False]
        assert self.lookup(b"k") is None

    def test_ttl(self) -> None:
        """An entry lives as long as it should, be that more than a month, or for ever."""
        for ttl in (1, MONTH, MONTH + 1, 10 * MONTH):
            self.update(b"k", b"v", ttl)
            self.clock.advance(ttl - 0.5)
            assert self.lookup(b"k") == b"v", ttl
            self.clock.advance(0.5)
            assert self.lookup(b"k") is None, ttl
        self.update(b"k", b"", None)
        self.clock.advance(100 * MONTH)
        assert self.lookup(b"k") == b""

    def test_bounded(self) -> None:
        """Where there is no more room, what was used longest ago goes; what has no room at all is refused."""
        for number in range(400):
            self.update(b"%d" % number, b"v" * 100)
            self.lookup(b"0")
        assert self.lookup(b"0") == b"v" * 100
        assert self.lookup(b"1") is None
        assert self.lookup(b"399") == b"v" * 100
        failure = self.failureResultOf(self.table.update(b"large", b"v" * 100_000), RefusedError)
        assert failure.getErrorMessage() == "memory:x: an entry of 100005 bytes is too large"
        assert self.lookup(b"0") == b"v" * 100

    def test_cursor(self) -> None:
        """A walk gives each entry once, although they are looked up, changed, deleted and added meanwhile."""
        for key in (b"a", b"b", b"c", b"d"):
            self.update(key, b"1")
        self.update(b"brief", b"1", 10)
        cursor = self.table.cursor()
        verifyObject(ICursor, cursor)
        assert self.successResultOf(cursor.next()) == (b"a", b"1")
        self.successResultOf(self.table.delete(b"a"))
        self.successResultOf(self.table.delete(b"b"))
        self.update(b"c", b"2")
        self.lookup(b"d")
        self.update(b"e", b"1")
        self.clock.advance(10)
        assert [self.successResultOf(cursor.next()) for _ in range(4)] == [(b"c", b"2"), (b"d", b"1"), None, None]

    def test_close(self) -> None:
        """A closed table has forgotten everything."""
        self.update(b"k", b"v")
        for _ in range(2):
            self.table.close()
        assert self.lookup(b"k") is None
