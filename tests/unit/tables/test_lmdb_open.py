from __future__ import annotations

import os
import time
from pathlib import Path
from unittest.mock import patch

from zope.interface.verify import verifyObject

from socketmap_memcache.errors import ConfigurationError
from socketmap_memcache.tables import lmdb_file
from socketmap_memcache.tables.interface import ITable
from socketmap_memcache.tables.lmdb import open_lmdb
from socketmap_memcache.tables.store_table import StoreTable

from .lmdb_tests import PAGE, LmdbTests, context
from .thread_clock import PATIENCE


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
