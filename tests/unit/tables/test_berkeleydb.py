from __future__ import annotations

import fcntl
from pathlib import Path
from typing import Any

import pytest

from socketmap_memcache.errors import TemporaryError
from socketmap_memcache.tables.berkeleydb import BerkeleyStore
from socketmap_memcache.tables.interface import RefusedError
from socketmap_memcache.tables.store import Kind, Operation

from .berkeleydb_tests import BerkeleyTests, Opened, db, read, with_nul, write


class TestOperations(BerkeleyTests):
    def test_lookup(self, opened: Opened) -> None:
        """A key is found in any case; one that is missing, empty, not UTF-8, or has a NUL is missing."""
        assert opened.lookup(b"A") == b"value of a"
        assert [opened.lookup(key) for key in (b"d", b"", b"\xff", b"a\0", b"a\0b")] == [None] * 5

    def test_without_nul(self, kind: str, tmp_path: Path) -> None:
        """A file of postmap -n is read, walked, updated and written to in its own form."""
        opened = Opened(tmp_path / "x.db", kind, {b"a": b"1", b"b": b"2"})
        assert opened.lookup(b"a") == b"1"
        assert opened.walk() == [(b"a", b"1"), (b"b", b"2")]
        opened.update(b"a", b"3")
        opened.update(b"c", b"4")
        assert opened.delete(b"b")
        opened.table.close()
        assert read(opened.path) == {b"a": b"3", b"c": b"4"}

    def test_both_forms(self, kind: str, tmp_path: Path) -> None:
        """Where a key has both forms, the one with NUL counts, a walk gives it once, and deleting removes both."""
        opened = Opened(tmp_path / "x.db", kind, {b"a": b"1", b"a\0": b"2\0", b"b": b"3", b"\0": b"\0"})
        assert opened.lookup(b"a") == b"2"
        assert opened.lookup(b"b") == b"3"
        assert [key for key, _ in opened.walk()] == [b"a", b"b"]
        assert opened.delete(b"a")
        opened.table.close()
        assert read(opened.path) == {b"b": b"3", b"\0": b"\0"}

    def test_update(self, opened: Opened) -> None:
        """An update adds or replaces, in Postfix's form, and a deletion says whether the key was there."""
        assert opened.update(b"B", b"new")
        assert opened.update(b"\xc3\x9c", b"\xc3\xbc")
        assert opened.delete(b"C")
        assert not opened.delete(b"c")
        assert not opened.delete(b"a\0b")
        expected = with_nul(b"a") | {b"b\0": b"new\0", b"\xc3\xbc\0": b"\xc3\xbc\0"}
        assert read(opened.path) == expected

    def test_empty_table(self, kind: str, tmp_path: Path) -> None:
        """An empty table has no entries, and gets Postfix's usual form."""
        opened = Opened(tmp_path / "x.db", kind, {})
        assert opened.walk() == []
        assert opened.lookup(b"a") is None
        opened.update(b"a", b"")
        assert opened.lookup(b"a") == b""
        opened.table.close()
        assert read(opened.path) == {b"a\0": b"\0"}

    @pytest.mark.parametrize("key, value", [(b"", b"v"), (b"k\0", b"v"), (b"\xff", b"v"), (b"k", b"a\nb")])
    def test_refused(self, opened: Opened, key: bytes, value: bytes) -> None:
        """What cannot be read back is refused, and nothing is stored."""
        with pytest.raises(RefusedError):
            opened.update(key, value)
        assert read(opened.path) == with_nul(b"a", b"b", b"c")

    def test_given_up(self, opened: Opened) -> None:
        """What nobody waits for any more, because the lock came too late, is not done."""
        store = BerkeleyStore(opened.kind, str(opened.path.with_suffix("")), db)
        late = Operation(Kind.DELETE, b"a")
        late.given_up = True
        assert store.execute([late, Operation(Kind.DELETE, b"b")]) == [None, True]
        assert read(opened.path) == with_nul(b"a", b"c")

    def test_long(self, opened: Opened) -> None:
        """Keys and values may be longer than a page."""
        opened.update(b"k" * 20_000, b"v" * 100_000)
        assert opened.lookup(b"K" * 20_000) == b"v" * 100_000

    def test_changed_by_others(self, opened: Opened) -> None:
        """What somebody else writes is seen at once, in place or in a new file."""
        assert opened.lookup(b"d") is None
        write(opened.path, opened.kind, with_nul(b"d"))
        assert opened.lookup(b"d") == b"value of d"
        write(opened.path.with_name("new"), opened.kind, with_nul(b"e"))
        opened.path.with_name("new").rename(opened.path)
        assert [opened.lookup(b"d"), opened.lookup(b"e")] == [None, b"value of e"]

    def test_failures(self, opened: Opened) -> None:
        """A file that has gone, or become garbage, is a failure of every operation, until it is there again."""
        good = opened.path.read_bytes()
        opened.path.unlink()
        with pytest.raises(TemporaryError, match="cannot be opened: No such file"):
            opened.lookup(b"a")
        opened.path.write_bytes(b"garbage")
        for operation in (opened.lookup, opened.delete):
            with pytest.raises(TemporaryError, match=f"{opened.kind}:"):
                operation(b"a")
        with pytest.raises(TemporaryError):
            opened.walk()
        opened.path.write_bytes(good)
        assert opened.lookup(b"a") == b"value of a"

    def test_end_lost(self, opened: Opened) -> None:
        """A file that was cut off is a failure, also for keys whose page a hash has lost; it is not written to."""
        write(opened.path, opened.kind, {b"%d\0" % number: bytes(100) for number in range(1000)})
        half = opened.path.read_bytes()[: opened.path.stat().st_size // 2 // 4096 * 4096]
        opened.path.write_bytes(half)
        for number in range(0, 1000, 100):
            with pytest.raises(TemporaryError, match="has lost its end"):
                opened.lookup(b"%d" % number)
        with pytest.raises(TemporaryError, match="has lost its end"):
            opened.update(b"new", b"value")
        assert opened.path.read_bytes() == half


class TestLocks(BerkeleyTests):
    def holds(self, path: Path, lock: int) -> bool:
        """Say whether somebody else holds a lock that is in the way of this one."""
        with path.open() as file:
            try:
                fcntl.flock(file, lock | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    @pytest.mark.parametrize(
        "asked, exclusive", [(Kind.LOOKUP, False), (Kind.AFTER, False), (Kind.UPDATE, True), (Kind.DELETE, True)]
    )
    def test_locks(self, opened: Opened, monkeypatch: pytest.MonkeyPatch, asked: Kind, exclusive: bool) -> None:
        """Readers share a lock, writers have their own, and it is gone when the operation is done."""
        store = BerkeleyStore(opened.kind, str(opened.path.with_suffix("")), db)
        if opened.kind == "hash" and asked is Kind.AFTER:
            asked = Kind.KEYS
        seen = []
        original = store._do[asked]

        def observe(database: Any, operation: Operation) -> Any:
            seen.append((self.holds(opened.path, fcntl.LOCK_EX), self.holds(opened.path, fcntl.LOCK_SH)))
            return original(database, operation)

        monkeypatch.setitem(store._do, asked, observe)
        store.execute([Operation(asked, b"a", b"v")])
        assert seen == [(True, exclusive)]
        assert not self.holds(opened.path, fcntl.LOCK_EX)

    def test_replaced_while_waiting(self, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
        """A file that takes another's place while somebody waits for the lock is the one that is read."""
        store = BerkeleyStore(opened.kind, str(opened.path.with_suffix("")), db)
        new = opened.path.with_name("new")
        write(new, opened.kind, with_nul(b"z"))
        flock = fcntl.flock

        def late(descriptor: int, lock: int) -> None:
            if new.exists():
                new.rename(opened.path)
            flock(descriptor, lock)

        monkeypatch.setattr(fcntl, "flock", late)
        (value,) = store.execute([Operation(Kind.LOOKUP, b"z")])
        assert value == b"value of z"
