"""Starts a site: memcached, a backup with something in it, the service, and who changes the table."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from random import Random

from socketmap_memcache.tables.socketmap_client import CONNECTION_LIMIT
from tests.integration.harness.memcached import Memcached
from tests.integration.harness.processes import free_port, scratch_directory, wait_until, write_config
from tests.integration.harness.service import Service
from tests.integration.harness.slow_backup import slow_backup

from .administrator import Writer
from .network import Network
from .shim import NAME, BrokenHost
from .site import BACKUP_TIMEOUT, FIXED, POLICY_TIMEOUT, RETRY_PAUSE, TIMEOUT, TTL, Site, value_of

_MAIN_CF = """
workers = {workers}
tables = {tables}
policies = greylist
greylist_table = {greylist}
greylist_delay = 1s
greylist_fail_action = WARN no store
policy_timeout = {policy_timeout}s
"""


@contextmanager
def site(
    random: Random,
    *,
    workers: int = 1,
    network: bool = False,
    tries: int = 1,
    named: bool = False,
    host: bool = False,
    sql: bool = False,
) -> Iterator[Site]:
    """Start all that is needed.

    :param network: whether memcached is behind a :class:`Network`.
    :param tries: how often memcached is asked.
    :param named: whether memcached is found by a name.
    :param host: whether the service is on a :class:`BrokenHost`; so it is with ``named``.
    :param sql: whether the backup is an SQLite database, and another one is slow; else it is in LMDB.
    """
    with ExitStack() as stack:
        directory = stack.enter_context(scratch_directory())
        memcached = Memcached(directory, place=f"127.0.0.1:{free_port()}" if named else "")
        made = Site(directory, stack.enter_context(memcached), random)
        made.workers = workers
        stack.callback(made.close)
        address = memcached.address
        if network:
            made.network = Network(address, random)
            stack.callback(made.network.close)
            address = made.network.address
        if host or named:
            made.host = BrokenHost(directory)
            stack.callback(made.host.close)
        if named:
            assert made.host is not None
            made.host.resolve("127.0.0.1")
            port = address.rpartition(":")[2]
            address = f"inet:{NAME}:{port}"
            (directory / "other").mkdir()
            made.others.append(Memcached(directory / "other", place=f"127.0.0.2:{port}"))
        if sql:
            made.spare_descriptors = CONNECTION_LIMIT
            made.slow = stack.enter_context(slow_backup(directory / "slow", 0.0))
        _configure(made, address, tries, sql=sql)
        made.fill_cache()
        stack.enter_context(made.service)
        if workers > 1:
            wait_until(lambda: f"{workers} workers serve" in made.service.log, "all workers serve")
        yield made


def _configure(made: Site, address: str, tries: int, *, sql: bool) -> None:
    """Write the files, and fill the backup."""
    directory = made.directory
    usual = f"memcache = {address}\ntimeout = {TIMEOUT}\nmax_try = {tries}\nretry_pause = {RETRY_PAUSE}\nttl = {TTL}\n"
    cached = write_config(directory / "cached.cf", usual)
    table = directory / "t.cf"
    tables = f"t=memcache:{table} cached=memcache:{cached} "
    greylist = f"memcache:{table}"
    fixed = {key: value_of(key) for key in FIXED}
    if sql:
        backup = _fill_sqlite(made, fixed)
        made.maps.append("slow")
        greylist = f"lmdb:{directory}/greylist"
        assert made.slow is not None
        slow = f"key_format = slow:%s\nbackup = {{ {made.slow.table}, timeout={BACKUP_TIMEOUT}s }}\n"
        tables += f"slow=memcache:{write_config(directory / 'slow.cf', usual + slow)} "
    else:
        backup = f"lmdb:{directory}/backup"
    limited = f"{{ {backup}, timeout={BACKUP_TIMEOUT}s }}"
    write_config(table, f"{usual}backup = {limited}\n")
    if not sql:
        _fill_lmdb(made, greylist, fixed)
    config = _MAIN_CF.format(
        workers=made.workers,
        tables=tables + f"backup={limited}",
        greylist=greylist,
        policy_timeout=POLICY_TIMEOUT,
    )
    made.service = Service(
        directory,
        config,
        listen=[f"unix:{directory}/socketmap.sock"],
        policy_listen=[f"unix:{directory}/policy.sock"],
        env=None if made.host is None else made.host.environment,
    )


def _fill_lmdb(made: Site, table: str, fixed: dict[bytes, bytes]) -> None:
    made.writer = Writer(table, None if made.host is None else made.host.environment)
    for key, value in fixed.items():
        made.keys.change(key, value, 0).acknowledged = 0
        made.writer.send(key, value)
    assert {made.writer.receive() for _ in fixed} == {(key, "ok") for key in fixed}


def _fill_sqlite(made: Site, fixed: dict[bytes, bytes]) -> str:
    """Make the database, and give the name of its table."""
    path = made.directory / "backup.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE map (key TEXT PRIMARY KEY, value TEXT)")
        database.executemany("INSERT INTO map VALUES (?, ?)", [(k.decode(), v.decode()) for k, v in fixed.items()])
    database.close()
    for key, value in fixed.items():
        made.keys.change(key, value, 0).acknowledged = 0
    query = f"dbpath = {path}\nquery = SELECT value FROM map WHERE key = '%s'\n"  # noqa: S608 (a map, in its own file)
    return f"sqlite:{write_config(made.directory / 'backup.cf', query)}"
