"""What docs/cluster.rst shows can be used, and its defaults are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from socketmap_memcache.config.parameters import Parameters
from socketmap_memcache.config.syntax import parse
from socketmap_memcache.errors import Problem
from socketmap_memcache.memcache.link import FIRST_PROBE, LAST_PROBE
from socketmap_memcache.memcache.members import FailureRule
from socketmap_memcache.memcache.owed import OWED_LIMIT, REFUSED_PAUSE
from socketmap_memcache.memcache.probe import PROBE_KEY
from socketmap_memcache.memcache.server_list import parse_server_list
from socketmap_memcache.tables.cluster_cf import read_failure_rule

TEXT = (Path(__file__).parents[2] / "docs" / "cluster.rst").read_text()
SHOWN = ["".join(lines).replace("    ", "") for lines in re.findall(r"^((?:    \w+ = .*\n)+)", TEXT, re.MULTILINE)]


@pytest.mark.parametrize(
    "lines,rule",
    list(zip(SHOWN, [FailureRule(), FailureRule(stand_in=True), FailureRule(replicas=2)], strict=True)),
)
def test_examples(lines: str, rule: FailureRule) -> None:
    """The lines of .cf files are what the text says of them, and nothing is wrong with them."""
    parameters = Parameters(parse(lines.encode(), "x.cf"))
    servers = parse_server_list(parameters.text("memcache", ""))
    assert len(servers) == 3
    assert read_failure_rule(parameters, len(servers)) == rule
    parameters.accept(("ttl", "backup"))
    warnings: list[Problem] = []
    parameters.unknown(fatal=False)
    parameters.finish(warnings)
    assert warnings == []


def test_defaults() -> None:
    """The defaults and figures are those of the code."""
    entries = dict(re.findall(r"^``(\w+)`` \(default: ``(.*)``\)$", TEXT, re.MULTILINE))
    rule = FailureRule()
    assert entries == {
        "memcache_failure": "next" if rule.stand_in else "backup",
        "failover_ttl": f"{rule.failover_ttl}s",
        "replicas": f"{rule.replicas}",
    }
    assert f"{OWED_LIMIT:,} keys" in TEXT
    assert (FIRST_PROBE, LAST_PROBE, REFUSED_PAUSE) == (0.1, 1, 5)
    assert PROBE_KEY.decode() in TEXT
