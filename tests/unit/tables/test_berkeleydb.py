from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from zope.interface.verify import verifyObject

from socketmap_memcache.errors import ConfigurationError, TemporaryError
from socketmap_memcache.tables import berkeleydb as berkeleydb_tables
from socketmap_memcache.tables.berkeleydb import BerkeleyStore
from socketmap_memcache.tables.interface import ICursor, ITable, RefusedError, sweep
from socketmap_memcache.tables.store import READ_AHEAD, Kind, Operation

from .store_reactor import StoreReactor

db = pytest.importorskip("berkeleydb.db")

KINDS = {"hash": db.DB_HASH, "btree": db.DB_BTREE}


def write(path: Path, kind: str, entries: dict[bytes, bytes]) -> None:
    """Write entries as they are, in addition to those that are there."""
    database = db.DB()
    database.open(str(path), dbtype=KINDS[kind], flags=db.DB_CREATE)
    for key, value in entries.items():
        database.put(key, value)
    database.close()


def read(path: Path) -> dict[bytes, bytes]:
    database = db.DB()
    database.open(str(path), dbtype=db.DB_UNKNOWN, flags=db.DB_RDONLY)
    entries = dict(database.items())
    database.close()
    return entries


def with_nul(*keys: bytes) -> dict[bytes, bytes]:
    return {key + b"\0": b"value of " + key + b"\0" for key in keys}


class Opened:
    """A table that was opened, with its file."""

    def __init__(self, path: Path, kind: str, entries: dict[bytes, bytes]) -> None:
        self.path = path
        self.kind = kind
        write(path, kind, entries)
        self.reactor = StoreReactor()
        self.context = self.reactor.context()
        self.table = self.context.open_table(f"{kind}:{path.with_suffix('')}")

    def lookup(self, key: bytes) -> bytes | None:
        return self.reactor.result(self.table.lookup(key))

    def update(self, key: bytes, value: bytes) -> bool:
        return self.reactor.result(self.table.update(key, value))

    def delete(self, key: bytes) -> bool:
        return self.reactor.result(self.table.delete(key))

    def next(self, cursor: ICursor) -> tuple[bytes, bytes] | None:
        return self.reactor.result(cursor.next())

    def walk(self) -> list[tuple[bytes, bytes]]:
        cursor = self.table.cursor()
        verifyObject(ICursor, cursor)
        entries = []
        while (entry := self.next(cursor)) is not None:
            entries.append(entry)
        assert self.next(cursor) is None
        return entries


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def opened(kind: str, tmp_path: Path) -> Iterator[Opened]:
    made = Opened(tmp_path / "table.db", kind, with_nul(b"a", b"b", b"c"))
    yield made
    made.table.close()


def open_error(spec: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        StoreReactor().context().open_table(spec)
    return str(caught.value)


class TestOpen:
    def test_interface(self, opened: Opened) -> None:
        """A table is an ITable with its full name, and closing it twice is closing it once."""
        verifyObject(ITable, opened.table)
        assert opened.table.name == f"{opened.kind}:{opened.path.with_suffix('')}"
        opened.table.close()

    def test_no_name(self, kind: str) -> None:
        """The name must not be empty."""
        assert open_error(f"{kind}:") == f"{kind}: needs the path of a file"

    def test_create(self, kind: str, tmp_path: Path) -> None:
        """A table of the service's own is made where there is none, and nothing else is left; an old one stays."""
        for value in (b"first", b"second"):
            reactor = StoreReactor()
            table = reactor.context().open_table(f"{kind}:{tmp_path}/made", create=True)
            reactor.result(table.update(value, value))
            table.close()
        assert [file.name for file in tmp_path.iterdir()] == ["made.db"]
        assert (tmp_path / "made.db").stat().st_mode & 0o777 == 0o640
        assert read(tmp_path / "made.db") == {b"first\0": b"first\0", b"second\0": b"second\0"}

    def test_create_together(self, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where another process makes the file at the same moment, its file is used."""
        write(tmp_path / "made.db", kind, with_nul(b"theirs"))
        monkeypatch.setattr(Path, "exists", lambda _: False)
        StoreReactor().context().open_table(f"{kind}:{tmp_path}/made", create=True).close()
        assert list(read(tmp_path / "made.db")) == [b"theirs\0"]

    def test_create_nowhere(self, kind: str, tmp_path: Path) -> None:
        """A file that cannot be made is an error that names it."""
        with pytest.raises(ConfigurationError) as caught:
            StoreReactor().context().open_table(f"{kind}:{tmp_path}/missing/made", create=True)
        reason = "cannot be opened: No such file or directory (its directory does not exist)"
        assert str(caught.value) == f"{tmp_path}/missing/made.db: {reason}"

    def test_missing_file(self, kind: str, tmp_path: Path) -> None:
        """A file that is missing is named, with the command that makes it, and is not made."""
        reason = f"cannot be opened: No such file or directory (make it with: postmap {kind}:{tmp_path}/x)"
        assert open_error(f"{kind}:{tmp_path}/x") == f"{tmp_path}/x.db: {reason}"
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("content", [b"", b"x" * 5000, b"key value\n"])
    def test_not_a_database(self, kind: str, tmp_path: Path, content: bytes) -> None:
        """A file of another format is named."""
        (tmp_path / "x.db").write_bytes(content)
        assert f"{tmp_path}/x.db: is not a usable {kind}: file: " in open_error(f"{kind}:{tmp_path}/x")

    def test_other_kind(self, opened: Opened) -> None:
        """A hash is not a btree, nor the other way round."""
        other = "btree" if opened.kind == "hash" else "hash"
        assert f"is not a usable {other}: file" in open_error(f"{other}:{opened.path.with_suffix('')}")

    def test_missing_package(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without the Python package the error says how to install it."""
        monkeypatch.setitem(sys.modules, "berkeleydb", None)
        monkeypatch.setitem(sys.modules, "berkeleydb.db", None)
        assert "pip install 'socketmap-memcache[berkeleydb]'" in open_error(f"{kind}:/x")

    def test_being_written(self, opened: Opened) -> None:
        """A file that somebody is writing can be opened unseen, with a warning."""
        with opened.path.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            context = StoreReactor().context()
            context.open_table(opened.table.name).close()
        (warning,) = context.warnings
        assert str(warning).startswith(f"{opened.path}: is being written")

    def test_older_than_source(self, opened: Opened) -> None:
        """A file that is older than its source is opened with a warning, unless the source is quite new."""
        source = opened.path.with_suffix("")
        source.touch()
        os.utime(opened.path, (1_000_000_000, 1_000_000_000))
        for changed in (None, (1_000_000_000, 1_000_000_000)):
            os.utime(source, changed)
            context = StoreReactor().context()
            context.open_table(opened.table.name).close()
            assert not context.warnings
        os.utime(source, (1_000_000_001, 1_000_000_001))
        context = StoreReactor().context()
        context.open_table(opened.table.name).close()
        assert list(map(str, context.warnings)) == [f"{opened.path}: is older than its source table; run postmap"]


class TestOperations:
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
        late = Operation(Kind.DELETE, b"a", b"", None, 0)
        late.done.callback(None)
        assert store.execute([late, Operation(Kind.DELETE, b"b", b"", None, 0)]) == [None, True]
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


class TestWalk:
    def test_btree_order(self, tmp_path: Path) -> None:
        """A btree is walked in the order of its keys, as Postfix walks it."""
        keys = [b"a", b"a b", b"a@b", b"ab", b"\xc3\xbc", b"B"]
        opened = Opened(tmp_path / "x.db", "btree", with_nul(*keys))
        assert [key for key, _ in opened.walk()] == sorted(keys)
        opened.table.close()

    def test_changes(self, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
        """Updates and deletions during a walk, also of the entry just had, cost no other entry its turn."""
        monkeypatch.setattr(berkeleydb_tables, "KEYS_AT_ONCE", 10)
        keys = [b"%03d" % number for number in range(100)]
        for key in (b"a", b"b", b"c"):
            opened.delete(key)
        write(opened.path, opened.kind, with_nul(*keys))
        cursor = opened.table.cursor()
        seen = []
        while (entry := opened.next(cursor)) is not None:
            assert entry[1] == b"value of " + entry[0]
            seen.append(entry[0])
            opened.delete(entry[0])
            number = int(entry[0])
            opened.update(b"added %d" % number, b"v")
            opened.delete(b"added %d" % (number - 1))
            if number % 3 == 0:
                opened.delete(b"%03d" % (number + 1))  # the next one
            if entry[0] == b"098":
                break
        assert seen == [key for key in keys if int(key) % 3 != 1][:66]

    def test_deleted_ahead(self, opened: Opened) -> None:
        """A walk through a hash goes on behind keys that it has noted and that are all gone."""
        cursor = opened.table.cursor()
        with patch.object(berkeleydb_tables, "READ_AHEAD", 1):
            assert opened.next(cursor) == (b"a", b"value of a")
            opened.delete(b"b")
            assert opened.next(cursor) == (b"c", b"value of c")
            assert opened.next(cursor) is None

    def test_fails(self, opened: Opened) -> None:
        """A walk fails when the table does, and goes on when it is back."""
        cursor = opened.table.cursor()
        opened.next(cursor)
        opened.update(b"z", b"v")
        away = opened.path.rename(opened.path.with_suffix(".away"))
        with pytest.raises(TemporaryError):
            opened.next(cursor)
        away.rename(opened.path)
        assert opened.next(cursor) == (b"b", b"value of b")

    def test_two_walks(self, opened: Opened) -> None:
        """Two walks at once do not disturb each other."""
        first, second = opened.table.cursor(), opened.table.cursor()
        both = [(opened.next(first), opened.next(second)) for _ in range(4)]
        assert both == [((key, b"value of " + key),) * 2 for key in (b"a", b"b", b"c")] + [(None, None)]


class TestSweep:
    def sweep(self, opened: Opened) -> list[bytes]:
        cursor = sweep(opened.table)
        keys = []
        while (entry := opened.next(cursor)) is not None:
            assert entry[1] == b"value of " + entry[0]
            keys.append(entry[0])
        return keys

    def test_all(self, kind: str, tmp_path: Path) -> None:
        """A sweep through a table that nobody changes gives each entry once, some keys at a time."""
        keys = [b"%d" % number for number in range(2 * READ_AHEAD + 1)]
        opened = Opened(tmp_path / "table.db", kind, with_nul(*keys))
        assert sorted(self.sweep(opened)) == sorted(keys)
        opened.table.close()

    def test_all_deleted(self, tmp_path: Path) -> None:
        """A sweep that deletes all that it comes to comes to everything."""
        keys = [b"%d" % number for number in range(2 * READ_AHEAD + 1)]
        opened = Opened(tmp_path / "table.db", "hash", with_nul(*keys))
        cursor = sweep(opened.table)
        verifyObject(ICursor, cursor)
        while (entry := opened.next(cursor)) is not None:
            opened.delete(entry[0])
        assert opened.walk() == []
        opened.table.close()

    def test_deleted_ahead(self, tmp_path: Path) -> None:
        """What is deleted before its turn does not come; a sweep goes on behind the last key that is left."""
        keys = [b"%d" % number for number in range(2 * READ_AHEAD)]
        opened = Opened(tmp_path / "table.db", "hash", with_nul(*keys))
        order = self.sweep(opened)
        cursor = sweep(opened.table)
        seen = [opened.next(cursor)]
        for key in order[READ_AHEAD - 10 : READ_AHEAD]:
            opened.delete(key)
        while (entry := opened.next(cursor)) is not None:
            seen.append(entry)
        assert [entry[0] for entry in seen if entry] == order[: READ_AHEAD - 10] + order[READ_AHEAD:]
        opened.table.close()

    def test_fails(self, tmp_path: Path) -> None:
        """A sweep fails when the file is gone."""
        opened = Opened(tmp_path / "table.db", "hash", with_nul(b"a"))
        opened.path.unlink()
        with pytest.raises(TemporaryError, match="No such file"):
            opened.next(sweep(opened.table))
        opened.table.close()


class TestLocks:
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
        store.execute([Operation(asked, b"a", b"v", None, 0)])
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
        (value,) = store.execute([Operation(Kind.LOOKUP, b"z", b"", None, 0)])
        assert value == b"value of z"
