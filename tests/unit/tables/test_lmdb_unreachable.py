from __future__ import annotations

import tempfile
from pathlib import Path

import lmdb
from twisted.trial.unittest import SynchronousTestCase

from socketmap_memcache.errors import TemporaryError
from socketmap_memcache.tables.lmdb_file import Transaction, acquire, release


def fail(_: Transaction) -> None:
    raise lmdb.DiskError("the disk is full")


def nothing(_: Transaction) -> None:
    pass


class TestUnreachable(SynchronousTestCase):
    def test_path(self) -> None:
        """A file that cannot be come to by its name any more is a failure that names it, until it can be."""
        directory = tempfile.TemporaryDirectory(prefix="unreachable-")
        self.addCleanup(directory.cleanup)
        path, aside = Path(directory.name) / "map.lmdb", Path(directory.name) / "aside"
        file = acquire(path, create=True)
        self.addCleanup(release, file)
        self.assertRaises(TemporaryError, file.transact, fail, write=True)  # it has to be opened anew
        path.rename(aside)
        path.symlink_to(path)
        with self.assertRaisesRegex(TemporaryError, r"map\.lmdb: .*symbolic links"):
            file.transact(nothing, write=False)
        aside.replace(path)
        file.transact(nothing, write=False)
