from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, cast

import attrs
import pytest
from twisted.internet.task import Clock

from socketmap_memcache.errors import LookupTimeout, PermanentError, TemporaryError

pytest.importorskip("psycopg")

from socketmap_memcache.tables.pgsql_connection import Connection, ConnectionFailure
from socketmap_memcache.tables.pgsql_hosts import Host, Hosts

A, B, C = (Host(name, rank, name.encode()) for name, rank in (("a", 0), ("b", 1), ("c", 1)))


@attrs.define(eq=False)
class FakeConnection:
    """:ivar failures: what the next uses of it end with."""

    host: str
    failures: list[Exception] = attrs.Factory(list)
    closed: bool = False

    def close(self) -> None:
        self.closed = True


@attrs.define
class Servers:
    """Servers that are up, or fail with a reason after some seconds."""

    clock: Clock = attrs.Factory(Clock)
    down: dict[str, str] = attrs.Factory(dict)
    slow: dict[str, float] = attrs.Factory(dict)
    broken: dict[str, Exception] = attrs.Factory(dict)
    tried: list[tuple[str, float]] = attrs.Factory(list)
    notes: list[str] = attrs.Factory(list)
    made: list[FakeConnection] = attrs.Factory(list)

    def hosts(self, *hosts: Host, random: Random | None = None) -> Hosts:
        connect = cast("Callable[[bytes, float], Connection]", self.connect)
        return Hosts("t", hosts, connect, self.clock.seconds, self.notes.append, 60, random)

    def connect(self, conninfo: bytes, deadline: float) -> FakeConnection:
        name = conninfo.decode()
        self.tried.append((name, deadline))
        self.clock.advance(self.slow.get(name, 0))
        if name in self.down:
            raise ConnectionFailure(self.down[name])
        self.made.append(FakeConnection(name))
        return self.made[-1]

    def use(self, hosts: Hosts, seconds: float = 10) -> tuple[str, float]:
        """Use a connection; return the host and the deadline that it was given."""

        def work(connection: Any, deadline: float) -> tuple[str, float]:
            if connection.failures:
                raise connection.failures.pop(0)
            if connection.host in self.broken:
                raise self.broken[connection.host]
            return connection.host, deadline

        return hosts.perform(work, self.clock.seconds() + seconds)


@pytest.fixture
def servers() -> Servers:
    return Servers()


class TestChoice:
    def test_one_connection(self, servers: Servers) -> None:
        """One connection serves until it is given back."""
        hosts = servers.hosts(A, B)
        assert [servers.use(hosts)[0] for _ in range(3)] == ["a"] * 3
        assert len(servers.made) == 1
        hosts.rest()
        hosts.rest()
        assert servers.made[0].closed
        assert servers.use(hosts)[0] == "a"
        assert len(servers.made) == 2

    def test_order(self, servers: Servers) -> None:
        """Those of a lower rank come first; among those of the same rank the order is random, or that of the list."""
        servers.down["a"] = "x"
        assert servers.use(servers.hosts(C, B, A))[0] == "c"
        assert servers.tried[0][0] == "a"
        assert {servers.use(servers.hosts(C, B, A, random=Random(seed)))[0] for seed in range(9)} == {"b", "c"}

    def test_shares(self, servers: Servers) -> None:
        """Each attempt gets its part of the time, and where another server is up so does what is done."""
        servers.down |= {"a": "x"}
        servers.slow |= {"a": 2}
        assert servers.use(servers.hosts(A, B, C), 6) == ("b", 4)  # two of six seconds are over
        assert servers.tried == [("a", 2), ("b", 4)]
        assert servers.use(servers.hosts(B), 6) == ("b", 8)


class TestFailure:
    def test_ended_connection(self, servers: Servers) -> None:
        """A connection that ended in between is made again, and its server counts as up."""
        hosts = servers.hosts(A, B)
        servers.use(hosts)
        servers.made[0].failures.append(ConnectionFailure("gone"))
        assert servers.use(hosts)[0] == "a"
        assert servers.made[0].closed
        assert servers.notes == []

    def test_hung_connection(self, servers: Servers) -> None:
        """A server that gives no answer is down, and another one is asked."""
        hosts = servers.hosts(A, B)
        servers.use(hosts)
        servers.made[0].failures.append(ConnectionFailure("no answer", hung=True))
        assert servers.use(hosts)[0] == "b"
        assert servers.notes == ["t: host a: no answer"]

    def test_useless_connection(self, servers: Servers) -> None:
        """A server whose new connection ends at once is down."""
        servers.broken["a"] = ConnectionFailure("shutting down")
        hosts = servers.hosts(A, B)
        assert servers.use(hosts)[0] == "b"
        assert servers.notes == ["t: host a: shutting down"]

    def test_retry_interval(self, servers: Servers) -> None:
        """A server that is down is tried again after the interval, and what was logged is logged again then."""
        servers.down |= {"a": "x"}
        hosts = servers.hosts(A, B)
        for seconds in (59, 1):
            servers.use(hosts)
            hosts.rest()
            servers.clock.advance(seconds)
        servers.use(hosts)
        assert [name for name, _ in servers.tried] == ["a", "b", "b", "a", "b"]
        assert servers.notes == ["t: host a: x"] * 2
        hosts.rest()
        servers.clock.advance(60)
        servers.down.clear()
        assert servers.use(hosts)[0] == "a"
        assert servers.notes[2:] == ["t: host a answers again"]

    def test_no_time_left(self, servers: Servers) -> None:
        """A server for which there is no time left does not count as down."""
        servers.down["a"] = "x"
        servers.slow["a"] = 10
        hosts = servers.hosts(A, B)
        with pytest.raises(LookupTimeout, match="^t: no time is left to ask host b$"):
            servers.use(hosts)
        assert servers.use(hosts)[0] == "b"

    def test_all_down(self, servers: Servers) -> None:
        """When all are down everything fails at once with all reasons, and all are tried after a second."""
        servers.down |= {"a": "x", "b": "y"}
        hosts = servers.hosts(A, B)
        for _ in range(3):
            with pytest.raises(TemporaryError, match="^t: host a: x; host b: y$"):
                servers.use(hosts)
        assert len(servers.tried) == 2
        servers.clock.advance(1)
        del servers.down["b"]
        assert servers.use(hosts)[0] == "b"
        assert servers.notes == ["t: host a: x", "t: host b: y", "t: host b answers again"]

    def test_slow_failure(self, servers: Servers) -> None:
        """The pause is as long as it took to find out that all are down."""
        servers.down["a"] = "x"
        servers.slow["a"] = 5
        hosts = servers.hosts(A)
        for advance in (4, 1):
            with pytest.raises(TemporaryError):
                servers.use(hosts)
            servers.clock.advance(advance)
        assert len(servers.tried) == 1
        del servers.down["a"]
        servers.use(hosts)
        assert len(servers.tried) == 2

    def test_new_reason(self, servers: Servers) -> None:
        """A reason that is new is logged, the same one is not."""
        hosts = servers.hosts(A)
        for reason in ("x", "x", "y"):
            servers.down["a"] = reason
            with pytest.raises(TemporaryError):
                servers.use(hosts)
            servers.clock.advance(1)
        assert servers.notes == ["t: host a: x", "t: host a: y"]

    def test_other_errors(self, servers: Servers) -> None:
        """A connection whose statement failed is kept; after an unforeseen error it is not."""
        hosts = servers.hosts(A)
        servers.use(hosts)
        servers.made[0].failures += [PermanentError("no"), ValueError("bug")]
        with pytest.raises(PermanentError):
            servers.use(hosts)
        assert not servers.made[0].closed
        with pytest.raises(ValueError, match="bug"):
            servers.use(hosts)
        assert servers.made[0].closed

    def test_no_secret(self) -> None:
        """What shows a host does not show its password."""
        assert "secret" not in repr(Host("a", 0, b"password=secret"))
