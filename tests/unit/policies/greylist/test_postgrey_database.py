from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from socketmap_memcache.policies.greylist import postgrey_database
from socketmap_memcache.policies.greylist.postgrey_database import PostgreyDatabaseError, is_hashed, opened

bdb: Any = pytest.importorskip("berkeleydb.db")

FLAGS = bdb.DB_CREATE | bdb.DB_INIT_TXN | bdb.DB_INIT_MPOOL | bdb.DB_INIT_LOG | bdb.DB_PRIVATE


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="postgrey-") as name:
        yield Path(name)


def write(directory: Path, name: str = "postgrey.db", **entries: str) -> None:
    """Make a file by itself."""
    database = bdb.DB()
    database.open(str(directory / name), dbtype=bdb.DB_BTREE, flags=bdb.DB_CREATE)
    for key, value in entries.items():
        database.put(key.encode(), value.encode())
    database.close()


class Running:
    """Keeps a database as postgrey does: what it stores is in the log, and not in the file."""

    def __init__(self, directory: Path) -> None:
        self.environment = bdb.DBEnv()
        self.environment.set_flags(bdb.DB_AUTO_COMMIT, 1)
        self.environment.open(str(directory), FLAGS)
        self.database = bdb.DB(self.environment)
        self.database.open("postgrey.db", dbtype=bdb.DB_BTREE, flags=bdb.DB_CREATE)

    def close(self) -> None:
        self.database.close(bdb.DB_NOSYNC)
        self.environment.close()


def test_files(directory: Path) -> None:
    """Both files of a postgrey that does not run are read, in the order of their keys."""
    write(directory, b="3,4,host", a="1,2")
    write(directory, "postgrey_clients.db", c="5,6")
    with opened(directory) as database:
        assert (database.logs, database.log_error) == (0, "")
        assert list(database.triplets()) == [(b"a", b"1,2"), (b"b", b"3,4,host")]
        assert list(database.clients()) == [(b"c", b"5,6")]
    assert sorted(path.name for path in directory.iterdir()) == ["postgrey.db", "postgrey_clients.db"]


def test_running(directory: Path) -> None:
    """What a postgrey that runs has only in its log yet is read too; without auto-whitelisting it has no clients."""
    running = Running(directory)
    try:
        running.database.put(b"a", b"1,2")
        with opened(directory) as database:
            assert (database.logs, database.log_error) == (1, "")
            assert list(database.triplets()) == [(b"a", b"1,2")]
            assert list(database.clients()) == []
    finally:
        running.close()


def test_foreign_log(directory: Path) -> None:
    """With a log that cannot be read, of another Berkeley DB perhaps, there is at least what the files have."""
    write(directory, a="1,2")
    (directory / "log.0000000001").write_bytes(b"junk" * 5000)
    with opened(directory) as database:
        assert database.logs == 1
        assert database.log_error
        assert list(database.triplets()) == [(b"a", b"1,2")]


@pytest.mark.parametrize("content", [b"", b"x" * 9000])
def test_no_database(directory: Path, content: bytes) -> None:
    """A file that is no Berkeley DB's, or damaged, is an error that names it."""
    (directory / "postgrey.db").write_bytes(content)
    with opened(directory) as database, pytest.raises(PostgreyDatabaseError, match="postgrey.db is damaged") as caught:
        list(database.triplets())
    assert "\n" not in str(caught.value)


def test_missing(directory: Path) -> None:
    """A directory without a database is an error that names what is missing."""
    with pytest.raises(PostgreyDatabaseError, match="postgrey.db: No such file or directory"), opened(directory):
        pass


def test_no_library(directory: Path) -> None:
    """Without the package berkeleydb, the error says how to install it."""
    no_library = mock.patch.dict(sys.modules, {"berkeleydb.db": None})
    with no_library, pytest.raises(PostgreyDatabaseError, match="pip install"), opened(directory):
        pass


@pytest.mark.parametrize("log", ["log.0000000001", "log.0000000002"])
def test_log_ends(directory: Path, log: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy is made anew when a log is deleted meanwhile, and not begun without end."""
    write(directory, a="1,2")
    for name in ("log.0000000001", "log.0000000002"):
        (directory / name).touch()
    copied: list[str] = []

    def copy(source: Path, target: Path) -> None:
        shutil.copyfile(source, target / source.name)
        copied.append(source.name)
        if source.name == "log.0000000001":
            (directory / log).unlink(missing_ok=True)

    monkeypatch.setattr(postgrey_database, "_copy_file", copy)
    with opened(directory) as database:
        assert copied.count("postgrey.db") == 2
        assert list(database.triplets()) == [(b"a", b"1,2")]


def test_log_ends_always(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that is another one each time is an error in the end."""
    write(directory, a="1,2")

    def copy(*_: Path) -> None:
        for stale in directory.glob("log.*"):
            stale.unlink()
        numbers.append(1)
        (directory / f"log.{len(numbers)}").touch()

    numbers: list[int] = []
    copy()
    monkeypatch.setattr(postgrey_database, "_copy_file", copy)
    with pytest.raises(PostgreyDatabaseError, match="changes too fast"), opened(directory):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
@pytest.mark.parametrize("owner", [0, 65533])
def test_log_names_other_files(directory: Path, tmp_path: Path, owner: int) -> None:
    """A log that names files elsewhere makes none there that its owner could not make, when root imports it."""
    elsewhere = tmp_path / "elsewhere.db"
    running = Running(directory)
    running.database.put(b"a", b"1,2")
    transaction = running.environment.txn_begin()
    other = bdb.DB(running.environment)
    other.open(str(elsewhere), dbtype=bdb.DB_BTREE, flags=bdb.DB_CREATE, txn=transaction)
    other.put(b"key", b"value", txn=transaction)
    other.close()
    transaction.commit()
    running.close()
    elsewhere.unlink()
    for path in (directory, *directory.iterdir()):
        os.chown(path, owner, owner)
    with opened(directory) as database:
        assert database.log_error
        assert os.geteuid() == os.getegid() == 0
    assert not elsewhere.exists()


@pytest.mark.parametrize("name", ["postgrey.db", "log.0000000001"])
def test_no_regular_file(directory: Path, name: str) -> None:
    """Devices are not copied, nor what a link leads to."""
    write(directory, a="1,2")
    (directory / name).unlink(missing_ok=True)
    (directory / name).symlink_to("/dev/zero")
    with pytest.raises(PostgreyDatabaseError, match=name), opened(directory):
        pass


def test_is_hashed() -> None:
    """A key of --privacy is told from a key in clear."""
    assert is_hashed(b"0123456789abcdef0123456789abcdef01234567")
    assert not is_hashed(b"192.0.2.0/a@example.com/b@example.org")
    assert not is_hashed(b"0123456789abcdef0123456789abcdef01234567\n")
