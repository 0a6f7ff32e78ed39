from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from socketmap_memcache.config.parameters import Parameters
from socketmap_memcache.config.syntax import parse
from socketmap_memcache.errors import ConfigurationError, Problem
from socketmap_memcache.memcache.client import MemcacheClient
from socketmap_memcache.memcache.cluster import Cluster
from socketmap_memcache.memcache.members import FailureRule
from socketmap_memcache.memcache.pool import ClientPool
from socketmap_memcache.memcache.signed import SignedCache
from socketmap_memcache.tables.cluster_cf import read_failure_rule
from socketmap_memcache.tables.memcache import MemcacheTable
from socketmap_memcache.tables.registry import TableContext


def read(lines: str, servers: int = 3) -> tuple[FailureRule, list[str]]:
    parameters = Parameters(parse(lines.encode(), "x.cf"))
    rule = read_failure_rule(parameters, servers)
    warnings: list[Problem] = []
    parameters.finish(warnings)
    return rule, [str(problem) for problem in warnings]


@pytest.mark.parametrize(
    "lines,rule",
    [
        ("", FailureRule(stand_in=False, failover_ttl=60, replicas=1)),
        ("memcache_failure = backup\n", FailureRule()),
        ("memcache_failure = next\nbackup = x:\n", FailureRule(stand_in=True)),
        ("memcache_failure = next\nfailover_ttl = 5m\nbackup = x:\n", FailureRule(stand_in=True, failover_ttl=300)),
        ("replicas = 3\n", FailureRule(replicas=3)),
        ("memcache_failure = next\nreplicas = 2\nbackup = x:\n", FailureRule(stand_in=True, replicas=2)),
    ],
)
def test_good(lines: str, rule: FailureRule) -> None:
    """The rule is what the file says, or the default."""
    assert read(lines) == (rule, [])


@pytest.mark.parametrize(
    "lines,error",
    [
        ("memcache_failure = other\n", "x.cf:1: bad memcache_failure value 'other' (backup or next is needed)"),
        ("failover_ttl = 0\n", "x.cf:1: failover_ttl = 0 s is not between 1 s and 30 days"),
        ("failover_ttl = 31d\n", "x.cf:1: failover_ttl = 2678400 s is not between 1 s and 30 days"),
        ("replicas = 0\n", "x.cf:1: invalid replicas parameter value 0 < 1"),
        ("replicas = 4\n", "x.cf:1: replicas = 4 needs as many servers; memcache has 3"),
    ],
)
def test_bad(lines: str, error: str) -> None:
    """What cannot be is an error with its line."""
    with pytest.raises(ConfigurationError) as caught:
        read(lines)
    assert [str(problem) for problem in caught.value.problems] == [error]


def test_warnings() -> None:
    """What has no effect, or a surprising one, is a warning."""
    assert read("failover_ttl = 5\n")[1] == ["x.cf:1: failover_ttl means nothing without memcache_failure = next"]
    next_server = "memcache_failure = next\n"
    assert read(next_server, servers=1)[1] == ["x.cf:1: memcache_failure = next means nothing with one server"]
    assert read(f"{next_server}replicas = 2\n")[1] == []
    (warning,) = read(next_server)[1]
    assert warning.endswith(" is forgotten after failover_ttl; replicas = 2 keeps it")


class TestOpen(SynchronousTestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory(prefix="cluster-")
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name) / "t.cf"
        self.context = TableContext(ClientPool(MemoryReactorClock()))

    def open(self, lines: str) -> MemcacheTable:
        self.path.write_text(lines)
        table = self.context.open_table(f"memcache:{self.path}")
        assert isinstance(table, MemcacheTable)
        self.addCleanup(table.close)
        assert self.context.warnings == []
        return table

    def test_one(self) -> None:
        """One server, with or without a weight, is asked without a cluster."""
        for server in ("inet:mc1:11211", "{inet:mc1:11211, weight=2}"):
            assert isinstance(self.open(f"memcache = {server}\n")._cache, MemcacheClient)

    def test_several(self) -> None:
        """Several are a cluster; its clients are those of other tables with the same servers."""
        cache = self.open("memcache = inet:mc1:11211, {unix:/mc2, weight=2}\nreplicas = 2\n")._cache
        assert isinstance(cache, Cluster)
        assert cache.name == "inet:mc1:11211, unix:/mc2"
        assert self.open("memcache = unix:/mc2\n")._cache is cache._clients[1]

    def test_signed(self) -> None:
        """Each server of several has its own signatures: what one has without one does not hide what another has."""
        keys = self.path.with_name("keys")
        keys.touch(0o600)
        keys.write_text("00" * 32)
        cache = self.open(f"memcache = inet:mc1:11211, unix:/mc2\nreplicas = 2\nsigning_key_file = {keys}\n")._cache
        assert isinstance(cache, Cluster)
        assert [type(client) for client in cache._clients] == [SignedCache, SignedCache]
        assert isinstance(self.open(f"memcache = unix:/mc2\nsigning_key_file = {keys}\n")._cache, SignedCache)

    def test_bad_list(self) -> None:
        """A bad list is one error; what else is said of the servers is wrong only if it is so with any list."""
        lines = "memcache = memory:, unix:/x\nreplicas = 2\n"
        assert len(self.assertRaises(ConfigurationError, self.open, lines).problems) == 1
        caught = self.assertRaises(ConfigurationError, self.open, f"{lines}memcache_failure = other\n")
        assert [problem.line for problem in caught.problems] == [1, 3]

    def test_all_errors(self) -> None:
        """Whatever is wrong with the parameters that Postfix does not have is told at once, each with its line."""
        wrong = [
            "memcache_failure = other",
            "failover_ttl = 0",
            "replicas = 3",
            "tls_ca_file = /x",
            "username = a:b",
            "password_file = /x",
            "signing_key_file = /x",
            "lease = maybe",
            "lease_timeout = 61",
            "stale_ttl = x",
            "negative_ttl = 31d",
            "local_ttl = 31d",
            "local_size_limit = 0",
            "backup = nonsense:/x",
        ]
        lines = "\n".join(["memcache = inet:mc1:11211, inet:mc2:11211", *wrong])
        caught = self.assertRaises(ConfigurationError, self.open, lines)
        assert [(problem.path, problem.line) for problem in caught.problems] == [
            (str(self.path), number) for number in range(2, len(wrong) + 2)
        ]

    def test_backed(self) -> None:
        """A change that a cache misses is owed to it where there is a backup."""
        assert self.open("backup = static:x\n")._settings.limits.backed
        assert not self.open("")._settings.limits.backed
