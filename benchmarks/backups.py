"""Look-ups through the service with every type of backup: with an empty cache, and once it is filled."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from benchmarks.load import Load, Result
from benchmarks.rows import Row
from benchmarks.service import InstalledService
from benchmarks.session import Bench
from tests.integration.harness.memcached import Memcached
from tests.integration.harness.postfix import Postfix
from tests.integration.harness.processes import scratch_directory, write_config

CONNECTIONS = 64

_INDEXED = ("lmdb", "hash", "btree", "cdb")


def measure_backups(bench: Bench) -> Iterator[Row]:
    """Measure each type that can be opened here: one pass over the keys after memcached was emptied, then another.

    :return: no rows: there is nothing to compare with.
    :raises RuntimeError: a look-up failed or was not found.
    """
    count = bench.backup_keys
    with scratch_directory() as directory, Memcached(directory) as memcached:
        names = [f"user{number}@example.com" for number in range(count)]
        hosts = [f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}" for number in range(count)]
        for name, keys in (("names", names), ("hosts", hosts)):
            (directory / name).write_text("".join(f"{key}\n" for key in keys))
        postfix = Postfix(directory, {"proxy_read_maps": f"proxy:btree:{directory}/btree"})
        backups = dict(_tables(postfix, directory, names))
        if os.geteuid() == 0:
            backups["proxy"] = f"proxy:btree:{directory}/btree"
            postfix.start()
        try:
            _measure(memcached, postfix, directory, backups, count, bench.report)
        finally:
            postfix.stop()
    yield from ()


def _measure(
    memcached: Memcached,
    postfix: Postfix,
    directory: Path,
    backups: dict[str, str],
    count: int,
    report: Callable[[Result], None],
) -> None:
    tables = []
    for kind, table in backups.items():
        if kind != "proxy" and not _opens(table):
            print(f"{kind}: cannot be opened here, left out")
            continue
        cf = write_config(directory / f"backup-{kind}.cf", f"memcache = {memcached.address}\nbackup = {table}\n")
        tables.append((kind, f"{kind}=memcache:{cf}"))
    proxymap = postfix.proxy_sockets[0]
    config = f"proxymap_socket = {proxymap}\ntables = {' '.join(table for _, table in tables)}\n"
    with InstalledService(directory / "service", config) as service:
        for kind, _ in tables:
            load = Load(directory / ("hosts" if kind == "cidr" else "names"), 0)
            memcached.flush()
            for state in ("cold", "warm"):
                name = f"backup {kind}, {state} cache"
                address = service.addresses[0]
                report(load.run(name, "socketmap", address, CONNECTIONS, service.pid, kind, count))


def _tables(postfix: Postfix, directory: Path, names: list[str]) -> Iterator[tuple[str, str]]:
    """Make a table of each type, with a value for every key."""
    entries = {name: name.replace("@", "@mail.") for name in names}
    text = "".join(f"{key} {value}\n" for key, value in entries.items())
    for kind in _INDEXED:
        path = directory / (f"{kind}-table" if kind == "hash" else kind)
        path.write_text(text)
        if postfix.postmap(f"{kind}:{path}").returncode == 0:
            yield kind, f"{kind}:{path}"
    yield "texthash", f"texthash:{write_config(directory / 'texthash', text)}"
    rule = r"/^(.*)@example\.com$/ $1@mail.example.com"
    yield "regexp", f"regexp:{write_config(directory / 'regexp', rule)}"
    yield "cidr", f"cidr:{write_config(directory / 'cidr', '10.0.0.0/8 ok')}"
    database = directory / "database"
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("CREATE TABLE entries (name TEXT PRIMARY KEY, value TEXT)")
        connection.executemany("INSERT INTO entries VALUES (?, ?)", entries.items())
    query = "query = SELECT value FROM entries WHERE name = '%s'\n"
    yield "sqlite", f"sqlite:{write_config(directory / 'sqlite.cf', f'dbpath = {database}{os.linesep}{query}')}"


def _opens(table: str) -> bool:
    command = [str(Path(sys.executable).with_name("socketmap-memcache")), "map", "-q", "nobody", table]
    return subprocess.run(command, capture_output=True, check=False, timeout=60).stderr == b""
