from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path

import pytest
from zope.interface.verify import verifyObject

from socketmap_memcache.errors import ConfigurationError
from socketmap_memcache.tables.interface import ITable

from .berkeleydb_tests import BerkeleyTests, Opened, open_error, read, with_nul, write
from .store_reactor import StoreReactor


class TestOpen(BerkeleyTests):
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
