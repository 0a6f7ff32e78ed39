from __future__ import annotations

import signal

from twisted.internet.defer import maybeDeferred
from twisted.internet.error import ConnectionDone
from twisted.logger import capturedLogs

from socketmap_memcache.protocols.netstring import encode
from socketmap_memcache.service import SocketmapMemcacheService
from socketmap_memcache.tables.registry import _OPENERS
from tests.unit.listeners.transports import Client
from tests.unit.logs import texts

from .service_tests import ServiceTests


class TestReload(ServiceTests):
    def test_new_tables(self) -> None:
        """After a reload the new tables answer, on connections that are open too, and the old ones are closed."""
        service = self.start("tables = a=static:x gone=static:y\n")
        client = Client(service._factory)
        with capturedLogs() as logs:
            self.reload(service, "tables = a=static:new b=static:z\nclient_idle_timeout = 200\n")
        assert texts(logs) == [f"reloaded {self.path}: serving a, b"]
        client.send(encode(b"a k") + encode(b"b k") + encode(b"gone k"))
        assert client.received().startswith(b"6:OK new,4:OK z,67:PERM ")
        assert service._factory.idle_timeout == 200

    def test_nothing_served(self) -> None:
        """A file that serves nothing, half written perhaps, is refused, and the old configuration goes on."""
        service = self.start("tables = a=static:x\n")
        with capturedLogs() as logs:
            self.reload(service, "")
        assert texts(logs)[0].startswith(f"{self.path}: nothing is served: write tables = ")
        assert self.ask(service, b"a k") == b"4:OK x,"

    def test_refused(self) -> None:
        """A configuration with errors is refused, each error is logged, and the old one goes on."""
        service = self.start("tables = a=static:x\n")
        with capturedLogs() as logs:
            self.reload(service, "bogus = 1\ntables = a=bogus:x\n")
        assert [text.removeprefix(str(self.path)) for text in texts(logs)] == [
            ":1: unknown parameter 'bogus'",
            f":2: table 'bogus:x': unknown table type 'bogus' (known: {', '.join(sorted(_OPENERS))})",
            "reload refused: the configuration has errors; the one before goes on serving",
        ]
        assert self.ask(service, b"a k") == b"4:OK x,"
        self.reload(service, "tables = a=static:y\n")
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
        self.reload(service, "tables = a=static:y\n")
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
        self.reload(service, text)
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
            self.reload(service, "tables = a=static:x\nsocketmap_listen = inet:127.0.0.1:3\n")
        assert "socketmap_listen has changed: that takes a restart" in texts(logs)
        assert len(self.reactor.tcpServers) == 1

    def test_workers(self) -> None:
        """From one process to several takes a restart, and the reload says so."""
        service = self.start("tables = a=static:x\n")
        with capturedLogs() as logs:
            self.reload(service, "tables = a=static:x\nworkers = 2\n")
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
