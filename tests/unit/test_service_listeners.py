from __future__ import annotations

from twisted.internet.defer import maybeDeferred
from twisted.internet.error import ConnectionDone
from twisted.logger import capturedLogs

from socketmap_memcache.policies.interface import IPolicyType
from socketmap_memcache.service import SocketmapMemcacheService
from tests.unit.listeners.transports import Client
from tests.unit.logs import texts
from tests.unit.policies.fakes import ScriptedType
from twisted import plugin

from .service_tests import ServiceTests


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
            self.reload(service, "tables = a=static:y\n")
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
            self.reload(service, "tables = a=static:x\npolicies = two, one\nclient_idle_timeout = 200\n")
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
            self.reload(service, "tables = a=static:x\n")
        assert "policy_listen has changed: that takes a restart" in texts(logs)
        assert self.ask_policies(service) == b"action=DUNNO\n\n"

    def test_refused(self) -> None:
        """After a reload with errors the policies before it go on."""
        service = self.start("policies = one\n")
        old = self.types[0].opened
        self.reload(service, "policies = two\none_delay = 1\nbogus = 1\n")
        assert self.ask_policies(service) == b"action=OK\n\n"
        assert old is not None
        assert old.closed == 0
        refused = self.types[1].opened
        assert refused is not None
        assert refused.closed == 1
