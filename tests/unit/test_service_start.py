from __future__ import annotations

import os

from twisted.logger import capturedLogs

from socketmap_memcache import descriptors
from socketmap_memcache.busy_poll import BUSY_POLL
from socketmap_memcache.errors import ConfigurationError
from tests.unit.logs import texts

from .service_tests import ServiceTests, any_starts_with


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
        self.reload(service, "tables = a=static:x\nclient_limit = 5\nrequest_limit = 6\n")
        assert (service._entrance.limit, service._pipelined.limit) == (5, 6)

    def test_busy_poll(self) -> None:
        """The process stays awake as long as the configuration says, that of a reload included."""
        self.patch(os, "sched_getaffinity", lambda _pid: {0, 1})
        service = self.start("tables = a=static:x\nbusy_poll = 30\n")
        assert BUSY_POLL.seconds == 30e-6
        self.reload(service, "tables = a=static:x\nbusy_poll = 0\n")
        assert BUSY_POLL.seconds == 0

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
