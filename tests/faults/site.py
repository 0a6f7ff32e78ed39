"""One service, its memcached and its backup, and what is known of all that it should answer."""

from __future__ import annotations

import itertools
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random

from tests.integration.harness.memcached import Memcached
from tests.integration.harness.policy import PolicyClient
from tests.integration.harness.processes import free_port, scratch_directory, wait_until, write_config
from tests.integration.harness.service import Service
from tests.integration.harness.slow_backup import SlowBackup, slow_backup
from tests.integration.harness.socketmap import SocketmapClient

from .network import Network
from .shim import NAME, BrokenHost
from .truth import Keys, Triplet, Verdict

#: Of the .cf files. The time limit of a look-up in memcached is ``max_try * timeout + (max_try - 1) * retry_pause``.
TIMEOUT = 1
BACKUP_TIMEOUT = 1
POLICY_TIMEOUT = 2
TTL = 2

#: Seconds above all limits for what is no fault: the service's own work, and ours.
ALLOWANCE = 0.5

#: memcached counts whole seconds: an entry may live this much longer.
TTL_ROUNDING = 1.0

_FIXED = [b"fixed%d@example.com" % number for number in range(100)]
_ABSENT = [b"absent%d@example.com" % number for number in range(20)]
_CHANGING = [b"changing%d@example.com" % number for number in range(20)]
_CACHED = [b"cached%d@example.com" % number for number in range(20)]

#: Addresses of clients that send mail.
_CLIENTS = 500

_MAIN_CF = """
workers = {workers}
tables = {tables}
policies = greylist
greylist_table = {greylist}
greylist_delay = 1s
greylist_fail_action = WARN no store
policy_timeout = {policy_timeout}s
"""


def value_of(key: bytes) -> bytes:
    """Give the value of a key that never changes."""
    return b"value of " + key


class Writer:
    """The process that changes the table; see :mod:`.writer`."""

    def __init__(self, table: str, environment: dict[str, str] | None) -> None:
        argv = [sys.executable, "-m", "tests.faults.writer", table]
        root = Path(__file__).parents[2]
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd=root, text=True, bufsize=1
        )

    def send(self, key: bytes, value: bytes | None) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{key.decode()} {value.decode()}\n" if value is not None else f"{key.decode()}\n")

    def receive(self) -> tuple[bytes, str]:
        """Give the next key of which the result is known, and the result."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the writer has ended"
        key, _, result = line.rstrip("\n").partition(" ")
        return key.encode(), result

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()


class Site:
    """Made by :func:`site`.

    There are these maps: ``t``, a cache with the backup; ``backup``, that alone; and ``cached``, the cache alone.

    :ivar emptied: whether memcached may have lost what only it has.
    :ivar clock_is_right: whether the service's is.
    :ivar triplets: those under way, of each client of the policy.
    """

    delay = 1.0

    def __init__(self, directory: Path, memcached: Memcached, random: Random) -> None:
        self.directory = directory
        self.memcached = memcached
        self.random = random
        self.service: Service
        self.network: Network | None = None
        self.host: BrokenHost | None = None
        self.slow: SlowBackup | None = None
        self.writer: Writer | None = None
        self.others: list[Memcached] = []
        self.workers = 1
        self.keys = Keys()
        self.changing = _CHANGING
        self.maps = ["t", "t", "t", "cached", "backup"]
        self.emptied = False
        self.clock_is_right = True
        self.triplets: tuple[list[Triplet], ...] = ([], [])
        self._triplet_numbers = itertools.count()
        self._versions = itertools.count()

    @property
    def socketmap(self) -> str:
        return self.service.addresses[0]

    @property
    def policy(self) -> str:
        return self.service.policy_addresses[0]

    def close(self) -> None:
        """End what the context managers of the harness do not."""
        if self.writer is not None:
            self.writer.close()
        for other in self.others:
            other.stop()

    # Questions and answers.

    def question(self, random: Random, count: int) -> tuple[str, list[bytes]]:
        """Give a map, and keys to ask it for."""
        name = random.choice(self.maps)
        if name == "cached":
            return name, random.choices(_CACHED, k=count)
        if name == "slow":
            return name, random.choices(_FIXED, k=count)
        return name, random.choices([*_FIXED, *_ABSENT, *self.changing], k=count)

    def judge(self, name: str, key: bytes, reply: bytes, asked: float, answered: float) -> tuple[Verdict, float]:
        """Judge the reply to a look-up; see :meth:`.truth.Keys.judge`."""
        if reply.startswith((b"TEMP ", b"TIMEOUT ")):
            return Verdict.FAILED, 0.0
        if not reply.startswith((b"OK ", b"NOTFOUND ")):
            return Verdict.WRONG, 0.0
        value = reply[3:] if reply.startswith(b"OK ") else None
        if name in {"cached", "slow"}:
            if value is None and not (self.emptied and name == "cached"):
                return Verdict.MISSING, 0.0
            right = value in {None, b"kept" if name == "slow" else value_of(key)}
            return Verdict.RIGHT if right else Verdict.WRONG, 0.0
        verdict, age = self.keys.judge(key, value, asked, answered)
        if name == "backup" and verdict is Verdict.OLD:
            return Verdict.LOST, age
        return verdict, age

    def change(self, key: bytes, *, delete: bool = False) -> bool:
        """Change a key, and say whether that was acknowledged."""
        assert self.writer is not None
        value = None if delete else b"version %d of %b" % (next(self._versions), key)
        version = self.keys.change(key, value, time.monotonic())
        self.writer.send(key, value)
        changed, result = self.writer.receive()
        assert changed == key
        if result == "ok":
            version.acknowledged = time.monotonic()
        return result == "ok"

    def new_triplet(self) -> Triplet:
        return Triplet(next(self._triplet_numbers))

    def mail(self, triplet: Triplet) -> dict[str, str]:
        """Give the request for a triplet."""
        client = triplet.number % _CLIENTS
        return {
            "protocol_state": "RCPT",
            "client_address": f"10.{client // 250}.{client % 250}.1",
            "client_name": "mx.example.net",
            "sender": "alice@example.net",
            "recipient": f"user{'abcdefghij'[triplet.number % 10]}{triplet.number}@example.com",
        }

    # What is there.

    def fill_cache(self) -> None:
        """Store what only memcached has."""
        self.memcached.set_many({key: value_of(key) for key in _CACHED})

    def processes(self) -> list[int]:
        """Give the process ids of the service."""
        children = Path(f"/proc/{self.service.pid}/task/{self.service.pid}/children").read_text().split()
        return [self.service.pid, *map(int, children)]

    def worker_processes(self) -> list[int]:
        """Give those that serve."""
        return self.processes()[1:] if self.workers > 1 else self.processes()

    def descriptors(self) -> int:
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in self.processes())  # noqa: PTH208 (names are enough)

    def memory(self) -> int:
        """Give the bytes of memory that the service has for itself: without files, such as those of LMDB."""
        return sum(_anonymous(pid) for pid in self.processes())

    def is_well(self) -> bool:
        """Say whether new clients find that memcached, the backup and the greylist all are in use again."""
        return all(self._serves() for _ in range(3 * self.workers))

    def _serves(self) -> bool:
        key = self.random.choice(_FIXED)
        cached = self.random.choice(_CACHED)
        expected = [b"OK " + value_of(key), b"OK " + value_of(key), b"OK " + value_of(cached)]
        try:
            with SocketmapClient(self.socketmap, 5) as client, PolicyClient(self.policy, 5) as policy:
                answers = [client.ask("t", key), client.ask("backup", key), client.ask("cached", cached)]
                return answers == expected and policy.ask(self.mail(self.new_triplet())).startswith(b"DEFER")
        except (OSError, EOFError):
            return False

    def all_workers_serve(self) -> bool:
        return len(self.worker_processes()) == self.workers


def _anonymous(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


@contextmanager
def site(
    random: Random, *, workers: int = 1, network: bool = False, named: bool = False, host: bool = False, sql: bool = False
) -> Iterator[Site]:
    """Start all that is needed.

    :param network: whether memcached is behind a :class:`Network`.
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
            made.slow = stack.enter_context(slow_backup(directory / "slow", 0.0))
        _configure(made, address, sql=sql)
        made.fill_cache()
        stack.enter_context(made.service)
        if workers > 1:
            wait_until(lambda: f"{workers} workers serve" in made.service.log, "all workers serve")
        yield made


def _configure(made: Site, address: str, *, sql: bool) -> None:
    """Write the files, and fill the backup."""
    directory = made.directory
    usual = f"memcache = {address}\ntimeout = {TIMEOUT}\nmax_try = 1\nttl = {TTL}\n"
    cached = write_config(directory / "cached.cf", usual)
    table = directory / "t.cf"
    tables = f"t=memcache:{table} cached=memcache:{cached} "
    greylist = f"memcache:{table}"
    fixed = {key: value_of(key) for key in _FIXED}
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
    query = f"dbpath = {path}\nquery = SELECT value FROM map WHERE key = '%s'\n"
    return f"sqlite:{write_config(made.directory / 'backup.cf', query)}"
