from __future__ import annotations

from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from socketmap_memcache.tables import lmdb as lmdb_module
from socketmap_memcache.tables.lmdb import has_ended, pack
from socketmap_memcache.tables.store import Halfway, Kind, Operation
from socketmap_memcache.tables.store_table import StoreTable

from .lmdb_tests import LmdbTests
from .store_reactor import StoreReactor
from .thread_clock import PATIENCE


class TestTimeToLive(LmdbTests):
    @given(st.binary().filter(lambda value: b"\0" not in value), st.sampled_from([b"\0", b""]))
    def test_without(self, value: bytes, nul: bytes) -> None:
        """A value without an end is stored as Postfix stores it, and never ends."""
        stored = pack(value, nul, None)
        assert stored == value + nul
        assert not has_ended(stored, 1e12)

    @given(st.binary().filter(lambda value: b"\0" not in value), st.sampled_from([b"\0", b""]), st.floats(0.001, 1e11))
    def test_with(self, value: bytes, nul: bytes, end: float) -> None:
        """A value with an end is what Postfix reads up to the first NUL, and ends when it should."""
        stored = pack(value, nul, end)
        assert stored.partition(b"\0")[0] == value
        assert has_ended(stored, end + 0.001)
        assert not has_ended(stored, end - 0.001)

    @given(st.binary())
    def test_others(self, rest: bytes) -> None:
        """Whatever else may follow the first NUL is no end."""
        assert not has_ended(b"value\0" + rest, 1e12)

    def test_lookup(self) -> None:
        """An entry is missing when its time is over; an update begins a new time, or ends all time."""
        self.make()
        store = self.open()
        for key, ttl in ((b"a", 10), (b"b", 10), (b"c", 10), (b"d", 10**400), (b"e", None)):
            assert self.do(store, Kind.UPDATE, key, b"v", ttl) is True
        self.do(store, Kind.UPDATE, b"b", b"v", 20)
        self.do(store, Kind.UPDATE, b"c", b"v")
        self.now += 9.999
        assert self.lookups(store, [b"a", b"b", b"c", b"d", b"e"]) == [b"v"] * 5
        self.now += 0.001
        assert self.lookups(store, [b"a", b"b", b"c", b"d", b"e"]) == [None, *[b"v"] * 4]
        assert self.do(store, Kind.DELETE, b"a") is False
        assert self.do(store, Kind.DELETE, b"b") is True

    def test_walk(self) -> None:
        """A walk leaves out what has ended, and deletes it when it comes to its end."""
        self.make()
        store = self.open()
        for key in (b"a", b"b", b"d", b"e"):
            self.do(store, Kind.UPDATE, key, b"v", 10)
        self.do(store, Kind.UPDATE, b"c", b"v")
        self.now += 10
        assert self.do(store, Kind.AFTER, b"") == [(b"c", b"v")]
        self.do(store, Kind.UPDATE, b"b", b"new", 10)  # after the walk has seen it
        self.do(store, Kind.DELETE, b"a")
        assert self.do(store, Kind.AFTER, b"c") == []
        store.close()
        assert sorted(self.content()) == [b"b\0", b"c\0"]

    def test_deleted_with_others(self) -> None:
        """What has ended is deleted by the next transaction that writes, without waiting for the disk once more."""
        self.make()
        store = self.open()
        for key in (b"a", b"b"):
            self.do(store, Kind.UPDATE, key, b"v", 10)
        self.do(store, Kind.UPDATE, b"c", b"v")
        self.now += 10
        with patch.object(store, "_purge") as purge:
            assert self.do(store, Kind.AFTER, b"") == [(b"c", b"v")]
            self.do(store, Kind.UPDATE, b"d", b"v")
            assert self.do(store, Kind.AFTER, b"d") == []
            purge.assert_not_called()
        store.close()
        assert sorted(self.content()) == [b"c\0", b"d\0"]

    def test_much_to_delete(self) -> None:
        """A walk passes over what has ended, and deletes it, in steps; what is asked for in between is not held up."""
        self.make()
        store = self.open()
        for key in (b"a", b"b", b"c", b"e"):
            self.do(store, Kind.UPDATE, key, b"v", 10)
        self.do(store, Kind.UPDATE, b"d", b"v")
        self.now += 10
        with patch.object(lmdb_module, "PURGE_LIMIT", 2), patch.object(store, "_purge", wraps=store._purge) as purge:
            walks = [Operation(Kind.AFTER, b""), Operation(Kind.AFTER, b"")]
            assert store.execute(walks) == [Halfway(b"b"), Halfway(b"b")]
            assert purge.call_count == 1
            assert self.do(store, Kind.LOOKUP, b"d") == b"v"
            assert self.do(store, Kind.AFTER, b"b") == [(b"d", b"v")]
            assert purge.call_count == 2
        store.close()
        assert sorted(self.content()) == [b"d\0"]

    def test_ahead(self) -> None:
        """A walk takes some entries at once, and not many more when they are large."""
        self.make({b"%03d\0" % number: b"v\0" for number in range(250)})
        store = self.open()
        assert len(self.do(store, Kind.AFTER, b"")) == 100
        assert [len(self.do(store, Kind.AFTER, key)) for key in (b"099", b"199")] == [100, 50]
        self.do(store, Kind.UPDATE, b"100", b"x" * 100_000)
        assert self.do(store, Kind.AFTER, b"099") == [(b"100", b"x" * 100_000)]

    def test_walk_through_much(self) -> None:
        """A walk through a table comes to what is behind thousands of entries that have ended."""
        self.make({b"%d\0" % number: pack(b"v", b"\0", 1) for number in range(5000)} | {b"x\0": b"v\0"})
        reactor = StoreReactor()
        table = StoreTable("lmdb:x", self.open(), reactor)
        cursor = table.cursor()
        assert reactor.result(cursor.next()) == (b"x", b"v")
        assert reactor.result(cursor.next()) is None
        table.close()
        assert table._thread is not None
        table._thread.join(PATIENCE)
        assert self.content() == {b"x\0": b"v\0"}

    def test_not_writable(self) -> None:
        """A walk goes on where nothing can be deleted."""
        self.make({b"a\0": pack(b"v", b"\0", 1), b"b\0": b"v\0"})
        store = self.open()
        store._file.writable = False
        assert self.walk(store) == [(b"b", b"v")]
        assert self.walk(store) == [(b"b", b"v")]
