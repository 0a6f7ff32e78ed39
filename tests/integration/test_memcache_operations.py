"""All operations of ``memcache:`` tables with a persistent backup, against Postfix's own ``memcache:``.

Postfix's is driven through its own proxywrite, by this project's ``proxy:`` client. Each side has its own backup file,
and its own keys in the same memcached, which is stopped, started again, and emptied in the middle.

All that the two do is compared, with one known difference: a walk through a cache without a backup. There Postfix says
"no more entries" and logs a warning, and ours fails with an error that says so; each such pair is checked.

Not generated, as this project's client, on both sides, sends none of it to a proxywrite: keys that are empty or not
UTF-8, and values with a NUL, a newline or what is not UTF-8. Not looked for in memcached at the end: keys with blanks
and those of more than 250 bytes, for memcached cannot have them.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from socketmap_memcache.errors import TableError
from socketmap_memcache.memcache.interface import Limits
from socketmap_memcache.memcache.pool import ClientPool
from socketmap_memcache.memcache.server import Server
from socketmap_memcache.tables.interface import ITable, NoBackupError
from socketmap_memcache.tables.registry import TableContext

from .harness.memcached import Memcached
from .harness.postfix import Postfix, needs_root
from .harness.processes import PATIENCE, scratch_directory, wait_until, write_config

Steps = Generator[Deferred[Any], Any, None]

#: Of each table.
OPERATIONS = 400

KEYS = [
    *(f"user{number}@example.com" for number in range(8)),
    *("User1@Example.COM", "user1+ext@example.com", "@example.com", "user", "a@b@example.com", "user@", "example.com"),
    *("user@other.example", "user@sub.example.com", "\u00dcser@b\u00fccher.example", "STRASSE@x.y", "stra\u00dfe@x.y"),
    *("with blank@example.com", "tab\t@example.com", '"quoted"@example.com', "%s@%d", "k" * 260 + "@example.com"),
]
VALUES = ["value", "", "a, b", "w\u00e4rt", "x" * 90, "y" * 120, "# no comment", "$1 %s", " blanks ", "z" * 3000]

_NO_BACKUP = "first/next support requires backup database"

#: What the two sides' files have beside ``memcache``, ``key_format`` and ``backup``.
SETTINGS = {
    "plain": "",
    "short": "data_size_limit = 100\nttl = 60\nflags = 7\n",
    "domain": "domain = example.com, sub.example.com\n",
}


class Side:
    """Postfix's table or ours, with the prefix of its keys in memcached and the name of its backup for postmap."""

    def __init__(self, table: ITable, prefix: str, backup: str) -> None:
        self.table = table
        self.prefix = prefix
        self.backup = backup

    @inlineCallbacks
    def do(self, action: str, key: bytes, value: bytes) -> Generator[Deferred[Any], Any, object]:
        """Do one thing and give what it gave, or the word "failed"."""
        try:
            if action == "lookup":
                return (yield self.table.lookup(key))
            if action == "update":
                return (yield self.table.update(key, value))
            if action == "delete":
                return (yield self.table.delete(key))
            return (yield self.walk(action == "clean up"))
        except NoBackupError as error:
            return str(error)
        except TableError:
            return "failed"

    @inlineCallbacks
    def walk(self, clean_up: bool) -> Generator[Deferred[Any], Any, object]:
        """Give all entries; on the way, delete each third that comes, if wanted."""
        cursor = self.table.cursor()
        found = []
        while (entry := (yield cursor.next())) is not None:
            found.append(entry)
            if clean_up and len(found) % 3 == 0:
                yield self.table.delete(entry[0])
        return found


@needs_root
class OperationsTests(TestCase):
    """One Postfix and one memcached for all."""

    seed: int
    stack: ExitStack
    directory: Path
    postfix: Postfix
    memcached: Memcached

    @pytest.fixture(autouse=True)
    def _seed(self, request: pytest.FixtureRequest) -> None:
        self.seed = request.config.getoption("--differential-seed")
        print(f"--differential-seed={self.seed}")

    @classmethod
    def setUpClass(cls) -> None:
        cls.stack = ExitStack()
        cls.directory = directory = cls.stack.enter_context(scratch_directory())
        cls.memcached = cls.stack.enter_context(Memcached(directory))
        kinds = ("btree", "lmdb")
        natives = [f"memcache:{directory}/{kind}-{name}-native.cf" for kind in ("none", *kinds) for name in SETTINGS]
        ours = [f"{kind}:{directory}/{kind}-{name}-ours" for kind in kinds for name in SETTINGS]
        maps = " ".join(f"proxy:{name}" for name in [*natives, *ours])
        cls.postfix = Postfix(directory, {"proxy_write_maps": maps, "local_recipient_maps": ""})
        for kind in kinds:
            for name in SETTINGS:
                for side in ("native", "ours"):
                    source = directory / f"{kind}-{name}-{side}"
                    source.write_text("user0@example.com from the beginning\n")
                    ran = cls.postfix.postmap(f"{kind}:{source}")
                    assert ran.returncode == 0, ran
        cls.postfix.adopt(directory.glob("*-native.*"))
        cls.postfix.adopt(directory.glob("*-ours.db"))
        cls.stack.enter_context(cls.postfix)

    @classmethod
    def tearDownClass(cls) -> None:
        cls.stack.close()

    def open(self, kind: str, name: str, side: str, backup: str) -> Side:
        prefix = side[0] + kind[0] + name[0]
        path = self.directory / f"{kind}-{name}-{side}.cf"
        text = f"memcache = {self.memcached.address}\nkey_format = {prefix}:%s\nmax_try = 1\n{SETTINGS[name]}"
        write_config(path, text + (f"backup = {backup}\n" if backup else ""))
        context = TableContext(self.pool)
        context.proxymap_socket, context.proxywrite_socket = map(str, self.postfix.proxy_sockets)
        table = context.open_table(f"{'proxy:' if side == 'native' else ''}memcache:{path}")
        self.addCleanup(table.close)
        return Side(table, prefix, backup.removeprefix("proxy:"))

    @inlineCallbacks
    def is_back(self) -> Steps:
        """Wait until our client has noticed that memcached is up, and has done all that it was asked before."""
        client = self.pool.memcached(Server.parse(self.memcached.address))
        clock = IReactorTime(reactor)
        deadline = clock.seconds() + PATIENCE
        while True:
            try:
                yield client.get(b"x", Limits(2, 1, 1, 1024, 1024))
            except TableError:
                assert clock.seconds() < deadline
                yield deferLater(clock, 0.02, lambda: None)
            else:
                break
        self.pool.release(client)

    @inlineCallbacks
    def compare(self, kind: str, name: str, native_backup: str, our_backup: str) -> Steps:
        """Do the same with both sides, and find the same results, and in the end the same content."""
        self.pool = ClientPool(reactor)
        native = self.open(kind, name, "native", native_backup)
        ours = self.open(kind, name, "ours", our_backup)
        choose = Random(f"{self.seed} {kind} {name}")
        actions = ["lookup"] * 8 + ["update"] * 6 + ["delete"] * 2 + ["walk", "clean up"]
        history: list[str] = []
        refused = 0  # walks
        up = True
        for number in range(OPERATIONS):
            event = choose.choice(["empty", "switch"]) if number % 40 == 39 else ""
            if event == "switch":
                up = not up
                if up:
                    self.memcached.start()
                    yield self.is_back()
                else:
                    self.memcached.kill()
            elif event and up:
                self.memcached.flush()
            action = choose.choice(actions)
            if action in {"walk", "clean up"} and choose.random() < 0.7:
                action = "lookup"
            key, value = choose.choice(KEYS).encode(), choose.choice(VALUES).encode()
            history.append(f"{event} {action} {key[:40]!r} {value[:20]!r}".strip())
            expected = yield native.do(action, key, value)
            found = yield ours.do(action, key, value)
            if action in {"walk", "clean up"} and not native.backup:
                assert expected == []
                assert found == f"database {ours.table.name}: {_NO_BACKUP}"
                refused += 1
                continue
            assert found == expected, f"Postfix: {expected!r}, ours: {found!r}, after {history[-20:]}, up: {up}"
            assert not native.backup or found != "failed"
        warning = f"warning: database {native.table.name.removeprefix('proxy:')}: {_NO_BACKUP}"
        wait_until(lambda: self.postfix.maillog.count(warning) == refused, "Postfix has logged each walk")
        assert native.backup or refused
        if not up:
            self.memcached.start()
        yield self.is_back()
        for text in sorted({key.casefold() for key in KEYS if " " not in key and "\t" not in key and len(key) < 250}):
            one, other = (self.memcached.get(f"{side.prefix}:{text}".encode()) for side in (native, ours))
            assert one == other, f"{text!r} in memcached: Postfix {one!r}, ours {other!r}, after {history}"
        if native.backup:
            content = [self.postfix.postmap("-s", side.backup) for side in (native, ours)]
            assert [ran.returncode for ran in content] == [0, 0]
            assert content[0].stdout == content[1].stdout
            assert content[0].stdout

    def _with_backup(self, kind: str, our_backup: str) -> Deferred[None]:
        @inlineCallbacks
        def each() -> Steps:
            for name in SETTINGS:
                ours = our_backup.format(f"{self.directory}/{kind}-{name}-ours")
                yield self.compare(kind, name, f"{kind}:{self.directory}/{kind}-{name}-native", ours)

        return each()

    def test_btree(self) -> Deferred[None]:
        """With a btree: backup, which we have through Postfix's proxywrite, results and content are Postfix's."""
        return self._with_backup("btree", "proxy:btree:{}")

    def test_lmdb(self) -> Deferred[None]:
        """With a lmdb: backup results and content are Postfix's."""
        return self._with_backup("lmdb", "lmdb:{}")

    @inlineCallbacks
    def test_no_backup(self) -> Steps:
        """Without a backup, too, results and content are Postfix's; only that a walk needs one is an error here."""
        for name in SETTINGS:
            yield self.compare("none", name, "", "")
