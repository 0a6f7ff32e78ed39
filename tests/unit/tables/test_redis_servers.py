from __future__ import annotations

from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionRefusedError as RefusedByServerError
from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from socketmap_memcache.errors import LookupTimeout, TemporaryError
from socketmap_memcache.memcache.server import Server
from socketmap_memcache.tables import redis_servers
from socketmap_memcache.tables.redis_connection import RedisConnection
from socketmap_memcache.tables.redis_servers import Hosts, Login, Sentinels
from tests.unit.tables.redis_scripted import Peer, array, bulk

PONG = b"+PONG\r\n"
MASTER = array(bulk(b"master"), b":0\r\n", b"*0\r\n")
REPLICA = array(bulk(b"slave"), bulk(b"h"), b":1\r\n")


class Network:
    """Servers that accept when the test says so."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.attempts: list[tuple[str, IProtocolFactory, Deferred[Any]]] = []

    def server(self, name: str) -> Server:
        return cast(Server, FakeServer(name, self))

    def accept(self) -> Peer:
        ((_, factory, done),) = self.attempts
        self.attempts.clear()
        protocol = cast(RedisConnection, factory.buildProtocol(cast(Any, None)))
        peer = Peer(self.clock, protocol)
        done.callback(protocol)
        return peer

    def refuse(self) -> None:
        ((_, _, done),) = self.attempts
        self.attempts.clear()
        done.errback(Failure(RefusedByServerError()))

    def asked(self) -> str:
        ((name, _, _),) = self.attempts
        return name


class FakeServer:
    tls = False

    def __init__(self, name: str, network: Network) -> None:
        self.name = name
        self.network = network

    def connect(self, reactor: Any, factory: IProtocolFactory, timeout: float) -> Deferred[Any]:
        done: Deferred[Any] = Deferred(lambda _: self.network.attempts.clear())
        self.network.attempts.append((self.name, factory, done))
        return done


class NetworkTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.network = Network(self.clock)

    def error(self, done: Deferred[Any], kind: type[Exception] = TemporaryError) -> str:
        return str(self.failureResultOf(done, kind).getErrorMessage())


class TestHosts(NetworkTests):
    def hosts(self, *names: str, login: Login | None = None) -> Hosts:
        servers = [self.network.server(name) for name in names]
        return Hosts(servers, login or Login(), self.clock, masters_only=len(names) > 1)

    def test_one(self) -> None:
        """The only host is used as soon as it has answered, whatever its role, and no timer is left."""
        done = self.hosts("a").connect(2)
        peer = self.network.accept()
        self.assertNoResult(done)
        peer.answer(PING=PONG)
        assert self.successResultOf(done) is peer.protocol
        assert self.clock.getDelayedCalls() == []

    def test_login(self) -> None:
        """A connection begins with the password and the database."""
        for login, expected in (
            (Login(b"", b"secret", 3), [b"AUTH secret", b"SELECT 3", b"PING"]),
            (Login(b"me", b"secret"), [b"AUTH me secret", b"PING"]),
        ):
            done = self.hosts("a", login=login).connect(2)
            peer = self.network.accept()
            commands = []
            while not done.called:
                commands += peer.received()
                peer.send(PONG)
            assert commands == expected
            assert "secret" not in repr(login)

    def test_refused_login(self) -> None:
        """A host that does not want us is left, and its reason told."""
        for reply in (b"-WRONGPASS invalid\r\n", b"-NOAUTH required.\r\n", b"-LOADING x\r\n"):
            done = self.hosts("s").connect(2)
            peer = self.network.accept()
            peer.send(reply)
            assert self.error(done) == f"s: {reply[1:-2].decode().rstrip('.')}"
            assert peer.is_aborted()

    def test_hang(self) -> None:
        """A host that accepts and says nothing has its share of the time, and then the next has its turn."""
        done = self.hosts("a", "b").connect(2)
        assert self.network.asked() == "a"
        first = self.network.accept()
        self.clock.advance(1)
        assert first.is_aborted()
        assert self.network.asked() == "b"
        self.clock.advance(1)
        assert self.error(done, LookupTimeout) == "a: no answer within 1 s; b: no answer within 1 s"
        assert self.network.attempts == []
        assert self.clock.getDelayedCalls() == []

    def test_in_the_last_moment(self) -> None:
        """A host whose answer and whose end of time come together may be used."""
        assert redis_servers._too_late(b"done", 1) == b"done"

    def test_masters_only(self) -> None:
        """Of several hosts the first that is master is used, and asked first the next time."""
        hosts = self.hosts("a", "b", "c")
        done = hosts.connect(3)
        self.network.refuse()
        replica = self.network.accept()
        replica.send(PONG)
        replica.send(REPLICA)
        assert replica.is_aborted()
        assert self.network.asked() == "c"
        master = self.network.accept()
        master.send(PONG)
        master.send(MASTER)
        assert self.successResultOf(done) is master.protocol
        done = hosts.connect(3)
        assert self.network.asked() == "c"
        for _ in range(3):
            self.network.refuse()
        assert self.error(done) == "; ".join(f"{name}: Connection was refused by other side" for name in "cab")

    def test_cancel(self) -> None:
        """When the search is ended no other host is asked."""
        for accept in (False, True):
            done = self.hosts("a", "b").connect(2)
            if accept:
                peer = self.network.accept()
            done.cancel()
            self.failureResultOf(done)
            assert self.network.attempts == []
            assert self.clock.getDelayedCalls() == []
        assert peer.is_aborted()


class TestSentinels(NetworkTests):
    def setUp(self) -> None:
        super().setUp()
        self.patch(Server, "connect", lambda server, *args: FakeServer(server.name, self.network).connect(*args))

    def sentinels(self, *names: str) -> Sentinels:
        servers = [self.network.server(name) for name in names]
        return Sentinels(servers, "mail", Login(b"", b"p"), Login(b"", b"q"), self.clock)

    def answer_sentinel(self, address: bytes) -> None:
        peer = self.network.accept()
        assert peer.received() == [b"AUTH q"]
        peer.send(b"+OK\r\n")
        assert peer.received() == [b"PING"]
        peer.send(PONG)
        assert peer.received() == [b"SENTINEL GET-MASTER-ADDR-BY-NAME mail"]
        peer.send(address)
        assert peer.is_aborted()

    def test_master(self) -> None:
        """The master that a sentinel names is used, if it is one; else another sentinel is asked."""
        sentinels = self.sentinels("a", "b")
        done = sentinels.connect(2)
        assert self.network.asked() == "a"
        self.answer_sentinel(array(bulk(b"10.0.0.1"), bulk(b"6379")))
        assert self.network.asked() == "inet:10.0.0.1:6379"
        old = self.network.accept()
        for reply in (b"+OK\r\n", PONG, REPLICA):
            old.send(reply)
        assert self.network.asked() == "b"
        self.answer_sentinel(array(bulk(b"fe80::1"), bulk(b"6380")))
        assert self.network.asked() == "inet:[fe80::1]:6380"
        new = self.network.accept()
        assert new.received() == [b"AUTH p"]
        for reply in (b"+OK\r\n", PONG, MASTER):
            new.send(reply)
        assert self.successResultOf(done) is new.protocol
        sentinels.connect(2)
        assert self.network.asked() == "b"

    def test_errors(self) -> None:
        """A sentinel that knows no master, or names one that cannot be used, says so."""
        done = self.sentinels("a", "b", "none", "c", "d").connect(2)
        self.answer_sentinel(b"*-1\r\n")
        self.answer_sentinel(bulk(b"x"))
        self.answer_sentinel(array(bulk(b""), bulk(b"1")))
        self.answer_sentinel(array(bulk(b"h"), bulk(b"0")))
        self.answer_sentinel(array(bulk(b"h"), bulk(b"1")))
        self.network.refuse()
        assert self.error(done) == (
            "a: knows no master 'mail'; b: gave no address for the master 'mail': b'x'; "
            "none: gave no address for the master 'mail': [b'', b'1']; "
            "c: gave no address for the master 'mail': [b'h', b'0']; "
            "d: names the master inet:h:1: Connection was refused by other side"
        )
