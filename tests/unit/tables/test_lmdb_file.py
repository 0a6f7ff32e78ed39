from __future__ import annotations

import errno
import fcntl
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

from socketmap_memcache.errors import PermanentError, TemporaryError
from socketmap_memcache.tables import lmdb_file
from socketmap_memcache.tables.store import Kind, Operation

from .lmdb_tests import PAGE, LmdbTests


class TestGrowth(LmdbTests):
    def test_full(self) -> None:
        """A map that is full grows, as often as needed for one batch, and holds all of it."""
        self.make()
        store = self.open()
        big = b"v" * 100_000
        keys = [b"%d" % number for number in range(100)]
        assert store.execute([Operation(Kind.UPDATE, key, big) for key in keys]) == [True] * 100
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

    def test_moved_aside(self) -> None:
        """So is one that gets the name of the old one, which still is there under another."""
        self.make({b"k\0": b"old\0"})
        store = self.open()
        assert self.lookups(store, [b"k", b"new"]) == [b"old", None]
        self.path.rename(self.path.with_name("old"))
        self.fails(lambda: self.lookups(store, [b"k"]), "No such file")
        self.make({b"new\0": b"v\0"})
        assert self.lookups(store, [b"k", b"new"]) == [None, b"v"]

    def test_other_name(self) -> None:
        """A table whose name is a link to another file from now on goes there, and one with the old name stays."""
        self.make({b"k\0": b"old\0"})
        new, link = self.path.with_name("new"), self.path.with_name("link")
        self.make({b"k\0": b"new\0"}, new)
        link.symlink_to(self.path)
        by_link, by_name = self.open(link), self.open()
        assert by_link._file is by_name._file
        link.unlink()
        link.symlink_to(new)
        assert self.lookups(by_name, [b"k"]) == [b"old"]
        assert self.lookups(by_link, [b"k"]) == [b"new"]

    def test_unreachable(self) -> None:
        """A file that is open stays in use: the service may have given up the privilege to come to it."""
        self.make({b"k\0": b"v\0"})
        store = self.open()
        self.path.rename(self.path.with_name("old"))
        self.path.symlink_to(self.path)
        assert self.lookups(store, [b"k"]) == [b"v"]

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
        results = store.execute([Operation(Kind.LOOKUP, b"k"), Operation(Kind.UPDATE, b"k", b"new")])
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
