from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import pytest
from zope.interface.verify import verifyObject

from socketmap_memcache.errors import TemporaryError
from socketmap_memcache.tables import berkeleydb as berkeleydb_tables
from socketmap_memcache.tables.interface import ICursor, sweep
from socketmap_memcache.tables.store import READ_AHEAD

from .berkeleydb_tests import BerkeleyTests, Opened, with_nul, write


class TestWalk(BerkeleyTests):
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


class TestSweep(BerkeleyTests):
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
