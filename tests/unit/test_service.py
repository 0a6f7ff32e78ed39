from __future__ import annotations

import os
import signal
import socket
import tempfile
from collections.abc import Callable, Generator, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from twisted.internet import reactor as real_reactor
from twisted.internet.defer import Deferred, inlineCallbacks, maybeDeferred
from twisted.internet.error import CannotListenError, ConnectionDone
from twisted.internet.task import deferLater
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogEvent, capturedLogs, formatEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from socketmap_memcache import descriptors
from socketmap_memcache.errors import ConfigurationError
from socketmap_memcache.policies.interface import IPolicyType
from socketmap_memcache.protocols.netstring import encode
from socketmap_memcache.service import SocketmapMemcacheService
from socketmap_memcache.tables.registry import _OPENERS
from tests.unit.listeners.transports import Client
from tests.unit.policies.fakes import ScriptedType
from twisted import plugin


def any_starts_with(events: Iterable[LogEvent], text: str) -> bool:
    return any(line.startswith(text) for line in texts(events))


class ThreadPool:
    """Runs what it is given when the test says so, and in the test's thread."""

    def __init__(self) -> None:
        self.work: list[Callable[[], None]] = []

    def callInThreadWithCallback(self, on_result: Callable[[bool, Any], None], function: Any, *args: Any) -> None:
        def run() -> None:
            try:
                result = function(*args)
            except Exception:  # noqa: BLE001 (as the real one does)
                on_result(False, Failure())
            else:
                on_result(True, result)

        self.work.append(run)

    def run(self) -> None:
        """Run the oldest work that waits."""
        self.work.pop(0)()


class Reactor(MemoryReactorClock):
    """Has a pool of threads."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = ThreadPool()

    def getThreadPool(self) -> ThreadPool:
        return self.pool

    def callFromThread(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        function(*args, **kwargs)


def texts(events: Iterable[LogEvent]) -> list[str]:
    return [formatEvent(event) for event in events]


class ServiceTests(SynchronousTestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory(prefix="service-")
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name, "main.cf")
        self.reactor = Reactor()
        before = signal.getsignal(signal.SIGHUP)
        self.addCleanup(signal.signal, signal.SIGHUP, before)

    def make(self, text: str, *overrides: str) -> SocketmapMemcacheService:
        self.path.write_text(text)
        return SocketmapMemcacheService(str(self.path), overrides, self.reactor)

    def start(self, text: str) -> SocketmapMemcacheService:
        service = self.make(text)
        service.privilegedStartService()
        service.startService()
        service._factory.doStart()  # as a port would
        return service

    def ask(self, service: SocketmapMemcacheService, request: bytes) -> bytes:
        client = Client(service._factory)
        client.send(encode(request))
        reply = client.received()
        client.leave(ConnectionDone())
        return reply


class TestStart(ServiceTests):
    def test_listens(self) -> None:
        """It listens before privileges are given up, and serves then what is configured."""
        service = self.make("socketmap_listen = inet:127.0.0.1:1 inet:[::1]:2\ntables = a=static:x\n")
        assert self.reactor.tcpServers == []
        service.privilegedStartService()
        assert [(server[0], server[3]) for server in self.reactor.tcpServers] == [(1, "127.0.0.1"), (2, "::1")]
        service.startService()
        assert len(self.reactor.tcpServers) == 2
        assert self.ask(service, b"a k") == b"4:OK x,"
        self.successResultOf(service.stopService())

    def test_without_privileges(self) -> None:
        """Where nobody starts it with privileges it listens all the same."""
        service = self.make("tables = a=static:x\n")
        service.startService()
        assert len(self.reactor.tcpServers) == 1
        self.successResultOf(service.stopService())

    def test_overrides(self) -> None:
        """The command line's parameters are used."""
        assert self.ask(self.make("", "tables=a=static:x"), b"a k") == b"4:OK x,"

    def test_errors(self) -> None:
        """A configuration with errors makes no service."""
        self.assertRaises(ConfigurationError, self.make, "bogus = 1\n")

    def test_warnings(self) -> None:
        """Warnings are logged."""
        cf = self.path.with_name("x.cf")
        cf.write_text("ttls = 1\n")
        with capturedLogs() as logs:
            self.make(f"tables = a=memcache:{cf}\n")
        assert texts(logs) == [f"{cf}:1: unknown parameter 'ttls'; did you mean 'ttl'?"]

    def test_banner(self) -> None:
        """It says what is served and where, and two ways to try each address."""
        service = self.make(
            "socketmap_listen = inet:127.0.0.1:1 inet:[::1]:2 unix:/run/s tcp:3\ntables = a=static:x b=static:y\n"
        )
        assert service.banner() == [
            "serving a = static:x",
            "serving b = static:y",
            "listening on inet:127.0.0.1:1 (socketmap)",
            "try: postmap -q alice@example.com socketmap:inet:127.0.0.1:1:a",
            "try: printf '19:a alice@example.com,' | nc -N 127.0.0.1 1",
            "listening on inet:[::1]:2 (socketmap)",
            "try: postmap -q alice@example.com socketmap:inet:[::1]:2:a",
            "try: printf '19:a alice@example.com,' | nc -N ::1 2",
            "listening on unix:/run/s (socketmap)",
            "try: postmap -q alice@example.com socketmap:unix:/run/s:a",
            "try: printf '19:a alice@example.com,' | nc -N -U /run/s",
            "listening on tcp:3 (socketmap)",
        ]

    def test_banner_is_logged(self) -> None:
        """The start logs what is served."""
        with capturedLogs() as logs:
            service = self.start("tables = a=static:x\n")
        assert "serving a = static:x" in texts(logs)
        self.successResultOf(service.stopService())


class TestReload(ServiceTests):
    def reload(self, service: SocketmapMemcacheService, text: str) -> Deferred[Any]:
        self.path.write_text(text)
        done = service.reload()
        self.reactor.pool.run()
        return done

    def test_new_tables(self) -> None:
        """After a reload the new tables answer, on connections that are open too, and the old ones are closed."""
        service = self.start("tables = a=static:x gone=static:y\n")
        client = Client(service._factory)
        with capturedLogs() as logs:
            self.successResultOf(self.reload(service, "tables = a=static:new b=static:z\nclient_idle_timeout = 200\n"))
        assert texts(logs) == [f"reloaded {self.path}: serving a, b"]
        client.send(encode(b"a k") + encode(b"b k") + encode(b"gone k"))
        assert client.received().startswith(b"6:OK new,4:OK z,67:PERM ")
        assert service._factory.idle_timeout == 200

    def test_nothing_served(self) -> None:
        """A file that serves nothing, half written perhaps, is refused, and the old configuration goes on."""
        service = self.start("tables = a=static:x\n")
        with capturedLogs() as logs:
            self.successResultOf(self.reload(service, ""))
        assert texts(logs)[0].startswith(f"{self.path}: nothing is served: write tables = ")
        assert self.ask(service, b"a k") == b"4:OK x,"

    def test_refused(self) -> None:
        """A configuration with errors is refused, each error is logged, and the old one goes on."""
        service = self.start("tables = a=static:x\n")
        with capturedLogs() as logs:
            self.successResultOf(self.reload(service, "bogus = 1\ntables = a=bogus:x\n"))
        assert [text.removeprefix(str(self.path)) for text in texts(logs)] == [
            ":1: unknown parameter 'bogus'",
            f":2: table 'bogus:x': unknown table type 'bogus' (known: {', '.join(sorted(_OPENERS))})",
            "reload refused: the configuration has errors; the one before goes on serving",
        ]
        assert self.ask(service, b"a k") == b"4:OK x,"
        self.successResultOf(self.reload(service, "tables = a=static:y\n"))
        assert self.ask(service, b"a k") == b"4:OK y,"

    def test_unforeseen(self) -> None:
        """A reload that fails in an unforeseen way is logged, and the old configuration goes on; so does reloading."""
        service = self.start("tables = a=static:x\n")
        self.patch(service, "_load", lambda: 1 / 0)
        done = service.reload()
        self.reactor.pool.run()
        self.successResultOf(done)
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 1
        assert self.ask(service, b"a k") == b"4:OK x,"
        self.patch(service, "_load", lambda: SocketmapMemcacheService._load(service))
        self.successResultOf(self.reload(service, "tables = a=static:y\n"))
        assert self.ask(service, b"a k") == b"4:OK y,"

    def test_under_way(self) -> None:
        """While a configuration is read the one before serves; a look-up under way gets its answer from its table."""
        cf = self.path.with_name("x.cf")
        cf.write_text("memcache = inet:192.0.2.1:1\nbackup = static:old\n")
        service = self.start(f"tables = a=memcache:{cf}\n")
        client = Client(service._factory)
        client.send(encode(b"a k"))
        self.path.write_text("tables = a=static:new\n")
        done = service.reload()
        self.assertNoResult(done)
        self.reactor.pool.run()
        self.successResultOf(done)
        client.send(encode(b"a k"))
        assert client.received() == b""
        self.reactor.advance(2)
        assert client.received() == b"6:OK old,6:OK new,"
        self.reactor.advance(10)
        assert len(self.reactor.getDelayedCalls()) == 1  # that of the idle clients

    def test_host_names(self) -> None:
        """After a reload a server with a name has a new client, which looks it up; one with an address has its own."""
        for name, server in (("name", "mc.example"), ("address", "192.0.2.1")):
            self.path.with_name(f"{name}.cf").write_text(f"memcache = inet:{server}:1\n")
        directory = self.path.parent
        text = f"tables = n=memcache:{directory}/name.cf a=memcache:{directory}/address.cf\n"
        service = self.start(text)
        before = {server.host: client for (server, _), client in service._pool._clients.items()}
        self.successResultOf(self.reload(service, text))
        after = {server.host: client for (server, _), client in service._pool._clients.items()}
        assert after.keys() == {"mc.example", "192.0.2.1"}
        assert after["mc.example"] is not before["mc.example"]
        assert after["192.0.2.1"] is before["192.0.2.1"]

    def test_second_during_a_reload(self) -> None:
        """A reload that is asked for during another is done after it, once, however often it was asked for."""
        service = self.start("tables = a=static:1\n")
        self.path.write_text("tables = a=static:2\n")
        first = service.reload()
        self.path.write_text("tables = a=static:3\n")
        for _ in range(3):
            self.successResultOf(service.reload())
        assert len(self.reactor.pool.work) == 1
        self.reactor.pool.run()
        assert len(self.reactor.pool.work) == 1
        self.assertNoResult(first)
        self.reactor.pool.run()
        self.successResultOf(first)
        assert self.reactor.pool.work == []
        assert self.ask(service, b"a k") == b"4:OK 3,"

    def test_addresses(self) -> None:
        """A change of the addresses takes a restart, and the reload says so."""
        service = self.start("tables = a=static:x\n")
        with capturedLogs() as logs:
            self.successResultOf(self.reload(service, "tables = a=static:x\nsocketmap_listen = inet:127.0.0.1:3\n"))
        assert "socketmap_listen has changed: that takes a restart" in texts(logs)
        assert len(self.reactor.tcpServers) == 1

    def test_workers(self) -> None:
        """From one process to several takes a restart, and the reload says so."""
        service = self.start("tables = a=static:x\n")
        with capturedLogs() as logs:
            self.successResultOf(self.reload(service, "tables = a=static:x\nworkers = 2\n"))
        assert "workers has changed: that takes a restart" in texts(logs)

    def test_hangup_at_the_end(self) -> None:
        """SIGHUP while requests are answered before the end does not end the process; nothing is reloaded."""
        before = signal.getsignal(signal.SIGHUP)
        service = self.start("tables = a=static:x\n")
        client = Client(service._factory)
        stopped = maybeDeferred(service.stopService)
        self.assertNoResult(stopped)
        signal.raise_signal(signal.SIGHUP)
        self.reactor.pool.run()
        client.leave(ConnectionDone())
        self.successResultOf(stopped)
        assert signal.getsignal(signal.SIGHUP) is before

    def test_stopped_during_a_reload(self) -> None:
        """A service that stops during a reload gives the new configuration back."""
        service = self.start("tables = a=static:x\n")
        cf = self.path.with_name("x.cf")
        cf.write_text("")
        self.path.write_text(f"tables = a=memcache:{cf}\n")
        done = service.reload()
        service.reload()
        self.successResultOf(service.stopService())
        self.reactor.pool.run()
        while self.reactor.pool.work:
            self.reactor.pool.run()
        self.successResultOf(done)
        assert service._pool._clients == {}
        assert self.reactor.getDelayedCalls() == []


class TestLimits(ServiceTests):
    def test_of_all(self) -> None:
        """All listeners have the same limits, and a reload changes them."""
        service = self.start(
            "tables = a=static:x\ntcp_table_listen = a=inet:127.0.0.1:2\nclient_limit = 2\nrequest_limit = 3\n"
        )
        (tcp_table_factory,) = service._tcp_table_factories
        for factory in (service._factory, tcp_table_factory):
            assert factory.entrance is service._entrance
            assert factory.pipelined is service._pipelined
        assert (service._entrance.limit, service._pipelined.limit) == (2, 3)
        self.path.write_text("tables = a=static:x\nclient_limit = 5\nrequest_limit = 6\n")
        service.reload()
        self.reactor.pool.run()
        assert (service._entrance.limit, service._pipelined.limit) == (5, 6)

    def test_descriptors(self) -> None:
        """Where the process may not have so many descriptors, there are fewer clients, and the log says so."""
        self.patch(descriptors, "raise_limit", lambda: 1024)
        with capturedLogs() as logs:
            service = self.start("tables = a=static:x\nclient_limit = 925\n")
        assert service._entrance.limit == 924
        assert texts(logs)[0] == (
            "client_limit is 925, but the process may have 1024 file descriptors only: 924 clients "
            "can be served at a time (raise LimitNOFILE= in systemd, or ulimit -Hn)"
        )
        with capturedLogs() as logs:
            service = self.start("tables = a=static:x\nclient_limit = 924\n")
        assert not any_starts_with(logs, "client_limit")


class TestTcpTable(ServiceTests):
    def test_life(self) -> None:
        """A map is served by tcp_table(5), named in the banner, replaced by a reload, and ends with the service."""
        listen = "tcp_table_listen = a=inet:[::1]:2 a=unix:/nonexistent/s\n"
        service = self.make(f"tables = a=static:x\n{listen}")
        assert service.banner()[-3:] == [
            "listening on inet:[::1]:2 (tcp_table, a)",
            "try: postmap -q alice@example.com tcp:[::1]:2",
            "listening on unix:/nonexistent/s (tcp_table, a)",
        ]
        service = self.start(f"tables = a=static:x\n{listen.partition(' a=unix')[0]}\n")
        assert [server[0] for server in self.reactor.tcpServers] == [10020, 2]
        (factory,) = service._tcp_table_factories
        factory.doStart()
        client = Client(factory)
        client.send(b"get k\n")
        with capturedLogs() as logs:
            self.path.write_text("tables = a=static:y\n")
            done = service.reload()
            self.reactor.pool.run()
            self.successResultOf(done)
        assert "tcp_table_listen has changed: that takes a restart" in texts(logs)
        client.send(b"get k\n")
        assert client.received() == b"200 x\n200 y\n"
        stopped = maybeDeferred(service.stopService)
        assert client.is_closed()
        client.leave(ConnectionDone())
        self.successResultOf(stopped)
        assert self.reactor.getDelayedCalls() == []


class TestPolicies(ServiceTests):
    def setUp(self) -> None:
        super().setUp()
        self.types = [ScriptedType("one", {"one_delay": "1s"}), ScriptedType("two", {})]
        self.patch(plugin, "getPlugins", lambda interface: self.types if interface is IPolicyType else ())

    def ask_policies(self, service: SocketmapMemcacheService) -> bytes:
        client = Client(service._policy_factory)
        client.send(b"request=smtpd_access_policy\n\n")
        reply = client.received()
        client.leave(ConnectionDone())
        return reply

    def test_life(self) -> None:
        """Policies are asked, named in the banner, replaced by a reload, and closed at the end."""
        service = self.start("policies = one\n")
        assert [server[0] for server in self.reactor.tcpServers] == [10023]
        old = self.types[0].opened
        assert self.ask_policies(service) == b"action=OK\n\n"
        self.types[1] = ScriptedType("two", {}, b"REJECT")
        with capturedLogs() as logs:
            self.path.write_text("tables = a=static:x\npolicies = two, one\nclient_idle_timeout = 200\n")
            done = service.reload()
            self.reactor.pool.run()
            self.successResultOf(done)
        assert texts(logs) == [
            "socketmap_listen has changed: that takes a restart",
            f"reloaded {self.path}: serving a, policy two, policy one",
        ]
        assert self.ask_policies(service) == b"action=REJECT\n\n"
        assert service._policy_factory.idle_timeout == 200
        new = self.types[1].opened
        assert old is not None
        assert new is not None
        assert (old.closed, new.closed) == (1, 0)
        self.successResultOf(service.stopService())
        assert new.closed == 1
        assert self.reactor.getDelayedCalls() == []

    def test_banner(self) -> None:
        """The banner has the policies, and a way to try each address."""
        request = (
            r"request=smtpd_access_policy\nprotocol_state=RCPT\nclient_address=192.0.2.1\nclient_name=mail.example.com\n"
            r"sender=alice@example.com\nrecipient=bob@example.org\n\n"
        )
        service = self.make("policies = one two\npolicy_listen = inet:[::1]:1, unix:/p, tcp:3\n")
        assert service.banner() == [
            "asking policy one",
            "asking policy two",
            "listening on inet:[::1]:1 (policy)",
            f"try: printf '{request}' | nc -N ::1 1",
            "listening on unix:/p (policy)",
            f"try: printf '{request}' | nc -N -U /p",
            "listening on tcp:3 (policy)",
        ]

    def test_description(self) -> None:
        """Where a policy describes itself, the banner has that."""
        service = self.make("policies = greylist\ngreylist_table = memory:\ngreylist_training_mode = yes\n")
        text = "asking policy greylist: what is new waits 300 s, records in memory:, in training mode"
        assert service.banner()[0] == text

    def test_no_policies(self) -> None:
        """When a reload leaves no policies, mail flows."""
        service = self.start("policies = one\n")
        with capturedLogs() as logs:
            self.path.write_text("tables = a=static:x\n")
            done = service.reload()
            self.reactor.pool.run()
            self.successResultOf(done)
        assert "policy_listen has changed: that takes a restart" in texts(logs)
        assert self.ask_policies(service) == b"action=DUNNO\n\n"

    def test_refused(self) -> None:
        """After a reload with errors the policies before it go on."""
        service = self.start("policies = one\n")
        old = self.types[0].opened
        self.path.write_text("policies = two\none_delay = 1\nbogus = 1\n")
        done = service.reload()
        self.reactor.pool.run()
        self.successResultOf(done)
        assert self.ask_policies(service) == b"action=OK\n\n"
        assert old is not None
        assert old.closed == 0
        refused = self.types[1].opened
        assert refused is not None
        assert refused.closed == 1


class TestStop(ServiceTests):
    def test_idle(self) -> None:
        """A service without clients stops at once, without a timer left, and gives SIGHUP back."""
        before = signal.getsignal(signal.SIGHUP)
        service = self.start("tables = a=static:x\n")
        assert signal.getsignal(signal.SIGHUP) != before
        self.successResultOf(service.stopService())
        assert signal.getsignal(signal.SIGHUP) == before
        assert self.reactor.getDelayedCalls() == []

    def test_never_started(self) -> None:
        """A service that was never started can be stopped."""
        self.successResultOf(maybeDeferred(self.make("tables = a=static:x\n").stopService))

    def start_with_look_up(self) -> tuple[SocketmapMemcacheService, Client]:
        """Start a service, and leave it with a look-up that takes five seconds to fail."""
        cf = self.path.with_name("x.cf")
        cf.write_text("memcache = inet:192.0.2.1:1\ntimeout = 5\nbackup = static:x\n")
        service = self.start(f"tables = a=memcache:{cf}\nshutdown_timeout = 7s\n")
        client = Client(service._factory)
        client.send(encode(b"a k"))
        return service, client

    def test_drains(self) -> None:
        """What is in flight is answered before the end, and no new request is read."""
        service, client = self.start_with_look_up()
        done = maybeDeferred(service.stopService)
        assert not client.is_reading()
        self.reactor.advance(5)
        assert client.received() == b"4:OK x,"
        assert client.is_closed()
        self.assertNoResult(done)
        client.leave(ConnectionDone())
        self.successResultOf(done)
        self.reactor.advance(10)
        assert self.reactor.getDelayedCalls() == []

    def test_cut(self) -> None:
        """A client that is not answered, or does not leave, within shutdown_timeout is cut off."""
        service, client = self.start_with_look_up()
        done = maybeDeferred(service.stopService)
        self.reactor.advance(6.9)
        assert not client.is_aborted()
        self.reactor.advance(0.1)
        assert client.is_aborted()
        client.leave(ConnectionDone())
        self.successResultOf(done)


class TestRealReactor(TestCase):
    """The service on real sockets, with real threads and signals."""

    timeout = 20

    @inlineCallbacks
    def wait_for(self, condition: Callable[[], bool]) -> Generator[Deferred[Any], Any, None]:
        while not condition():
            yield deferLater(real_reactor, 0.005)

    @inlineCallbacks
    def ask(self, path: str, request: bytes) -> Generator[Deferred[Any], Any, bytes]:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            client.sendall(encode(request))
            client.shutdown(socket.SHUT_WR)
            client.setblocking(False)
            reply = bytearray()
            while True:
                try:
                    chunk = client.recv(1000)
                except BlockingIOError:
                    yield deferLater(real_reactor, 0.002)
                    continue
                if not chunk:
                    return bytes(reply)
                reply += chunk

    @inlineCallbacks
    def test_life(self) -> Generator[Deferred[Any], Any, None]:
        """It starts, answers, reloads upon SIGHUP, refuses an address that is taken, and stops, also twice over."""
        directory = tempfile.TemporaryDirectory(prefix="service-")
        self.addCleanup(directory.cleanup)
        config, path = Path(directory.name, "main.cf"), f"{directory.name}/s"
        service = None
        for _ in range(2):
            config.write_text(f"socketmap_listen = unix:{path}\ntables = a=static:x\n")
            if service is None:
                service = SocketmapMemcacheService(str(config), [], real_reactor)
            service.privilegedStartService()
            service.startService()
            reply = yield self.ask(path, b"a k")
            assert reply in {b"4:OK x,", b"4:OK y,"}
            config.write_text(f"socketmap_listen = unix:{path}\ntables = a=static:y\n")
            with capturedLogs() as logs:
                os.kill(os.getpid(), signal.SIGHUP)
                yield self.wait_for(partial(any_starts_with, logs, "reloaded"))
            reply = yield self.ask(path, b"a k")
            assert reply == b"4:OK y,"
            second = SocketmapMemcacheService(str(config), [], real_reactor)
            self.assertRaises(CannotListenError, second.privilegedStartService)
            yield service.stopService()
            assert not os.path.lexists(path)
