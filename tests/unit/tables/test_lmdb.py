from __future__ import annotations

import errno
import fcntl
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import patch

import lmdb
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from socketmap_memcache.errors import ConfigurationError, PermanentError, TemporaryError
from socketmap_memcache.tables import lmdb as lmdb_module
from socketmap_memcache.tables import lmdb_file
from socketmap_memcache.tables.interface import ITable, RefusedError
from socketmap_memcache.tables.lmdb import LmdbStore, has_ended, open_lmdb, pack
from socketmap_memcache.tables.registry import TableContext
from socketmap_memcache.tables.store import Halfway, Kind, Operation, StoreTable

from .store_reactor import StoreReactor
from .thread_clock import PATIENCE, ThreadClock

if TYPE_CHECKING:
    from socketmap_memcache.memcache.pool import ClientPool

PAGE = 4096


class Clients:
    def __init__(self) -> None:
        self.reactor = ThreadClock()


def context() -> TableContext:
    return TableContext(clients=cast("ClientPool", Clients()))


def operation(kind: Kind, key: bytes, value: bytes = b"", ttl: int | None = None) -> Operation:
    return Operation(kind, key, value, ttl, 0)


class LmdbTests(SynchronousTestCase):
    def setUp(self) -> None:
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name) / "table"
        self.now = 1_000_000.0

    def make(self, content: dict[bytes, bytes] | None = None, path: Path | None = None) -> None:
        """Write a file, with what is given as it is, like another process."""
        environment = lmdb.open(str(path or self.path), subdir=False, lock=False, map_size=2**20)
        with environment, environment.begin(write=True) as transaction:
            for key, value in (content or {}).items():
                transaction.put(key, value)

    def content(self) -> dict[bytes, bytes]:
        """Read a file that is not open, as it is."""
        assert not lmdb_file._files
        environment = lmdb.open(str(self.path), subdir=False, lock=False, readonly=True)
        with environment, environment.begin() as transaction:
            return {bytes(key): bytes(value) for key, value in transaction.cursor()}

    def open(self, path: Path | None = None) -> LmdbStore:
        store = LmdbStore("lmdb:x", path or self.path, clock=lambda: self.now)
        self.addCleanup(store.close)
        return store

    def do(self, store: LmdbStore, kind: Kind, key: bytes, value: bytes = b"", ttl: int | None = None) -> Any:
        (result,) = store.execute([operation(kind, key, value, ttl)])
        return result

    def lookups(self, store: LmdbStore, keys: Sequence[bytes]) -> list[object]:
        return list(store.execute([operation(Kind.LOOKUP, key) for key in keys]))

    def walk(self, store: LmdbStore) -> list[tuple[bytes, bytes]]:
        entries = []
        key = b""
        while found := self.do(store, Kind.AFTER, key):
            entries += found
            key = found[-1][0]
        return entries


class TestOpen(LmdbTests):
    def name(self) -> str:
        return str(self.path)

    def errors(self, **options: bool) -> str:
        caught = self.assertRaises(ConfigurationError, open_lmdb, self.name(), context(), **options)
        assert not lmdb_file._files
        (problem,) = caught.problems
        return str(problem)

    def test_table(self) -> None:
        """The table lmdb:/path is the file /path.lmdb, and folds its keys."""
        opened = context()
        table = open_lmdb(self.name(), opened, create=True)
        verifyObject(ITable, table)
        assert isinstance(table, StoreTable)
        assert table.name == f"lmdb:{self.path}"
        answer = table.update(b"Key", b"value")
        opened.reactor.wait(answer)
        table.close()
        self.path = self.path.with_suffix(".lmdb")
        assert table._thread is not None
        table._thread.join(PATIENCE)
        assert self.content() == {b"key\0": b"value\0"}

    def test_registered(self) -> None:
        """The registry opens it by its type."""
        self.make(path=self.path.with_suffix(".lmdb"))
        context().open_table(f"lmdb:{self.path}").close()
        assert not lmdb_file._files

    def test_no_name(self) -> None:
        """The name must not be empty."""
        caught = self.assertRaises(ConfigurationError, open_lmdb, "", context())
        assert str(caught) == "lmdb: needs the path of a file, without .lmdb"

    def test_missing(self) -> None:
        """A file that does not exist is an error that says how to make one, and is not made."""
        name = self.name()
        text = self.errors()
        assert text == f"{name}.lmdb: cannot be opened: No such file or directory (make it with: postmap lmdb:{name})"
        assert not self.path.with_suffix(".lmdb").exists()

    def test_create(self) -> None:
        """A table of the service's own is made where there is none, and nothing else is left; an old one stays."""
        open_lmdb(self.name(), context(), create=True).close()
        made = self.path.with_suffix(".lmdb")
        assert [item.name for item in made.parent.glob(f"*{self.path.name}*")] == [made.name]
        assert made.stat().st_mode & 0o777 == 0o640
        inode = made.stat().st_ino
        open_lmdb(self.name(), context(), create=True).close()
        assert made.stat().st_ino == inode

    def test_create_together(self) -> None:
        """Where another process makes the file at the same moment, its file is used."""
        made = self.path.with_suffix(".lmdb")
        self.make({b"k\0": b"v\0"}, made)
        with patch.object(Path, "exists", return_value=False):
            open_lmdb(self.name(), context(), create=True).close()
        self.path = made
        assert self.content() == {b"k\0": b"v\0"}

    def test_create_nowhere(self) -> None:
        """A file that cannot be made is an error that names it."""
        self.path /= "missing"
        reason = "cannot be opened: No such file or directory (its directory does not exist)"
        assert f"{self.path}.lmdb: {reason}" in self.errors(create=True)

    def test_not_lmdb(self) -> None:
        """An empty file, a text, a directory, and a file that has lost its end are errors, and stay as they are."""
        path = self.path.with_suffix(".lmdb")
        self.make({b"%d\0" % number: bytes(100) for number in range(1000)}, path)
        whole = path.read_bytes()
        for damaged, reason in {
            b"": "the file is empty",
            b"key value\n" * PAGE: "",
            whole[:100]: "",
            whole[:PAGE]: "",
            whole[: 2 * PAGE]: "the file has lost its end",
            whole[: len(whole) // 2]: "the file has lost its end",
        }.items():
            path.write_bytes(damaged)
            text = self.errors()
            assert text.startswith(f"{path}: is not a usable lmdb: file: ")
            assert reason in text
            assert path.read_bytes() == damaged
        path.unlink()
        path.mkdir()
        assert "Is a directory" in self.errors()

    def test_age(self) -> None:
        """A source that is newer than the table is a warning."""
        self.make(path=self.path.with_suffix(".lmdb"))
        self.path.write_text("key value\n")
        now = time.time()
        os.utime(self.path, (now - 1000, now - 1000))
        os.utime(self.path.with_suffix(".lmdb"), (now - 2000, now - 2000))
        opened = context()
        open_lmdb(self.name(), opened).close()
        assert "is older than its source" in str(opened.warnings[0])

    def test_shared(self) -> None:
        """Tables of the same file share one opening, whatever its name, until the last of them is closed."""
        self.make({b"k\0": b"v\0"})
        link = self.path.with_name(f"{self.path.name}-link")
        link.symlink_to(self.path)
        first, second = self.open(), self.open(link)
        assert first._file is second._file
        first.close()
        first.close()
        assert self.lookups(second, [b"k"]) == [b"v"]
        second.close()
        assert not lmdb_file._files


class TestForms(LmdbTests):
    def test_both_read(self) -> None:
        """Keys with and without a NUL are found; of both the one with it counts. Values end at their first NUL."""
        self.make({b"a\0": b"1\0", b"b": b"2", b"c": b"3", b"c\0": b"4\0", b"d\0": b"5", b"e\0": b"6\0rest", b"f": b""})
        store = self.open()
        expected = {b"a": b"1", b"b": b"2", b"c": b"4", b"d": b"5", b"e": b"6", b"f": b"", b"g": None}
        assert self.lookups(store, [*expected]) == [*expected.values()]

    def test_form_kept(self) -> None:
        """An update takes the form that the file has; in an empty file, keys and values end in a NUL."""
        for first, stored in ({}, (b"k\0", b"v\0")), ({b"a\0": b"1\0"}, (b"k\0", b"v\0")), ({b"a": b"1"}, (b"k", b"v")):
            self.path.unlink(missing_ok=True)
            self.make(first)
            store = self.open()
            assert self.do(store, Kind.UPDATE, b"k", b"v") is True
            store.close()
            assert self.content() == {**first, stored[0]: stored[1]}

    def test_other_form_replaced(self) -> None:
        """In a file with both forms an update leaves one, and a deletion none."""
        self.make({b"a\0": b"1\0", b"k": b"2", b"l\0": b"3\0", b"l": b"4"})
        store = self.open()
        assert self.do(store, Kind.UPDATE, b"k", b"new") is True
        assert self.do(store, Kind.DELETE, b"l") is True
        assert self.do(store, Kind.DELETE, b"l") is False
        store.close()
        assert self.content() == {b"a\0": b"1\0", b"k\0": b"new\0"}

    def test_long_keys(self) -> None:
        """A key that LMDB cannot have is missing, and refused in an update; the rest of the batch is done."""
        for content, limit in (({}, 510), ({b"a": b"1"}, 511)):
            self.path.unlink(missing_ok=True)
            self.make(content)
            store = self.open()
            long, longest, too_long = b"k" * 510, b"k" * limit, b"k" * (limit + 1)
            results = store.execute([operation(Kind.UPDATE, key, b"v") for key in (long, longest, too_long)])
            assert results[:2] == [True, True]
            assert isinstance(results[2], RefusedError)
            assert f"lmdb:x: a key of {limit + 1} bytes" in str(results[2])
            assert self.lookups(store, [longest, too_long, b"k" * 10_000]) == [b"v", None, None]
            assert self.do(store, Kind.DELETE, b"k" * 10_000) is False
            assert self.walk(store)[-1] == (longest, b"v")
            store.close()

    def test_walk(self) -> None:
        """A walk comes by each key once, in the order of their bytes, and by no key that is empty."""
        keys = [b"a", b"a\x01", b"ab", b"b", "\u00fc".encode()]
        self.make({key + b"\0": b"v\0" for key in keys} | {b"a": b"v", b"\0": b"v\0", b"c\0c\0": b"v\0"})
        assert self.walk(self.open()) == [(key, b"v") for key in sorted([*keys, b"c"])]


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
            walks = [operation(Kind.AFTER, b""), operation(Kind.AFTER, b"")]
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


class TestBatches(LmdbTests):
    def test_order(self) -> None:
        """Operations of one batch are done in their order, in one transaction."""
        self.make({b"k\0": b"1\0"})
        store = self.open()
        with patch.object(store._file, "transact", wraps=store._file.transact) as transact:
            results = store.execute(
                [
                    operation(Kind.LOOKUP, b"k"),
                    operation(Kind.UPDATE, b"k", b"2"),
                    operation(Kind.LOOKUP, b"k"),
                    operation(Kind.DELETE, b"k"),
                    operation(Kind.AFTER, b""),
                ]
            )
        assert results == [b"1", True, b"2", True, []]
        assert transact.call_count == 1

    def test_given_up(self) -> None:
        """What was given up while the store waited for the lock is not done."""
        self.make()
        store = self.open()
        update, other = operation(Kind.UPDATE, b"k", b"v"), operation(Kind.UPDATE, b"l", b"v")
        update.done.callback(None)
        store.execute([update, other])
        assert self.walk(store) == [(b"l", b"v")]

    def test_failed_write(self) -> None:
        """Where a change fails, the look-ups of the batch get what the file has, and the next batch works."""
        self.make({b"k\0": b"old\0"})
        store = self.open()
        batch = [operation(Kind.UPDATE, b"k", b"new"), operation(Kind.LOOKUP, b"k"), operation(Kind.DELETE, b"l")]
        # Python objects of LMDB's cannot be patched, but LMDB refuses an empty key.
        with (
            patch.object(lmdb_module, "_usual_form", return_value=b""),
            patch.object(
                lmdb_module, "_stored_forms", side_effect=lambda key: [b""] if key == b"l" else [key + b"\0", key]
            ),
        ):
            results = store.execute(batch)
        assert isinstance(results[0], TemporaryError)
        assert results[1] == b"old"
        assert results[2] is results[0]
        assert str(self.path) in str(results[0])
        assert store.execute(batch) == [True, b"new", False]

    def test_failed_write_alone(self) -> None:
        """Where a change fails and there is nothing else in the batch, nothing else is asked of the file."""
        self.make()
        store = self.open()
        store._file.writable = False
        assert isinstance(self.do(store, Kind.UPDATE, b"k", b"v"), PermanentError)


class TestGrowth(LmdbTests):
    def test_full(self) -> None:
        """A map that is full grows, as often as needed for one batch, and holds all of it."""
        self.make()
        store = self.open()
        big = b"v" * 100_000
        keys = [b"%d" % number for number in range(100)]
        assert store.execute([operation(Kind.UPDATE, key, big) for key in keys]) == [True] * 100
        assert self.lookups(store, keys) == [big] * 100

    def test_grown_by_another(self) -> None:
        """A map that another process made larger is read and written at its new size."""
        self.make({b"k\0": b"v\0"})
        store = self.open()
        script = (
            "import lmdb, sys\n"
            "with lmdb.open(sys.argv[1], subdir=False, lock=False, map_size=2**23) as environment:\n"
            "    with environment.begin(write=True) as transaction:\n"
            "        transaction.put(b'big\\0', b'v' * 2**22)\n"
        )
        subprocess.run([sys.executable, "-c", script, self.path], check=True, timeout=60)
        assert self.lookups(store, [b"k", b"big"]) == [b"v", b"v" * 2**22]
        assert self.do(store, Kind.UPDATE, b"k", b"new") is True
        assert self.lookups(store, [b"k"]) == [b"new"]


class TestChangedFile(LmdbTests):
    def fails(self, call: Callable[[], object], text: str) -> None:
        error = self.assertRaises(TemporaryError, call)
        assert re.search(text, str(error)), str(error)

    def test_replaced(self) -> None:
        """A file that takes the place of the old one is read and written by all tables; the old one is closed."""
        self.make({b"k\0": b"old\0"})
        first, second = self.open(), self.open()
        new = self.path.with_name(f"{self.path.name}-new")
        self.make({b"k\0": b"new\0"}, new)
        new.replace(self.path)
        assert self.lookups(first, [b"k"]) == [b"new"]
        assert self.do(second, Kind.UPDATE, b"k", b"newer") is True
        assert self.lookups(first, [b"k"]) == [b"newer"]
        assert first._file is second._file
        assert len(lmdb_file._files) == 1
        first.close()
        second.close()
        assert self.content() == {b"k\0": b"newer\0"}

    def test_removed(self) -> None:
        """While there is no file everything fails; when there is one again, it is used."""
        self.make({b"k\0": b"v\0"})
        store = self.open()
        self.path.unlink()
        for _ in range(2):
            self.fails(lambda: self.lookups(store, [b"k"]), "No such file")
        assert not lmdb_file._files
        self.make({b"k\0": b"again\0"})
        assert self.lookups(store, [b"k"]) == [b"again"]
        self.path.unlink()
        self.fails(lambda: self.lookups(store, [b"k"]), "No such file")
        store.close()

    def test_replaced_again(self) -> None:
        """A file that is replaced as often as it is opened is a temporary failure."""
        self.make()
        store = self.open()
        with patch.object(lmdb_file.LmdbFile, "transact", side_effect=lmdb_file.ReplacedError):
            self.fails(lambda: self.lookups(store, [b"k"]), "is being replaced")

    def test_smaller(self) -> None:
        """A file that was cut off fails, and does not kill the process; written anew, it is read again."""
        self.make({b"%d\0" % number: bytes(100) for number in range(1000)})
        whole = self.path.read_bytes()
        store = self.open()
        with self.path.open("r+b") as file:
            file.truncate(3 * PAGE)
        self.fails(lambda: self.lookups(store, [b"1"]), "has become smaller")
        self.fails(lambda: self.lookups(store, [b"1"]), "has lost its end")
        with self.path.open("r+b") as file:
            file.write(whole)
        assert self.lookups(store, [b"1", b"1000"]) == [b"", None]

    def test_read_only(self) -> None:
        """A file that may only be read is read; a change is refused with its name."""
        self.make({b"k\0": b"v\0"})
        real_open = os.open

        def open_file(path: Path, flags: int) -> int:
            if flags & os.O_RDWR:
                raise PermissionError(errno.EACCES, "Permission denied")
            return real_open(path, flags)

        with patch.object(os, "open", open_file):
            store = self.open()
        results = store.execute([operation(Kind.LOOKUP, b"k"), operation(Kind.UPDATE, b"k", b"new")])
        assert results[0] == b"v"
        assert isinstance(results[1], PermanentError)
        assert str(results[1]) == f"{self.path}: this service has no permission to write to it"


class TestLocks(LmdbTests):
    def test_kinds(self) -> None:
        """Whoever reads has a shared lock, whoever writes an exclusive one; each is given back."""
        self.make()
        store = self.open()
        real_lockf = fcntl.lockf
        with patch.object(fcntl, "lockf", side_effect=real_lockf) as lockf:
            self.do(store, Kind.LOOKUP, b"k")
            self.do(store, Kind.UPDATE, b"k", b"v")
        kinds = [call.args[1] for call in lockf.call_args_list]
        assert kinds == [fcntl.LOCK_SH, fcntl.LOCK_UN, fcntl.LOCK_EX, fcntl.LOCK_UN]

    def test_deadlock(self) -> None:
        """What the kernel takes for a deadlock is tried again."""
        self.make({b"k\0": b"v\0"})
        store = self.open()
        answers = [OSError(errno.EDEADLK, "Resource deadlock avoided")] * 2 + [None, None]
        with (
            patch.object(fcntl, "lockf", side_effect=answers),
            patch.object(time, "sleep") as sleep,
        ):
            assert self.lookups(store, [b"k"]) == [b"v"]
        assert sleep.call_count == 2

    def test_no_locks(self) -> None:
        """A file that cannot be locked is not touched."""
        self.make({b"k\0": b"v\0"})
        store = self.open()
        error = OSError(errno.ENOLCK, "No locks available")
        with patch.object(fcntl, "lockf", side_effect=error):
            caught = self.assertRaises(TemporaryError, self.lookups, store, [b"k"])
        assert str(caught) == f"{self.path}: cannot be locked: No locks available"
        assert self.lookups(store, [b"k"]) == [b"v"]
