"""Through nutcracker (twemproxy): all works as with memcached itself, and keys are where the ring has them."""

from __future__ import annotations

import re
import socket
import textwrap
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults, inlineCallbacks
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from socketmap_memcache.errors import TemporaryError
from socketmap_memcache.memcache.client import MemcacheClient
from socketmap_memcache.memcache.interface import Limits
from socketmap_memcache.memcache.pool import ClientPool
from socketmap_memcache.memcache.ring import Ring
from socketmap_memcache.memcache.server import Server
from socketmap_memcache.memcache.server_list import parse_server_list

from .harness.launch import run
from .harness.memcached import Memcached
from .harness.nutcracker import Nutcracker
from .harness.processes import PATIENCE, connect, scratch_directory, wait_until, write_config
from .harness.service import Service
from .harness.socketmap import SocketmapClient

Steps = Generator[Deferred[Any], Any, None]

LIMITS = Limits(timeout=10, max_try=1, data_size_limit=2_000_000)
KEYS = [*(b"user%d@example.com" % number for number in range(300)), *(bytes([n, 255, n]) for n in range(128, 255))]


class Site:
    """A nutcracker and three memcacheds: on the default port, on another with twice the weight, on a UNIX socket."""

    def __init__(self, stack: ExitStack) -> None:
        self.directory = stack.enter_context(scratch_directory())
        with socket.socket() as probe:  # for an address whose port 11211 is nobody's
            probe.bind((f"127.{Random().randint(1, 254)}.{Random().randint(1, 254)}.2", 11211))
            place = "{}:{}".format(*probe.getsockname())
        self.memcacheds = []
        for number, where in enumerate(({"place": place}, {"tcp": True}, {})):
            (self.directory / str(number)).mkdir()
            memcached = Memcached(self.directory / str(number), **where)  # type: ignore[arg-type]
            self.memcacheds.append(stack.enter_context(memcached))
        first, second, third = (memcached.address for memcached in self.memcacheds)
        servers = parse_server_list(f"{first}, {{{second}, weight=2}}, {third}")
        self.ring = Ring([(entry.label, entry.weight) for entry in servers])
        self.nutcracker = stack.enter_context(Nutcracker(self.directory, servers))

    def home(self, key: bytes) -> Memcached:
        """Return the memcached that a key belongs to."""
        return self.memcacheds[self.ring.index_of(key)]

    def key_of(self, number: int) -> bytes:
        """Return a key that belongs to a memcached."""
        return next(key for key in KEYS if self.ring.index_of(key) == number)


class NutcrackerTests(TestCase):
    """One nutcracker for all."""

    stack: ExitStack
    site: Site

    @classmethod
    def setUpClass(cls) -> None:
        with ExitStack() as stack:
            cls.site = Site(stack)
            cls.stack = stack.pop_all()

    @classmethod
    def tearDownClass(cls) -> None:
        cls.stack.close()

    def setUp(self) -> None:
        for memcached in self.site.memcacheds:
            memcached.flush()
        pool = ClientPool(reactor)
        client = pool.memcached(Server.parse(self.site.nutcracker.address))
        assert isinstance(client, MemcacheClient)
        self.client = client
        self.addCleanup(pool.release, client)

    @inlineCallbacks
    def is_back(self, key: bytes) -> Steps:
        """Wait until nutcracker can ask for a key again."""
        clock = IReactorTime(reactor)
        deadline = clock.seconds() + PATIENCE
        while True:
            try:
                yield self.client.get(key, LIMITS)
            except TemporaryError:
                assert clock.seconds() < deadline
                yield deferLater(clock, 0.05, lambda: None)
            else:
                return

    @inlineCallbacks
    def test_commands(self) -> Steps:
        """Get, set and delete say what they say with memcached itself, for any key and value."""
        for key in (KEYS[0], KEYS[-1], b"k" * 250):
            for value in (b"value", b"", b"\r\nEND\r\n", bytes(range(256))):
                self.assertIs((yield self.client.set(key, value, 4_000_000_000, 60, LIMITS)), True)
                self.assertEqual((yield self.client.get(key, LIMITS)), value)
            self.assertIs((yield self.client.delete(key, LIMITS)), True)
            self.assertIs((yield self.client.delete(key, LIMITS)), False)
            self.assertIsNone((yield self.client.get(key, LIMITS)))

    @inlineCallbacks
    def test_size(self) -> Steps:
        """Values may be as long as memcached allows; a longer one fails, and nothing else does."""
        value = b"x" * 1_000_000
        for number in range(3):
            key = self.site.key_of(number)
            yield self.client.set(key, value, 0, 0, LIMITS)
            self.assertEqual((yield self.client.get(key, LIMITS)), value)
            refused = self.client.set(key, value * 2, 0, 0, LIMITS)
            other = self.client.get(self.site.key_of((number + 1) % 3), LIMITS)
            error = yield self.assertFailure(refused, TemporaryError)
            self.assertIn("too large", str(error))
            yield other

    @inlineCallbacks
    def test_pipelining(self) -> Steps:
        """Commands that are sent together are answered in order, whichever server answers first."""
        sets = [self.client.set(key, b"value of " + key, 0, 0, LIMITS) for key in KEYS[::2]]
        gets = [self.client.get(key, LIMITS) for key in KEYS]
        self.assertEqual((yield gatherResults(sets)), [True] * len(sets))
        values = yield gatherResults(gets)
        expected = [None if number % 2 else b"value of " + key for number, key in enumerate(KEYS)]
        self.assertEqual(values, expected)

    @inlineCallbacks
    def test_many(self) -> Steps:
        """One command for many keys gives those that exist, from all servers."""
        yield gatherResults([self.client.set(key, b"value of " + key, 0, 0, LIMITS) for key in KEYS[::3]])
        found = yield self.client.get_many(KEYS[:100], LIMITS)
        self.assertEqual(found, {key: b"value of " + key for key in KEYS[:100:3]})

    @inlineCallbacks
    def test_placement(self) -> Steps:
        """What nutcracker writes is where the ring looks, and the reverse."""
        yield gatherResults([self.client.set(key, b"by nutcracker", 0, 0, LIMITS) for key in KEYS])
        self.assertEqual({self.site.home(key).get(key) for key in KEYS}, {b"by nutcracker"})
        for memcached in self.site.memcacheds:
            memcached.set_many({key: b"by the ring" for key in KEYS if self.site.home(key) is memcached})
        values = yield gatherResults([self.client.get(key, LIMITS) for key in KEYS])
        self.assertEqual(set(values), {b"by the ring"})

    @inlineCallbacks
    def test_dead_server(self) -> Steps:
        """A look-up on a dead server fails, and is not taken for a miss; those on the other servers go on."""
        yield gatherResults([self.client.set(key, b"value", 0, 0, LIMITS) for key in KEYS])
        dead = self.site.memcacheds[1]
        dead.kill()
        for _ in range(2):
            for key in KEYS[:60]:
                lookup = self.client.get(key, LIMITS)
                if self.site.home(key) is dead:
                    error = yield self.assertFailure(lookup, TemporaryError)
                    self.assertIn("SERVER_ERROR", str(error))
                else:
                    self.assertEqual((yield lookup), b"value")
        one, two = self.site.key_of(0), self.site.key_of(1)
        yield self.assertFailure(self.client.get_many([one, two], LIMITS), TemporaryError)
        for change in (self.client.set(two, b"new", 0, 0, LIMITS), self.client.delete(two, LIMITS)):
            yield self.assertFailure(change, TemporaryError)
        # All at once: where nutcracker gives up a connection, this costs only those that it was about.
        many = self.client.get_many([one, two], LIMITS)
        others = gatherResults([self.client.get(key, LIMITS) for key in KEYS if self.site.home(key) is not dead])
        yield self.assertFailure(many, TemporaryError)
        self.assertEqual(set((yield others)), {b"value"})
        dead.start()
        yield self.is_back(two)
        self.assertIsNone((yield self.client.get(two, LIMITS)))

    @inlineCallbacks
    def test_hanging_server(self) -> Steps:
        """A look-up on a server that hangs fails when nutcracker has waited for it."""
        hanging = self.site.memcacheds[2]
        hanging.freeze()
        try:
            lookup = self.client.get(self.site.key_of(2), LIMITS)
            self.assertIsNone((yield self.client.get(self.site.key_of(0), LIMITS)))
            error = yield self.assertFailure(lookup, TemporaryError)
            self.assertIn("SERVER_ERROR", str(error))
        finally:
            hanging.thaw()
        yield self.is_back(self.site.key_of(2))

    def test_refused(self) -> None:
        """What needs a direct connection, as docs/ring.rst says, makes nutcracker close the connection."""
        for request in (
            b"mg key v",
            b"set auth 0 -1 1\r\nx",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"flush_all",
        ):
            with connect(self.site.nutcracker.address) as connection:
                connection.sendall(request + b"\r\n")
                self.assertEqual(connection.recv(100), b"", request)

    def test_documentation(self) -> None:
        """The pool that docs/ring.rst shows can be used."""
        text = (Path(__file__).parents[2] / "docs/ring.rst").read_text()
        (shown,) = re.findall(r"^    mail:\n(?:     .*\n)+", text, re.MULTILINE)
        config = self.site.directory / "shown.yml"
        config.write_text(textwrap.dedent(shown))
        done = run(*self.site.nutcracker.argv[:1], "--test-conf", "--conf-file", str(config))
        self.assertIn("syntax is ok", done.stderr + done.stdout)

    def test_service(self) -> None:
        """With a server down behind nutcracker, look-ups get the backup's answer, or TEMP without one."""
        text = f"memcache = {self.site.nutcracker.address}\ntimeout = 2\nmax_try = 1\n"
        plain = write_config(self.site.directory / "plain.cf", text)
        backed = write_config(self.site.directory / "backed.cf", text + "backup = static:backup\nttl = 0\n")
        config = f"tables = plain=memcache:{plain}, backed=memcache:{backed}\n"
        up, down = self.site.key_of(0), self.site.key_of(1)
        with Service(self.site.directory, config) as service, SocketmapClient(service.addresses[0]) as client:
            self.assertEqual(client.ask("plain", down), b"NOTFOUND ")
            self.site.memcacheds[0].set(up, b"cached")
            self.site.memcacheds[1].kill()
            self.assertEqual(client.ask("plain", up), b"OK cached")
            self.assertEqual(client.ask("backed", up), b"OK cached")
            self.assertEqual(client.ask("plain", down).partition(b" ")[0], b"TEMP")
            self.assertEqual(client.ask("backed", down), b"OK backup")
            self.site.memcacheds[1].start()
            wait_until(lambda: client.ask("plain", down)[:4] != b"TEMP", "nutcracker has found memcached again")

    def test_leases(self) -> None:
        """With ``lease = yes`` look-ups go on without leases, with a line in the log."""
        text = f"memcache = {self.site.nutcracker.address}\nlease = yes\nbackup = static:backup\nretry_pause = 1\n"
        leased = write_config(self.site.directory / "leased.cf", text)
        keys = [self.site.key_of(number) for number in range(3)]
        with Service(self.site.directory, f"tables = leased=memcache:{leased}\n") as service:
            with SocketmapClient(service.addresses[0]) as client:
                self.assertEqual({client.ask("leased", key) for key in keys}, {b"OK backup"})
                self.assertEqual({client.ask("leased", key) for key in keys}, {b"OK backup"})
                wait_until(lambda: self.site.home(keys[1]).get(keys[1]) == b"backup", "memcached has the value")
            self.assertIn("without leases", service.log)
