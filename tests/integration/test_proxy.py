"""``proxy:`` tables against Postfix's own proxymap and proxywrite, and against servers of other versions."""

from __future__ import annotations

import signal
import socketserver
import threading
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults, inlineCallbacks
from twisted.trial.unittest import TestCase

from socketmap_memcache.errors import LookupTimeout, TemporaryError
from socketmap_memcache.memcache.pool import ClientPool
from socketmap_memcache.tables import proxymap_client
from socketmap_memcache.tables.interface import ITable
from socketmap_memcache.tables.proxymap_client import DeniedError
from socketmap_memcache.tables.registry import TableContext

from .harness.postfix import Postfix, needs_root
from .harness.processes import scratch_directory, wait_until, write_config

Steps = Generator[Deferred[Any], Any, None]

PCRE = "/^user([0-9]+)@example[.]com$/ box-$1\n/^\\xc3\\x9c/ not ASCII\n"


@needs_root
class PostfixTests(TestCase):
    """One Postfix for all: ``rw`` are tables that it lets change, ``ro`` those that it lets read."""

    seed: int
    stack: ExitStack
    directory: Path
    postfix: Postfix

    @classmethod
    def setUpClass(cls) -> None:
        cls.stack = ExitStack()
        cls.directory = directory = cls.stack.enter_context(scratch_directory())
        write_config(directory / "pcre", PCRE)
        writable = [
            cls.path_of(kind, name) for kind in ("btree", "hash", "lmdb") for name in ("random", "walk", "many")
        ]
        readable = [f"pcre:{directory}/pcre", f"lmdb:{directory}/ro", f"lmdb:{directory}/absent"]
        cls.postfix = Postfix(
            directory,
            {
                "proxy_write_maps": " ".join(f"proxy:{name}" for name in writable),
                "proxy_read_maps": " ".join(f"proxy:{name}" for name in readable),
                "local_recipient_maps": "",
                "service_throttle_time": "1s",  # for one that is killed before it has served anybody
            },
        )
        for name in [*writable, f"lmdb:{directory}/ro"]:
            path = Path(name.partition(":")[2])
            path.write_text("Key value\n")
            ran = cls.postfix.postmap(name)
            assert ran.returncode == 0, ran
        cls.postfix.adopt(directory.glob("*.*"))
        cls.stack.enter_context(cls.postfix)

    @classmethod
    def tearDownClass(cls) -> None:
        cls.stack.close()

    @pytest.fixture(autouse=True)
    def _seed(self, request: pytest.FixtureRequest) -> None:
        self.seed = request.config.getoption("--differential-seed")
        print(f"--differential-seed={self.seed}")

    @classmethod
    def path_of(cls, kind: str, name: str) -> str:
        return f"{kind}:{cls.directory}/{name}-{kind}"

    def open(self, name: str) -> ITable:
        context = TableContext(ClientPool(reactor))
        context.proxymap_socket, context.proxywrite_socket = map(str, self.postfix.proxy_sockets)
        table = context.open_table(f"proxy:{name}")
        self.addCleanup(table.close)
        return table

    def content(self, name: str) -> dict[bytes, bytes]:
        """Give what postmap finds in a table."""
        ran = self.postfix.postmap("-s", name)
        assert ran.returncode == 0, ran
        pairs = [line.partition(b"\t") for line in ran.stdout.splitlines()]
        return {key: value for key, _, value in pairs}

    @inlineCallbacks
    def _random(self, kind: str) -> Steps:
        choose = Random(f"{self.seed} {kind}")
        table = self.open(self.path_of(kind, "random"))
        keys = [b"key", b"User+Ext@Example.COM", "\u00dc@b\u00fccher.de".encode(), b'"a b"@c.d', b"%s", b"x" * 400]
        keys += [b"user%d@example.com" % number for number in range(20)]
        values = [b"value", b"a, b", "w\u00e4rt".encode(), b"x" * 3000, b"# no comment", b"{ }"]
        expected = {b"key": b"value"}
        for _ in range(300):
            key, value = choose.choice(keys), choose.choice(values)
            folded = key.decode().casefold().encode()
            action = choose.randrange(4)
            if action == 0:
                assert (yield table.delete(key)) == (expected.pop(folded, None) is not None)
            elif action == 1:
                assert (yield table.lookup(key)) == expected.get(folded)
            else:
                assert (yield table.update(key, value)) is True
                expected[folded] = value
        cursor = table.cursor()
        found = []
        while (entry := (yield cursor.next())) is not None:
            found.append(entry)
        assert dict(found) == expected
        assert len(found) == len(expected)
        assert kind == "hash" or found == sorted(found)
        assert self.content(self.path_of(kind, "random")) == expected

    def test_random_btree(self) -> Deferred[None]:
        """Any operations on a btree: table give what they should, and leave what postmap then finds in the file."""
        return self._random("btree")

    def test_random_hash(self) -> Deferred[None]:
        """Any operations on a hash: table give what they should, and leave what postmap then finds in the file."""
        return self._random("hash")

    def test_random_lmdb(self) -> Deferred[None]:
        """Any operations on a lmdb: table give what they should, and leave what postmap then finds in the file."""
        return self._random("lmdb")

    @inlineCallbacks
    def test_walk(self) -> Steps:
        """A walk finds each entry that stays once, whatever is deleted and updated meanwhile."""
        for kind in ("btree", "hash", "lmdb"):
            table = self.open(self.path_of(kind, "walk"))
            keys = [b"k%02d" % number for number in range(40)]
            yield gatherResults([table.update(key, b"v") for key in keys])
            yield table.delete(b"key")
            cursor = table.cursor()
            seen: list[bytes] = []
            while (entry := (yield cursor.next())) is not None:
                seen.append(entry[0])
                if len(seen) % 3 == 0:
                    yield table.delete(entry[0])
                elif len(seen) % 3 == 1:
                    yield table.update(entry[0], b"new")
            assert sorted(seen) == keys, kind
            assert len(self.content(self.path_of(kind, "walk"))) == 40 - 40 // 3

    @inlineCallbacks
    def test_delete_ahead(self) -> Steps:
        """A walk goes on when the entries that it would come to next are deleted."""
        for kind in ("btree", "lmdb"):
            table = self.open(self.path_of(kind, "walk"))
            keys = [b"k%02d" % number for number in range(20)]
            yield gatherResults([table.update(key, b"v") for key in keys])
            cursor = table.cursor()
            assert (yield cursor.next())[0] == b"k00"
            for key in keys[1:5]:
                assert (yield table.delete(key)) is True
            seen = []
            while (entry := (yield cursor.next())) is not None:
                seen.append(entry[0])
            assert [key for key in seen if key in keys[5:]] == keys[5:], kind

    @inlineCallbacks
    def test_pcre(self) -> Steps:
        """A pcre: table, which cannot be read here otherwise, gives what postmap gives, and cannot be changed."""
        name = f"pcre:{self.directory}/pcre"
        table = self.open(name)
        for key in (b"user1@example.com", b"USER22@example.com", b"user@example.com", "\u00dcx".encode(), b"a b", b"%"):
            ran = self.postfix.postmap("-q", key, name)
            assert (yield table.lookup(key)) == (ran.stdout[:-1] if ran.returncode == 0 else None), key
        yield self.assertFailure(table.update(b"key", b"value"), DeniedError)

    @inlineCallbacks
    def test_many_at_once(self) -> Steps:
        """Requests that are asked all at once are all answered, each with its own value: they are sent one by one."""
        for kind in ("btree", "lmdb"):
            table = self.open(self.path_of(kind, "many"))
            keys = [b"k%d" % number for number in range(300)]
            assert all((yield gatherResults([table.update(key, b"v" + key) for key in keys])))
            assert (yield gatherResults([table.lookup(key) for key in keys])) == [b"v" + key for key in keys]
            assert (yield table.lookup(b"k300")) is None

    @inlineCallbacks
    def test_long(self) -> Steps:
        """Keys and values of any length that the table takes go through."""
        table = self.open(self.path_of("btree", "many"))
        for size in (1, 5_000, 100_000):
            assert (yield table.update(b"k" * size, b"v" * size)) is True
            assert (yield table.lookup(b"K" * size)) == b"v" * size

    @inlineCallbacks
    def test_killed_between(self) -> Steps:
        """A proxymap that ends between two requests is replaced without anybody noticing."""
        for name in (self.path_of("lmdb", "many"), f"lmdb:{self.directory}/ro"):
            table = self.open(name)
            for _ in range(3):
                assert (yield table.lookup(b"KEY")) == b"value"
                for pid in self.postfix.children("proxymap"):
                    self.postfix.signal_child(pid, signal.SIGKILL)

    @inlineCallbacks
    def test_hanging(self) -> Steps:
        """A proxymap that hangs is a failure after the time limit, never a miss; when it is back so are the answers."""
        self.patch(proxymap_client, "TIMEOUT", 0.5)
        table = self.open(f"lmdb:{self.directory}/ro")
        assert (yield table.lookup(b"key")) == b"value"
        stopped = self.postfix.children("proxymap")
        for pid in stopped:
            self.postfix.signal_child(pid, signal.SIGSTOP)
        yield self.assertFailure(table.lookup(b"key"), LookupTimeout)
        for pid in stopped:
            self.postfix.signal_child(pid, signal.SIGCONT)
        self.patch(proxymap_client, "TIMEOUT", 10)
        assert (yield table.lookup(b"key")) == b"value"

    @inlineCallbacks
    def test_denied(self) -> Steps:
        """A table that Postfix is not told to serve fails, and says what to list where; Postfix's log says it, too."""
        table = self.open("btree:/nowhere")
        error = yield self.assertFailure(table.lookup(b"key"), DeniedError)
        assert str(error).startswith("proxy:btree:/nowhere: not allowed by Postfix: list proxy:btree:/nowhere in")
        line = 'request for unapproved table: "btree:/nowhere"'
        wait_until(lambda: line in self.postfix.maillog, "Postfix has logged it")
        error = yield self.assertFailure(table.delete(b"key"), DeniedError)
        assert "proxy_write_maps" in str(error)

    @inlineCallbacks
    def test_broken(self) -> Steps:
        """A table whose file is not there is a failure, not a miss."""
        yield self.assertFailure(self.open(f"lmdb:{self.directory}/absent").lookup(b"key"), TemporaryError)


#: A table of Postfix 3.11's and later says more of itself; these are the numbers of ``memcache:`` there.
_FLAGS = "1851473"


class _Proxymap(socketserver.ThreadingUnixStreamServer):
    """A server with one table that speaks like Postfix up to 3.5 (``old``) or since 3.11, strictly.

    As the real one it forgets what it has read beyond the request that it answers.
    """

    daemon_threads = True

    def __init__(self, path: Path, old: bool) -> None:
        super().__init__(str(path), _Handler)
        self.old = old
        self.entries = {"key": "value"}
        self.place = ""

    def reply(self, request: list[str]) -> list[str]:
        """Take a request's names and values in turn, and give a reply's."""
        names, values = request[::2], request[1::2]
        fields = {
            "open": [],
            "lookup": ["key"],
            "update": ["key", "value"],
            "delete": ["key"],
            "sequence": ["function"],
        }[values[0]]
        flags = ["flags"] if self.old else ["instance_flags", "flags"][: 1 if values[0] == "open" else 2]
        more = [] if self.old and values[0] != "open" else ["flags", _FLAGS]
        if names != ["request", "table", *flags, *fields]:
            return ["status", "3", *more, *self.result(values[0])]
        if not self.old and values[0] != "open":
            assert values[3] == _FLAGS
        status, *result = self.execute(values[0], values[2 + len(flags) :])
        return ["status", status, *more, *self.result(values[0], *result)]

    def result(self, function: str, *values: str) -> list[str]:
        names = {"lookup": ["value"], "sequence": ["key", "value"]}.get(function, [])
        return [item for name, value in zip(names, values or ("", ""), strict=False) for item in (name, value)]

    def execute(self, function: str, arguments: list[str]) -> list[str]:
        if function == "update":
            self.entries[arguments[0]] = arguments[1]
        elif function == "lookup":
            return ["0", self.entries[arguments[0]]] if arguments[0] in self.entries else ["1"]
        elif function == "delete":
            return ["1" if self.entries.pop(arguments[0], None) is None else "0"]
        elif function == "sequence":
            rest = sorted(key for key in self.entries if arguments[0] == "0" or key > self.place)
            if not rest:
                return ["1"]
            self.place = rest[0]
            return ["0", self.place, self.entries[self.place]]
        return ["0"]


class _Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        server = self.server
        assert isinstance(server, _Proxymap)
        if not server.old:
            self.request.sendall(b"protocol\0proxymap_protocol\0\0")
        read = b""
        while data := self.request.recv(100_000):
            read += data
            items = read.split(b"\0")
            if b"" in items[:-1:2]:
                reply = server.reply([item.decode() for item in items[: items[::2].index(b"") * 2]])
                self.request.sendall("".join(f"{item}\0" for item in reply).encode() + b"\0")
                read = b""


@contextmanager
def proxymap(path: Path, old: bool) -> Iterator[_Proxymap]:
    with _Proxymap(path, old) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


class DialectTests(TestCase):
    @inlineCallbacks
    def _operations(self, old: bool) -> Steps:
        with scratch_directory() as directory, proxymap(directory / "sock", old) as server:
            context = TableContext(ClientPool(reactor))
            context.proxymap_socket = context.proxywrite_socket = str(server.server_address)
            table = context.open_table("proxy:memcache:/x")
            assert (yield table.lookup(b"KEY")) == b"value"
            assert (yield table.lookup(b"other")) is None
            yield gatherResults([table.update(b"New%d" % number, b"%d" % number) for number in range(5)])
            cursor = table.cursor()
            found = []
            while (entry := (yield cursor.next())) is not None:
                found.append(entry)
            assert found == [(b"key", b"value"), *((b"new%d" % number, b"%d" % number) for number in range(5))]
            assert (yield gatherResults([table.delete(b"key"), table.delete(b"key")])) == [True, False]
            table.close()

    def test_before_3_6(self) -> Deferred[None]:
        """All operations work with a server up to Postfix 3.5, which does not greet."""
        return self._operations(old=True)

    def test_since_3_11(self) -> Deferred[None]:
        """All operations work with a server since Postfix 3.11, which wants more flags."""
        return self._operations(old=False)
