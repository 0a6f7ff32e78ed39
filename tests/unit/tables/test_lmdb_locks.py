from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import lmdb
from twisted.trial.unittest import TestCase

from socketmap_memcache.errors import ConfigurationError, TemporaryError
from socketmap_memcache.tables.lmdb_file import LmdbFile, ReplacedError, Transaction, acquire, release

_TRY = """
import fcntl, sys
with open(sys.argv[1], "rb+") as file:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        print("locked")
"""


def is_locked(path: Path) -> bool:
    """Say whether another process has to wait for the file."""
    done = subprocess.run([sys.executable, "-c", _TRY, str(path)], capture_output=True, check=True, timeout=20)
    return done.stdout == b"locked\n"


def fail(_: Transaction) -> None:
    raise lmdb.DiskError("the disk is full")


class Locks(TestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory(prefix="locks-")
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name) / "map.lmdb"
        self.file = acquire(self.path, create=True)
        self.addCleanup(release, self.file)

    def put(self, transaction: Transaction) -> bool:
        transaction.put(b"key", b"value")
        return is_locked(self.path)

    def test_write(self) -> None:
        """Who writes keeps all others out."""
        assert self.file.transact(self.put, write=True)
        assert not is_locked(self.path)

    def test_after_failure(self) -> None:
        """So does who writes next after a failure, for which LMDB opens the file again."""
        with self.assertRaisesRegex(TemporaryError, "the disk is full"):
            self.file.transact(fail, write=True)
        assert not is_locked(self.path)
        assert self.file.transact(self.put, write=True)
        assert not is_locked(self.path)

    def test_replaced(self) -> None:
        """After a failure, what has taken the place of the file is not taken for it."""
        with self.assertRaisesRegex(TemporaryError, "the disk is full"):
            self.file.transact(fail, write=True)
        self.path.rename(self.path.with_name("old"))
        other = acquire(self.path, create=True)
        self.addCleanup(release, other)
        with self.assertRaises(ReplacedError):
            self.file.transact(self.put, write=True)

    def test_gone(self) -> None:
        """Nor is anything, where the file has no such name any more."""
        with self.assertRaisesRegex(TemporaryError, "the disk is full"):
            self.file.transact(fail, write=True)
        self.path.rename(self.path.with_name("old"))
        with self.assertRaises(ReplacedError):
            self.file.transact(self.put, write=False)

    def test_replaced_at_opening(self) -> None:
        """A file that is replaced just while it is opened is not opened."""

        def identity(_: LmdbFile) -> None:
            raise ReplacedError

        self.patch(LmdbFile, "_check_identity", identity)
        new = self.path.with_name("new.lmdb")
        self.path.rename(new)
        with self.assertRaisesRegex(ConfigurationError, "is being replaced"):
            acquire(self.path, create=True)
