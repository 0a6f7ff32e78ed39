from __future__ import annotations

import random
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from socketmap_memcache.config.parameters import Parameters
from socketmap_memcache.errors import ConfigurationError, PermanentError, TemporaryError
from socketmap_memcache.memcache.pool import ClientPool
from socketmap_memcache.tables import redis, redis_cf
from socketmap_memcache.tables.interface import IAskedTable, ICursor, ITable, RefusedError
from socketmap_memcache.tables.options import read_cf
from socketmap_memcache.tables.partial_keys import PartialKeysTable
from socketmap_memcache.tables.redis import RedisTable
from socketmap_memcache.tables.redis_client import RedisClient
from socketmap_memcache.tables.redis_servers import Hosts, Sentinels
from socketmap_memcache.tables.registry import TableContext
from tests.unit.tables.fakes import Domains
from tests.unit.tables.redis_scripted import Peer, Redis, array, bulk


class RedisTableTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.redis = Redis(self.clock)
        self.table = self.make()

    def make(self, ttl: int | None = None, domain: Domains | None = None, prefix: bytes = b"p:") -> RedisTable:
        client = RedisClient("redis:/x", self.redis.connect, self.clock, 2, 1)
        return RedisTable("redis:/x", client, self.clock.seconds, prefix, ttl, domain)

    def commands(self, peer: Peer) -> list[bytes]:
        self.clock.advance(0)
        return peer.received()


class TestTable(RedisTableTests):
    def test_operations(self) -> None:
        """Keys are folded and get the prefix; what is asked for in one turn is answered in order."""
        verifyObject(IAskedTable, self.table)
        answers: list[Deferred[Any]] = [
            self.table.lookup(b"KeY"),
            self.table.update(b"K\xc3\x9cY", b"v"),
            self.table.update(b"k", b"v", 7),
            self.table.update(b"k", b"v", 10**12),
            self.table.delete(b"K \0"),
        ]
        peer = self.redis.accept()
        assert self.commands(peer) == [
            b"GET p:key",
            b"SET p:k\xc3\xbcy v",
            b"SET p:k v EX 7",
            b"SET p:k v EX 10000000000",
            b"DEL p:k \0",
        ]
        peer.send(bulk(b"v") + b"+OK\r\n" * 3 + b":0\r\n")
        assert [self.successResultOf(answer) for answer in answers] == [b"v", True, True, True, False]

    def test_ttl(self) -> None:
        """An update without a time to live gets that of the table."""
        table = self.make(ttl=60)
        table.update(b"a", b"v")
        table.update(b"b", b"v", 7)
        assert self.commands(self.redis.accept()) == [b"SET p:a v EX 60", b"SET p:b v EX 7"]

    def test_impossible(self) -> None:
        """What no program of Postfix could ask for is missing; what it could not read back is refused."""
        for key in (b"", b"\xff"):
            assert self.successResultOf(self.table.lookup(key)) is None
            assert self.successResultOf(self.table.delete(key)) is False
            self.failureResultOf(self.table.update(key, b"v"), RefusedError)
        for value in (b"\xff", b"a\nb", b"a\0b", b"x" * (2**20 + 1)):
            self.failureResultOf(self.table.update(b"k", value), RefusedError)
        self.failureResultOf(self.table.update(b"k", b"v", 0), RefusedError)
        assert self.redis.attempts == []

    def test_domain(self) -> None:
        """A key outside of the domain is missing, and not stored; it never reaches the server."""
        trace: list[str] = []
        for matches in (False, succeed(False)):
            table = self.make(domain=Domains(trace, matches))
            assert self.successResultOf(table.lookup(b"a@b")) is None
            assert self.successResultOf(table.update(b"a@b", b"v")) is False
        assert self.successResultOf(self.make(domain=Domains(trace, False)).delete(b"a@b")) is False
        assert self.redis.attempts == []
        domain = Domains(trace, True)
        table = self.make(domain=domain)
        answers: list[Deferred[Any]] = [table.lookup(b"a@b"), table.update(b"a@b", b"v"), table.delete(b"a@b")]
        domain.matches = succeed(True)
        answers.append(table.lookup(b"c@b"))
        peer = self.redis.accept()
        assert self.commands(peer) == [b"GET p:a@b", b"SET p:a@b v", b"DEL p:a@b", b"GET p:c@b"]
        peer.send(bulk(b"v") + b"+OK\r\n:1\r\n" + bulk(None))
        assert [self.successResultOf(answer) for answer in answers] == [b"v", True, True, None]
        table.close()
        table.close()
        assert trace.count("close domain") == 1


class TestCursor(RedisTableTests):
    def setUp(self) -> None:
        super().setUp()
        self.asked: list[bytes] = []
        self.peer = Peer(self.clock)

    def next(self, cursor: ICursor, *replies: bytes) -> tuple[bytes, bytes] | None:
        """Ask for the next entry, and give the server's replies to whatever it is asked for that."""
        done = cursor.next()
        if self.redis.attempts:
            self.peer = self.redis.accept()
        for reply in replies:
            self.asked += self.commands(self.peer)
            self.peer.send(reply)
        return self.successResultOf(done)

    def scanned(self, position: bytes, *keys: bytes) -> bytes:
        return array(bulk(position), array(*map(bulk, keys)))

    def test_walk(self) -> None:
        """Each key comes once, though SCAN repeats some; what has gone meanwhile, or is no key here, does not come."""
        cursor = self.table.cursor()
        verifyObject(ICursor, cursor)
        replies = (self.scanned(b"9"), self.scanned(b"5", b"p:a", b"p:b"), array(bulk(b"1"), bulk(b"2")))
        assert self.next(cursor, *replies) == (b"a", b"1")
        assert self.asked == [
            b"SCAN 0 MATCH p:* COUNT 500",
            b"SCAN 9 MATCH p:* COUNT 500",
            b"MGET p:a p:b",
        ]
        assert self.next(cursor) == (b"b", b"2")
        last = self.scanned(b"0", b"p:b", b"p:", b"p:\xff", b"p:gone", b"p:d", b"p:d")
        assert self.next(cursor, last, array(bulk(None), bulk(b"4"))) == (b"d", b"4")
        assert self.asked[3:] == [b"SCAN 5 MATCH p:* COUNT 500", b"MGET p:gone p:d"]
        assert self.next(cursor) is None
        assert self.next(cursor) is None

    def test_changes(self) -> None:
        """After a change, and after a second, values that were read ahead are read again."""
        cursor = self.table.cursor()
        self.next(cursor, self.scanned(b"0", b"p:a", b"p:b", b"p:c"), array(*map(bulk, [b"1", b"2", b"3"])))
        self.table.update(b"b", b"new")
        self.peer.answer(SET=b"+OK\r\n")
        assert self.next(cursor, array(bulk(b"new"), bulk(b"3"))) == (b"b", b"new")
        self.clock.advance(1)
        assert self.next(cursor, array(bulk(b"4"))) == (b"c", b"4")

    def test_changes_and_failure(self) -> None:
        """Nor do the values of before a change come back when they could not be read again."""
        cursor = self.table.cursor()
        self.next(cursor, self.scanned(b"0", b"p:a", b"p:b"), array(*map(bulk, [b"1", b"2"])))
        self.table.update(b"b", b"new")
        self.peer.answer(SET=b"+OK\r\n")
        failed = cursor.next()
        self.peer.send(b"-ERR for now\r\n")
        self.failureResultOf(failed, TemporaryError)
        assert self.next(cursor, array(bulk(b"new"))) == (b"b", b"new")

    def test_other_server(self) -> None:
        """On another connection the walk begins anew, and what has come does not come again."""
        cursor = self.table.cursor()
        assert self.next(cursor, self.scanned(b"7", b"p:a"), array(bulk(b"1"))) == (b"a", b"1")
        self.peer.lose()
        self.asked.clear()
        replies = (self.scanned(b"0", b"p:b"), array(bulk(b"2")))
        assert self.next(cursor, *replies) == (b"b", b"2")
        replies = (self.scanned(b"3", b"p:a", b"p:c"), array(bulk(b"3")))
        assert self.next(cursor, *replies) == (b"c", b"3")
        assert self.next(cursor, self.scanned(b"0", b"p:b")) is None
        assert [command for command in self.asked if command.startswith(b"SCAN")] == [
            b"SCAN 7 MATCH p:* COUNT 500",
            b"SCAN 0 MATCH p:* COUNT 500",
            b"SCAN 3 MATCH p:* COUNT 500",
        ]

    def test_failures(self) -> None:
        """What is no reply to the commands of a walk is a failure, and so is a walk without end."""
        self.table.lookup(b"k")
        peer = self.redis.accept()
        peer.answer(GET=bulk(None))
        for reply in (b":1\r\n", array(), array(bulk(b"0"), bulk(b"x")), array(b":0\r\n", array())):
            done = self.table.cursor().next()
            peer.send(reply)
            self.failureResultOf(done, PermanentError)
        done = self.table.cursor().next()
        peer.send(self.scanned(b"0", b"p:a"))
        peer.send(array())
        self.failureResultOf(done, PermanentError)
        self.patch(redis, "WALK_LIMIT", 1)
        done = self.table.cursor().next()
        peer.send(self.scanned(b"0", b"p:a", b"p:b"))
        self.failureResultOf(done, TemporaryError)

    def test_prefix(self) -> None:
        """Nothing in a prefix has a meaning to SCAN, and without a prefix all keys belong to the table."""
        for prefix, pattern in ((b"a*[b]?\\", b"a\\*\\[b\\]\\?\\\\*"), (b"", b"*")):
            done = self.make(prefix=prefix).cursor().next()
            peer = self.redis.accept()
            assert self.commands(peer) == [b"SCAN 0 MATCH %b COUNT 500" % pattern]
            peer.send(self.scanned(b"0"))
            assert self.successResultOf(done) is None

    def test_many(self) -> None:
        """Thousands of entries, in steps of any size, come once each."""
        keys = [b"p:%d" % number for number in range(3000)]
        numbers = random.Random(1)
        cursor = self.table.cursor()
        done = cursor.next()
        peer = self.redis.accept()
        found = []
        while True:
            for command in self.commands(peer):
                if command.startswith(b"SCAN"):
                    position = int(command.split()[1])
                    end = position + numbers.randrange(400)
                    again = numbers.choices(keys, k=5)
                    peer.send(self.scanned(b"%d" % (end if end < 3000 else 0), *keys[position:end], *again))
                else:
                    peer.send(array(*map(bulk, command.split()[1:])))
            if done.called:
                entry = self.successResultOf(done)
                if entry is None:
                    break
                assert entry[1] == b"p:" + entry[0]
                found.append(entry[0])
                done = cursor.next()
        assert sorted(found) == sorted(key[2:] for key in keys)


class OpenTests(SynchronousTestCase):
    def setUp(self) -> None:
        directory = TemporaryDirectory(prefix="cf-")
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)
        self.path = self.directory / "x.cf"
        self.context = TableContext(ClientPool(MemoryReactorClock()))

    def open(self, text: str) -> RedisTable:
        self.path.write_text(text)
        table = self.context.open_table(f"redis:{self.path}")
        verifyObject(ITable, table)
        assert isinstance(table, RedisTable)
        return table

    def errors(self, text: str) -> list[str]:
        caught = self.assertRaises(ConfigurationError, self.open, text)
        return [str(problem).removeprefix(f"{self.path}:") for problem in caught.problems]

    def places(self, table: RedisTable) -> Hosts | Sentinels:
        places: Hosts | Sentinels = table.client._connect.__self__  # type: ignore[attr-defined]
        return places

    def secret(self, text: str = "secret\n", mode: int = 0o600) -> Path:
        path = self.directory / "password"
        path.write_text(text)
        path.chmod(mode)
        return path

    def test_defaults(self) -> None:
        """An empty file is a table in the Redis of this host, without end; nothing connects before it is used."""
        table = self.open("")
        assert table.name == f"redis:{self.path}"
        assert (table.prefix, table._ttl, table._fold_keys, table._domain) == (b"socketmap:", None, True, None)
        assert (table.client._timeout, table.client._retry_interval) == (10, 5)
        hosts = self.places(table)
        assert isinstance(hosts, Hosts)
        assert [server.name for server in hosts._servers] == ["inet:localhost:6379"]
        assert hosts._masters_only is False
        table.close()
        assert self.context.reactor.getDelayedCalls() == []

    def test_all(self) -> None:
        """Every parameter is honoured."""
        table = self.open(
            f"hosts = unix:/r, inet:[::1]:7\nusername = me\npassword_file = {self.secret()}\ndb = 3\nprefix = x:\n"
            "ttl = 1d\ntimeout = 3s\nretry_interval = 7s\nfold_keys = no\ndomain = example.com\n"
        )
        assert (table.prefix, table._ttl, table._fold_keys) == (b"x:", 86400, False)
        assert table._domain is not None
        hosts = self.places(table)
        assert isinstance(hosts, Hosts)
        assert [server.name for server in hosts._servers] == ["unix:/r", "inet:[::1]:7"]
        assert hosts._masters_only is True
        assert (hosts._login.username, hosts._login.password, hosts._login.db) == (b"me", b"secret", 3)
        assert (table.client._timeout, table.client._retry_interval) == (3, 7)
        assert b"READONLY" in table.client._unfit

    def test_sentinels(self) -> None:
        """With sentinels the master is asked from them."""
        path = self.secret()
        table = self.open(f"sentinels = inet:a:1 inet:b:1\nsentinel_name = mail\nsentinel_password_file = {path}\n")
        sentinels = self.places(table)
        assert isinstance(sentinels, Sentinels)
        assert sentinels._name == b"mail"
        assert sentinels._of_sentinels.password == b"secret"
        assert b"READONLY" in table.client._unfit

    def test_documentation(self) -> None:
        """docs/redis.rst has each parameter once, with its default, and files that can be used."""
        text = (Path(__file__).parents[3] / "docs" / "redis.rst").read_text()
        defaults = dict(re.findall(r"^``(\w+)`` \(default: `*([^`)]*?)`*(?:, .*)?\)$", text, re.MULTILINE))
        asked: list[Parameters] = []

        def remember(kind: str, name: str) -> Parameters:
            asked.append(read_cf(kind, name))
            return asked[-1]

        self.patch(redis_cf, "read_cf", remember)
        cf = "".join(f"{name} = {'' if value == 'empty' else value}\n" for name, value in defaults.items())
        documented, plain = self.open(cf), self.open("")
        listed = set(re.findall(r"``(\w+)``", "".join(re.findall(r"``partial_keys``.*\n(?:    .*\n)+", text))))
        assert defaults.keys() | listed == asked[0]._asked
        for name in ("prefix", "_ttl", "_domain", "_fold_keys"):
            assert getattr(documented, name) == getattr(plain, name), name
        for name in ("_timeout", "_retry_interval"):
            assert getattr(documented.client, name) == getattr(plain.client, name), name
        files = [block for block in re.findall(r"::\n\n((?: {4}.*\n)+)", text) if " = " in block]
        assert len(files) == 4
        for block in files:
            file = block.replace("    ", "").replace("/etc/postfix/redis-password", str(self.secret()))
            if not file.startswith("memcache"):
                self.open(file).close()

    def test_partial_keys(self) -> None:
        """The table may try partial keys."""
        self.path.write_text("partial_keys = address\n")
        table = self.context.open_table(f"redis:{self.path}")
        assert isinstance(table, PartialKeysTable)

    def test_errors(self) -> None:
        """What can never work is refused, with the line."""
        for text, error in {
            "hosts = h": "'h' is not a server",
            "hosts =": "hosts is empty",
            "hosts = inet:a:1 inet:a:1": "'inet:a:1' is there twice",
            "db = -1": "invalid db parameter value -1 < 0",
            "timeout = 0": "timeout = 0: at least a second is needed",
            "retry_interval = 0": "retry_interval = 0: at least a second is needed",
            "sentinels = inet:a:1": "sentinels need sentinel_name",
            "sentinel_name = mail": "sentinel_name needs sentinels",
            "username = me": "username needs password_file",
            "prefx = a": "unknown parameter 'prefx'; did you mean 'prefix'?",
            "password_file = /nonexistent": "/nonexistent: cannot be read",
            f"password_file = {self.secret(mode=0o640)}": "chmod 600",
        }.items():
            (found,) = self.errors(f"\n{text}\n")
            assert found.startswith("2: "), found
            assert error in found, found
        (found,) = self.errors("sentinels = inet:a:1\nsentinel_name = m\nhosts = inet:h:1\n")
        assert found.startswith("3: hosts and sentinels"), found
        (found,) = self.errors(f"password_file = {self.secret('')}")
        assert "no password in its first line" in found
        assert len(self.errors("domain = a\npartial_keys = address\nlocal_domains = b\ndb = x\nttl = y")) == 2
