"""What the tests of lmdb: tables have in common: a file, also as another process sees it, and a store over it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import lmdb
from twisted.trial.unittest import SynchronousTestCase

from socketmap_memcache.tables import lmdb_file
from socketmap_memcache.tables.lmdb import LmdbStore
from socketmap_memcache.tables.registry import TableContext
from socketmap_memcache.tables.store import Kind, Operation

from .thread_clock import ThreadClock

if TYPE_CHECKING:
    from socketmap_memcache.memcache.pool import ClientPool


PAGE = 4096


class Clients:
    def __init__(self) -> None:
        self.reactor = ThreadClock()


def context() -> TableContext:
    return TableContext(clients=cast("ClientPool", Clients()))


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
        (result,) = store.execute([Operation(kind, key, value, ttl)])
        return result

    def lookups(self, store: LmdbStore, keys: Sequence[bytes]) -> list[object]:
        return list(store.execute([Operation(Kind.LOOKUP, key) for key in keys]))

    def walk(self, store: LmdbStore) -> list[tuple[bytes, bytes]]:
        entries = []
        key = b""
        while found := self.do(store, Kind.AFTER, key):
            entries += found
            key = found[-1][0]
        return entries
