from __future__ import annotations

import os
import tempfile
from functools import partial
from pathlib import Path
from unittest.mock import patch

from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from socketmap_memcache.config.parameters import Parameters
from socketmap_memcache.config.service import DEFAULTS, ServiceConfig, load
from socketmap_memcache.errors import ConfigurationError
from socketmap_memcache.listeners import endpoints
from socketmap_memcache.listeners.endpoints import HandedAddress
from socketmap_memcache.memcache.pool import ClientPool
from socketmap_memcache.policies.interface import IPolicy, IPolicyType, PolicyContext
from socketmap_memcache.tables.registry import TableContext
from tests.unit.policies.fakes import ScriptedPolicy, ScriptedType
from twisted import plugin


class ServiceConfigTests(SynchronousTestCase):
    """Reads files that it writes."""

    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory(prefix="service-")
        self.addCleanup(directory.cleanup)
        self.directory = directory.name
        self.path = str(Path(self.directory, "main.cf"))
        self.reactor = MemoryReactorClock()
        self.context = TableContext(ClientPool(self.reactor))

    def load(self, text: str | bytes, *overrides: str) -> ServiceConfig:
        Path(self.path).write_bytes(text if isinstance(text, bytes) else text.encode())
        return load(self.path, overrides, self.context, self.reactor)

    def errors(self, text: str | bytes, *overrides: str) -> list[str]:
        """Give the errors of a file, without its path."""
        caught = self.assertRaises(ConfigurationError, self.load, text, *overrides)
        return [str(problem).removeprefix(f"{self.path}:") for problem in caught.problems]


class FileTests(ServiceConfigTests):
    def test_defaults(self) -> None:
        """What a file with tables only does not say has its default."""
        config = self.load("tables = a=static:x\n")
        assert [address.text for address in config.socketmap_listen] == ["inet:127.0.0.1:10020"]
        assert (config.client_idle_timeout, config.shutdown_timeout) == (310, 10)
        assert (config.client_limit, config.request_limit) == (10_000, 2000)
        assert (list(config.policy_listen), list(config.policies.policies)) == ([], [])
        assert config.path == self.path
        assert self.context.warnings == []
        assert {"client_idle_timeout", "shutdown_timeout", "socketmap_listen", "tables"} <= set(DEFAULTS)
        assert DEFAULTS["tables"] == ""

    def test_listen_parameters(self) -> None:
        """Where it is listened can be said in the words of the file, and read again."""
        tables = "tables = a=static:x\n"
        config = self.load(f"{tables}socketmap_listen = unix:/$$s, inet:[::1]:3\ntcp_table_listen = a=inet:h:4\n")
        said = config.listen_parameters()
        assert said == {
            "socketmap_listen": "unix:/$$s inet:[::1]:3",
            "tcp_table_listen": "a=inet:h:4",
            "policy_listen": "",
        }
        again = self.load(tables, *(f"{name}={value}" for name, value in said.items()))
        assert again.listen_parameters() == said

    def test_close(self) -> None:
        """All tables are closed, also when one of them fails to, and the log says which."""
        config = self.load("tables = a=static:x,b=static:y,c=static:z\n")
        closed: list[str] = []
        for name, table in config.tables.items():
            self.patch(table, "close", partial(closed.append, name) if name != "b" else lambda: 1 / 0)
        with capturedLogs() as events:
            config.close()
        assert closed == ["a", "c"]
        assert [event["log_format"].format(**event) for event in events] == ["map b could not be closed"]
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 1

    def test_listened_twice(self) -> None:
        """An address has one purpose, also where the system would let it have two, by whatever words it is named."""
        listen = (
            "socketmap_listen = inet:h:3 unix:/s\ntcp_table_listen = a=inet:h:3\npolicy_listen = unix:/s:mode=600\n"
        )
        for more in ("reuse_port = yes\n", "workers = 2\n"):
            policies = f"policies = greylist\ngreylist_table = lmdb:{self.directory}/greylist\n"
            assert self.errors(f"tables = a=static:x\n{policies}{listen}{more}") == [
                "5: tcp_table_listen: 'inet:h:3' is listened on already, see socketmap_listen",
                "6: policy_listen: 'unix:/s:mode=600' is listened on already, see socketmap_listen",
            ]
        with patch.object(endpoints, "_PASSED", ["maps"]):
            listen = "socketmap_listen = systemd:domain=UNIX:index=0 systemd:domain=UNIX:name=maps\n"
            assert self.errors(f"tables = a=static:x\n{listen}") == [
                "2: socketmap_listen: 'systemd:domain=UNIX:name=maps' is listened on already, see socketmap_listen"
            ]

    def test_reuse_port_elsewhere(self) -> None:
        """``reuse_port`` means nothing for a UNIX socket, and for one that the parent of a worker has made."""
        text = f"tables = a=static:x\nreuse_port = yes\nsocketmap_listen = unix:{self.directory}/s inet:h:3\n"
        Path(self.path).write_text(text)
        load(self.path, [], self.context, self.reactor, {"inet:h:3": 7}).close()
        assert self.errors(f"{text}reuse_port = often\n") == [
            "4: bad boolean configuration: reuse_port = often (yes or no is needed)"
        ]

    def test_no_directory(self) -> None:
        """A UNIX socket whose directory does not exist is worth a warning: the service cannot make it."""
        self.load(f"tables = a=static:x\nsocketmap_listen = unix:{self.directory}/s unix:{self.directory}/no/s\n")
        text = f"socketmap_listen: the directory of 'unix:{self.directory}/no/s' does not exist yet"
        assert [str(warning) for warning in self.context.warnings] == [f"{self.path}:2: {text}"]

    def test_not_listened_twice(self) -> None:
        """An address where nothing is served, because there is nothing, may be used for another purpose."""
        config = self.load("tables = a=static:x\nsocketmap_listen = inet:h:3\npolicy_listen = inet:h:3\n")
        assert len(config.listening()) == 1

    def test_handed(self) -> None:
        """Where a socket is there already, the map may be gone: whoever asks is told so."""
        Path(self.path).write_text("tables = a=static:x\ntcp_table_listen = b=inet:h:4\n")
        config = load(self.path, (), self.context, self.reactor, {"inet:h:4": 5})
        assert config.tcp_table_listen == [("b", HandedAddress("inet:h:4", 5))]

    def test_nothing_served(self) -> None:
        """A file without tables and policies is refused: it may be half written, and nothing would be served."""
        error = "nothing is served: write tables = name=type:table, or policies = name"
        assert self.errors("") == [f" {error}"]
        assert self.errors("\ntables =\n") == [f"2: {error}"]
        assert self.errors("tables = ,\npolicies = ,\n") == [f"1: {error}"]

    def test_all(self) -> None:
        """Every parameter is read; time values take units."""
        config = self.load(
            "socketmap_listen = inet:[::1]:1, unix:/a:mode=660\n  tcp:2\n"
            "tables = a=static:x,b=inline:{k=v}\n"
            "client_idle_timeout = 10m\nshutdown_timeout = 0\nclient_limit = 1\nrequest_limit = 0\n"
        )
        assert [address.text for address in config.socketmap_listen] == ["inet:[::1]:1", "unix:/a:mode=660", "tcp:2"]
        assert {name: table.name for name, table in config.tables.items()} == {"a": "static:x", "b": "inline:{k=v}"}
        assert (config.client_idle_timeout, config.shutdown_timeout) == (600, 0)
        assert (config.client_limit, config.request_limit) == (1, 0)
        assert self.context.warnings == []
        config.close()

    def test_busy_poll(self) -> None:
        """The process stays awake for some microseconds, but not where that would take the only processor."""
        for processors, text, seconds in (
            ({0, 1}, "", 100e-6),
            ({0, 1}, "busy_poll = 1000\n", 0.001),
            ({0, 1}, "busy_poll = 0\n", 0),
            ({1}, "", 0),
        ):
            with patch.object(os, "sched_getaffinity", lambda _pid, found=processors: found, create=True):
                config = self.load(f"tables = a=static:x\n{text}")
            assert config.busy_poll == seconds
            config.close()
        assert self.errors("busy_poll = 1001\ntables = a=static:x\n") == [
            "1: invalid busy_poll parameter value 1001 > 1000"
        ]

    def test_config_directory(self) -> None:
        """``$config_directory`` is the directory of the file, and other parameters can be referred to as well."""
        Path(self.directory, "x.cf").write_text("")
        config = self.load("tables = a=memcache:$config_directory/x.cf b=static:$shutdown_timeout\n")
        assert [table.name for table in config.tables.values()] == [f"memcache:{self.directory}/x.cf", "static:10s"]
        config.close()

    def test_overrides(self) -> None:
        """What is set on the command line replaces what the file says, and its errors say so."""
        config = self.load("tables = a=static:x\nshutdown_timeout = 1\n", "tables = b=static:y", "shutdown_timeout=2")
        assert list(config.tables) == ["b"]
        assert config.shutdown_timeout == 2
        assert self.errors("", "tables=a=bogus:x")[0].startswith("--set: table 'bogus:x'")
        for override in ("x", "=x", " = x"):
            assert self.errors("tables = a=static:x\n", override) == [f"--set {override!r}: write --set name=value"]

    def test_unknown(self) -> None:
        """An unknown parameter is an error with its line and the nearest known name."""
        error = "2: unknown parameter 'table'; did you mean 'tables'?"
        assert self.errors("tables = a=static:x\ntable = a=static:x\n") == [error]
        assert self.errors("tables = a=static:x\n", "zzz=1") == ["--set: unknown parameter 'zzz'"]

    def test_listen(self) -> None:
        """An address that cannot be listened on is an error with its line."""
        (error,) = self.errors("tables = a=static:x\nsocketmap_listen = inet:127.0.0.1:1 inet:bogus\n")
        assert error.startswith("2: socketmap_listen: 'inet:bogus': write inet:host:port")
        (error,) = self.errors("socketmap_listen = tcp:1:bogus=2\ntables = a=static:x\n")
        assert error.startswith("1: socketmap_listen: 'tcp:1:bogus=2'")
        assert list(self.load("socketmap_listen =\ntables = a=static:x\n").socketmap_listen) == []

    def test_tables(self) -> None:
        """A map that is not written as name=type:table, or twice, is an error with the line."""
        for word in ("a", "=static:x", "a=", "a:b=static:x"):
            (error,) = self.errors(f"tables = {word}\n")
            assert error.startswith(f"1: tables: {word!r}: write name=type:table"), error
        assert self.errors("tables = a=static:x a=static:y\n") == ["1: tables: the name 'a' is used twice"]
        assert self.errors("tables = a=fail:\n") == ["1: fail: needs a name, for example fail:maintenance"]

    def test_options(self) -> None:
        """A map may have options after its table; what is wrong with them has the line."""
        config = self.load("tables = a={inline:{ @x=v }, partial_keys=address}, b=static:y\n")
        assert list(config.tables) == ["a", "b"]
        assert self.successResultOf(config.tables["a"].lookup(b"u@x")) == b"v"
        config.close()
        (error,) = self.errors("\ntables = a={static:x, partial_keys=all}\n")
        assert error.startswith("2: partial_keys = all: write one of none, address,")
        assert self.errors("\ntables = a={static:x\n") == ["2: missing '}' in '{static:x'"]

    def test_name_is_not_utf8(self) -> None:
        """A map name that is not UTF-8 is refused like any other that cannot be one; UTF-8 is fine."""
        (error,) = self.errors(b"tables = \xff=static:x\n")
        assert "write name=type:table" in error
        assert list(self.load("tables = ü=static:x\n").tables) == ["ü"]

    def test_idle_timeout(self) -> None:
        """An idle time below that of Postfix itself would cut its connections off, and is refused."""
        (error,) = self.errors("client_idle_timeout = 100s\ntables = a=static:x\n")
        assert error.startswith("1: client_idle_timeout = 100: must be at least 101s, because Postfix itself keeps")
        assert self.load("client_idle_timeout = 101\ntables = a=static:x\n").client_idle_timeout == 101
        assert self.errors("client_idle_timeout = soon\nshutdown_timeout = -1\ntables = a=static:x\n") == [
            "1: bad time value or unit: client_idle_timeout = soon (a number and one of s, m, h, d, w)",
            "2: bad time value or unit: shutdown_timeout = -1 (a number and one of s, m, h, d, w)",
        ]

    def test_all_errors(self) -> None:
        """All errors are found at once, those in the files of the tables with their own places; nothing stays open."""
        cf = Path(self.directory, "x.cf")
        cf.write_text("ttl = x\n\nmax_try = 0\n")
        good = Path(self.directory, "good.cf")
        good.write_text("")
        errors = self.errors(f"tables = a=memcache:{cf} b=memcache:{good}\nnonsense\nbogus = 1\n")
        assert sorted(error.partition(" ")[0] for error in errors) == sorted([f"{cf}:1:", f"{cf}:3:", "2:", "3:"])
        assert self.context.clients._clients == {}

    def test_warnings(self) -> None:
        """Warnings of the tables' files are handed on with their places."""
        cf = Path(self.directory, "x.cf")
        cf.write_text("\nbogus = 1\n")
        self.load(f"tables = a=memcache:{cf}\n").close()
        assert [str(warning) for warning in self.context.warnings] == [f"{cf}:2: unknown parameter 'bogus'"]

    def test_unreadable(self) -> None:
        """A file that cannot be read is an error that names it."""
        caught = self.assertRaises(ConfigurationError, load, "/nonexistent", (), self.context, self.reactor)
        assert str(caught) == "/nonexistent: cannot be read: No such file or directory"

    def test_tcp_table(self) -> None:
        """A tcp_table(5) listener is a map's name and an address; whatever else it is, is an error with the line."""
        config = self.load("tables = a=static:x b=static:y\ntcp_table_listen = a=inet:[::1]:1, b=unix:/b:mode=660\n")
        served = [(name, address.text) for name, address in config.tcp_table_listen]
        assert served == [("a", "inet:[::1]:1"), ("b", "unix:/b:mode=660")]
        words = "inet:127.0.0.1:1 =tcp:1 alais=tcp:1 alias=x"
        errors = self.errors(f"tables = alias=static:x\ntcp_table_listen = {words}\n")
        assert errors[:3] == [
            "2: tcp_table_listen: 'inet:127.0.0.1:1': write map=address, for example aliases=inet:127.0.0.1:10021",
            "2: tcp_table_listen: '=tcp:1': write map=address, for example aliases=inet:127.0.0.1:10021",
            "2: tcp_table_listen: 'alais=tcp:1': map 'alais' is not in tables; did you mean 'alias'?",
        ]
        assert errors[3].startswith("2: tcp_table_listen: 'x'")


class NoPolicy:
    """What a type may open by mistake."""


class PolicyTests(ServiceConfigTests):
    def use(self, *types: IPolicyType) -> None:
        """Make these the policies that other packages bring."""
        self.patch(plugin, "getPlugins", lambda interface: types if interface is IPolicyType else ())

    def test_defaults(self) -> None:
        """With policies no tables are needed; then nobody listens for look-ups."""
        self.use(ScriptedType("one", {}), ScriptedType("two", {}))
        config = self.load("policies = one, two\n")
        assert [policy.name for policy in config.policies.policies] == ["one", "two"]
        assert [address.text for address in config.policy_listen] == ["inet:127.0.0.1:10023"]
        assert list(config.socketmap_listen) == []
        opened = config.policies.policies[0]
        config.close()
        assert isinstance(opened, ScriptedPolicy)
        assert opened.closed == 1
        config = self.load("policies = one\ntables = a=static:x\npolicy_listen = unix:/p\n")
        assert [address.text for address in config.policy_listen] == ["unix:/p"]
        assert [address.text for address in config.socketmap_listen] == ["inet:127.0.0.1:10020"]

    def test_timeout(self) -> None:
        """The time limit for policies is below that of Postfix."""
        self.use(ScriptedType("one", {}))
        for seconds in ("0", "100", "2m"):
            (error,) = self.errors(f"policies = one\npolicy_timeout = {seconds}\n")
            assert error.startswith("2: policy_timeout = "), error
            assert "less than the 100s after which Postfix gives up" in error
        policy = ScriptedType("one", {}, Deferred[bytes]())
        self.use(policy)
        config = self.load("policies = one\npolicy_timeout = 99\n")
        actions: list[bytes] = []
        config.policies.decide({}, lambda action, _: actions.append(action), None)
        self.reactor.advance(98.9)
        assert actions == []
        self.reactor.advance(0.1)
        assert actions == [b"DUNNO"]

    def test_parameters(self) -> None:
        """A policy finds its parameters with what they refer to, or else with their defaults, expanded as well."""
        one = ScriptedType("one", {"one_table": "texthash:$one_directory/t", "one_directory": "$config_directory/one"})
        self.use(one)
        self.load("policies = one\n")
        assert one.texts == {"one_table": f"texthash:{self.directory}/one/t", "one_directory": f"{self.directory}/one"}
        self.load("policies = one\none_table = lmdb:${one_directory}\none_directory = /x\n")
        assert one.texts == {"one_table": "lmdb:/x", "one_directory": "/x"}
        self.load("policies = one\ntables = a=static:$one_directory\n", "one_directory=/y")
        assert one.texts["one_table"] == "texthash:/y/t"

    def test_unused_parameters(self) -> None:
        """Parameters of policies that are not used are known; misspelt ones are not."""
        self.use(ScriptedType("one", {"one_delay": "1s"}), ScriptedType("two", {"two_delay": "1s"}))
        self.load("policies = one\ntwo_delay = x\n")
        self.load("tables = a=static:x\ntwo_delay = x\n")
        error = "2: unknown parameter 'tow_delay'; did you mean 'two_delay'?"
        assert self.errors("tables = a=static:x\ntow_delay = 1\n") == [error]

    def test_own_names(self) -> None:
        """A policy cannot give the service's own parameters other defaults."""
        self.use(ScriptedType("one", {"tables": "a=static:x", "client_idle_timeout": "1s"}))
        config = self.load("policies = one\n")
        assert (dict(config.tables), config.client_idle_timeout) == ({}, 310)

    def test_errors(self) -> None:
        """All that is wrong with policies is found at once, with the line; what was opened is closed."""
        good, bad = ScriptedType("good", {}), ScriptedType("bad", {"bad_delay": "1s"})
        self.use(good, bad)
        assert self.errors("bad_delay = x\npolicies = good bad odg good\npolicy_listen = inet:x\nzzz = 1\n") == [
            "1: bad time value or unit: bad_delay = x (a number and one of s, m, h, d, w)",
            "2: unknown policy 'odg' (known: bad, good, greylist)",
            "2: policies: 'good' is named twice",
            "3: policy_listen: 'inet:x': write inet:host:port, or inet:[address]:port for IPv6",
            "4: unknown parameter 'zzz'",
        ]
        assert [policy.closed for policy in (good.opened, bad.opened) if policy] == [1, 1]

    def test_no_policy(self) -> None:
        """What is opened but cannot be a policy is an error."""

        class Wrong(ScriptedType):
            def open(self, parameters: Parameters, context: PolicyContext) -> IPolicy:
                return NoPolicy()  # type: ignore[return-value]

        self.use(Wrong("wrong", {}))
        (error,) = self.errors("policies = wrong\n")
        assert error.startswith("1: policies: 'wrong' is no policy: The object"), error

    def test_fail_action(self) -> None:
        """A fail action that Postfix could not use is an error."""
        self.patch(ScriptedPolicy, "fail_action", b"DEFER\n")
        self.use(ScriptedType("one", {}))
        error = "1: the fail action of policy 'one' is no action of access(5): b'DEFER\\n'"
        assert self.errors("policies = one\n") == [error]
