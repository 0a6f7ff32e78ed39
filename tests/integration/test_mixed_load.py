"""Memcached and the backup die and come back under a mixed load; afterwards, everything is counted."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred, DeferredList, inlineCallbacks
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from socketmap_memcache.errors import TableError
from socketmap_memcache.memcache.pool import ClientPool
from socketmap_memcache.tables.interface import ITable
from socketmap_memcache.tables.registry import TableContext

from .harness.memcached import Memcached
from .harness.postfix import Postfix, needs_root
from .harness.processes import scratch_directory, write_config

reactor: Any = global_reactor

#: Seconds of load, and how many users put it on.
DURATION = 6.0
USERS = 8
KEYS = 40


def children(parent: int, name: str) -> list[int]:
    """Return the children of a process that have a name."""
    pids = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(pid) for pid in pids if Path(f"/proc/{pid}/comm").read_text().strip() == name]


class Load:
    """Users who update and look up keys, and remember what they were told.

    Each key has one user who updates it, with numbers that grow: so what a look-up may answer is known.
    """

    def __init__(self, table: ITable, random: Random) -> None:
        self.table = table
        self.random = random
        self.acknowledged: dict[bytes, int] = {}
        self.sent: dict[bytes, int] = {}
        self.wrong: list[str] = []
        self.reasons: set[str] = set()
        self.counts = {"updated": 0, "found": 0, "failed": 0}
        self.end = reactor.seconds() + DURATION

    @inlineCallbacks
    def user(self, number: int) -> Generator[Deferred[Any], Any, None]:
        """Work until the end."""
        mine = [b"user%d-%d@example.com" % (number, key) for key in range(KEYS)]
        turn = 0
        while reactor.seconds() < self.end:
            turn += 1
            key = self.random.choice(mine)
            try:
                if self.random.random() < 0.3:
                    self.sent[key] = turn
                    stored = yield self.table.update(key, b"%d" % turn)
                    assert stored
                    self.acknowledged[key] = turn
                    self.counts["updated"] += 1
                else:
                    known = self.acknowledged.get(key)
                    value = yield self.table.lookup(key)
                    if value is None and known is not None:
                        self.wrong.append(f"{key!r} was not found after update {known}")
                    self.counts["found"] += value is not None
            except TableError as error:
                self.counts["failed"] += 1
                self.reasons.add(str(error))
                yield deferLater(reactor, 0.02, lambda: None)

    def missing(self, stored: dict[bytes, bytes]) -> list[str]:
        """Say which acknowledged updates are not in a store, nor a later one."""
        return [
            f"{key!r}: {stored.get(key)!r} instead of {turn} or later"
            for key, turn in self.acknowledged.items()
            if not turn <= int(stored.get(key, b"-1")) <= self.sent[key]
        ]


class MixedLoad(TestCase):
    """The table is ``memcache:`` with a persistent backup, and is used as the service uses it."""

    timeout = 60

    def setUp(self) -> None:
        self.stack = ExitStack()
        self.addCleanup(self.stack.close)
        self.directory = self.stack.enter_context(scratch_directory())
        self.memcached = Memcached(self.directory).start()
        self.stack.callback(self.memcached.stop)
        seed = Random().randrange(10**6)
        print(f"seed {seed}")
        self.random = Random(seed)

    @inlineCallbacks
    def run_load(self, backup: str, disturb: Any, private: Path | None = None) -> Generator[Deferred[Any], Any, Load]:
        """Put load on a table, disturb it, and close it."""
        cf = write_config(
            self.directory / "t.cf",
            f"memcache = {self.memcached.address}\nbackup = {backup}\nttl = 2\ntimeout = 1\nmax_try = 1\n",
        )
        context = TableContext(ClientPool(reactor))
        if private is not None:
            context.proxymap_socket, context.proxywrite_socket = f"{private}/proxymap", f"{private}/proxywrite"
        table = context.open_table(f"memcache:{cf}")
        load = Load(table, self.random)
        users = [load.user(number) for number in range(USERS)]
        for moment in (0.2, 0.35, 0.5, 0.65, 0.8):
            reactor.callLater(DURATION * moment, disturb)
        for result, failure in (yield DeferredList(users, consumeErrors=True)):
            self.assertTrue(result, failure)
        table.close()
        yield deferLater(reactor, 0.2, lambda: None)
        print(load.counts, load.reasons)
        assert load.wrong == []
        assert min(load.counts["updated"], load.counts["found"]) > 100
        return load

    def disturb_memcached(self) -> None:
        """Kill it and start it again, with nothing in it."""
        self.memcached.kill()
        reactor.callLater(0.3, self.memcached.start)

    @inlineCallbacks
    def test_lmdb(self) -> Generator[Deferred[Any], Any, None]:
        """Nothing acknowledged is missing from an lmdb: backup, and no key that exists is answered "not found"."""
        postfix = Postfix(self.directory)
        path = self.directory / "backup"
        path.write_text("")
        assert postfix.postmap(f"lmdb:{path}").returncode == 0
        load = yield self.run_load(f"lmdb:{path}", self.disturb_memcached)
        assert load.missing(self.dump(postfix, f"lmdb:{path}")) == []

    @needs_root
    @inlineCallbacks
    def test_proxy(self) -> Generator[Deferred[Any], Any, None]:
        """Nor from a backup behind Postfix's proxywrite, which is killed as often as memcached."""
        path = self.directory / "backup"
        path.write_text("")
        postfix = Postfix(self.directory, {"proxy_write_maps": f"proxy:lmdb:{path}"})
        assert postfix.postmap(f"lmdb:{path}").returncode == 0
        shutil.chown(f"{path}.lmdb", "postfix")
        self.stack.enter_context(postfix)
        private = Path(postfix.postconf("-h", "queue_directory")) / "private"

        def disturb() -> None:
            self.disturb_memcached()
            for pid in children(postfix.pid, "proxymap"):
                os.kill(pid, signal.SIGKILL)

        load = yield self.run_load(f"proxy:lmdb:{path}", disturb, private)
        assert load.missing(self.dump(postfix, f"lmdb:{path}")) == []

    def dump(self, postfix: Postfix, table: str) -> dict[bytes, bytes]:
        """Read all of a table with Postfix's own tools."""
        lines = postfix.postmap("-s", table).stdout.splitlines()
        return dict(line.split(b"\t", 1) for line in lines)
