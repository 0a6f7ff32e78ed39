"""What the tests of hash: and btree: tables have in common: files, and tables over them.

Whoever imports this without the package berkeleydb is skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from zope.interface.verify import verifyObject

from socketmap_memcache.errors import ConfigurationError
from socketmap_memcache.tables.interface import ICursor

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


def open_error(spec: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        StoreReactor().context().open_table(spec)
    return str(caught.value)


class BerkeleyTests:
    """Tests of both kinds of tables, with one that has three entries."""

    @pytest.fixture(params=KINDS)
    def kind(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture
    def opened(self, kind: str, tmp_path: Path) -> Iterator[Opened]:
        made = Opened(tmp_path / "table.db", kind, with_nul(b"a", b"b", b"c"))
        yield made
        made.table.close()
