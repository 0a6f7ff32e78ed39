"""A table whose store hangs, in a running service beside others: it times out, alone, and comes back."""

from __future__ import annotations

import fcntl
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import pytest

from .harness.postfix import Postfix
from .harness.processes import scratch_directory, wait_until, write_config
from .harness.service import Service
from .harness.socketmap import SocketmapClient, ask

TIMEOUT = 1.0

#: Seconds until all other tables have answered, while one hangs: far from the time limit, and long for a busy machine.
LONGEST_ANSWER = 0.5

KINDS = ("lmdb", "btree", "hash", "sqlite")


@contextmanager
def locked(path: Path, lock: Callable[[int, int], object]) -> Iterator[None]:
    with path.open("r+b") as file:
        lock(file.fileno(), fcntl.LOCK_EX)
        yield


@contextmanager
def written(path: Path) -> Iterator[None]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield


def hold(folder: Path, kind: str) -> AbstractContextManager[None]:
    """Lock a table as another program does that changes it and never comes to an end."""
    if kind == "sqlite":
        return written(folder / "sqlite.db")
    return locked(
        folder / f"{kind}.{'lmdb' if kind == 'lmdb' else 'db'}", fcntl.lockf if kind == "lmdb" else fcntl.flock
    )


@pytest.fixture(scope="module")
def site() -> Iterator[tuple[Path, Service]]:
    with scratch_directory() as folder:
        postfix = Postfix(folder)
        files = {kind: f"{kind}:{folder / kind}" for kind in KINDS[:3]}
        for table in [*files.values(), f"lmdb:{folder}/other"]:
            Path(table.partition(":")[2]).write_text("key value\n")
            assert postfix.postmap(table).returncode == 0
        with closing(sqlite3.connect(folder / "sqlite.db")) as database, database:
            database.execute("CREATE TABLE t (k, v)")
            database.execute("INSERT INTO t VALUES ('key', 'value')")
        query = f"dbpath = {folder}/sqlite.db\nquery = SELECT v FROM t WHERE k = '%s'\n"  # noqa: S608
        files["sqlite"] = f"sqlite:{write_config(folder / 'sqlite.cf', query)}"
        tables = "".join(f"    {kind}={{ {table}, timeout=1s }}\n" for kind, table in files.items())
        tables += f"    inline=inline:{{key=value}}\n    other=lmdb:{folder}/other\n"
        with Service(folder, f"tables =\n{tables}") as service:
            yield folder, service


@pytest.mark.parametrize("kind", KINDS)
def test_hanging(site: tuple[Path, Service], kind: str) -> None:
    """It answers TIMEOUT after its own time limit, again and again; all other tables answer fast meanwhile."""
    folder, service = site
    address = service.addresses[0]
    others = [*(other for other in KINDS if other != kind), "inline", "other"]
    assert [ask(address, name) for name in (kind, *others)] == [b"OK value"] * 6
    with hold(folder, kind):
        for _ in range(2):
            started = time.monotonic()
            longest = 0.0
            with SocketmapClient(address) as hanging, SocketmapClient(address) as client:
                hanging.send(kind, b"key")
                while (asked := time.monotonic()) < started + TIMEOUT * 0.8:
                    for name in others:
                        assert client.ask(name, b"key") == b"OK value"
                    longest = max(longest, time.monotonic() - asked)
                reply = hanging.receive()
            took = time.monotonic() - started
            assert reply.startswith(b"TIMEOUT "), reply
            assert TIMEOUT <= took + 0.01 < TIMEOUT * 2
            assert longest < LONGEST_ANSWER
    wait_until(lambda: ask(address, kind) == b"OK value", "the table answers again")
    assert ask(address, kind, b"none") == b"NOTFOUND "
