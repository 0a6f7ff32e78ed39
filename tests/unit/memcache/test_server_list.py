from __future__ import annotations

import re
from pathlib import Path

import pytest

from socketmap_memcache.memcache.server import Server
from socketmap_memcache.memcache.server_list import WeightedServer, parse_server_list


@pytest.mark.parametrize(
    "text",
    ["inet:localhost:11211", "inet:[2001:db8::1]:1", "inet:11211", "inet:mc:smtp", "unix:/run/a:b=c", "local:/run/mc"],
)
def test_one(text: str) -> None:
    """One server is written as memcache_table(5) has it."""
    assert parse_server_list(text) == [WeightedServer(Server.parse(text), 1)]


@pytest.mark.parametrize(
    "text, weights",
    [
        ("inet:mc1:11211, inet:mc2:11211", [1, 1]),
        ("inet:mc1:11211 inet:mc2:11211,unix:/run/mc3", [1, 1, 1]),
        (",inet:mc1:11211,\n\tinet:mc2:11211,", [1, 1]),
        ("{inet:mc1:11211, weight=2}, inet:mc2:11211", [2, 1]),
        ("inet:mc1:11211 { inet:mc2:11211 { weight = 3 } }", [1, 3]),
        ("{unix:/run/mc1, weight=7}", [7]),
    ],
)
def test_several(text: str, weights: list[int]) -> None:
    """Several stand between commas and blanks, and braces give one a weight."""
    servers = parse_server_list(text)
    assert [entry.weight for entry in servers] == weights
    for number, entry in enumerate(servers, 1):
        assert f"mc{number}" in entry.server.name


@pytest.mark.parametrize(
    "text, label",
    [
        ("inet:mc1:11211", "mc1"),
        ("inet:mc1:11212", "mc1:11212"),
        ("inet:[::1]:11211", "::1"),
        ("inet:[::1]:11212", "::1:11212"),
        ("inet:11211", "localhost"),
        ("inet:mc1:smtp", "mc1:25"),
        ("unix:/run/memcached.sock", "/run/memcached.sock:0"),
    ],
)
def test_label(text: str, label: str) -> None:
    """A server's label is that of libmemcached."""
    (entry,) = parse_server_list(text)
    assert entry.label == label


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "'' is not a server: write inet:host:port"),
        (" , ", "is not a server"),
        ("{}", "'' is not a server"),
        ("mc1:11211", "'mc1:11211' is not a server"),
        ("inet:mc1:11211, mc2", "'mc2' is not a server"),
        ("inet:mc1:0 inet:mc2:11211", "port 0 is not between 1 and 65535"),
        ("{{inet:mc1:11211}}", "'{inet:mc1:11211}' is not a server"),
        ("{inet:mc1:11211, weight=2", "missing '}'"),
        ("{inet:mc1:11211, weight=0}", "{inet:mc1:11211, weight=0}: a weight is a whole number from 1 to 1000000"),
        ("{inet:mc1:11211, weight=-1}", "a weight is a whole number"),
        ("{inet:mc1:11211, weight=1.5}", "a weight is a whole number"),
        ("{inet:mc1:11211, weight=}", "a weight is a whole number"),
        ("{inet:mc1:11211, weight=two}", "a weight is a whole number"),
        ("{inet:mc1:11211, weight=1000001}", "a weight is a whole number"),
        ("{inet:mc1:11211, wieght=2}", "unknown option 'wieght'; there is only weight=number"),
        ("{inet:mc1:11211, 2}", "'2': write name=value"),
        ("{inet:mc1:11211, weight = 2}", "'weight': write name=value, or { name = value }"),
        ("{}inet:mc1:11211", "syntax error after '}'"),
        ("inet:mc1:11211 {inet:mc2:11211, weight=1000}", "inet:mc1:11211: with a weight of 1 beside the others"),
        ("inet:mc1:11211, inet:mc1:11211", "inet:mc1:11211 is the same server as inet:mc1:11211"),
        ("{inet:mc1:25, weight=2}, inet:mc1:smtp", "inet:mc1:smtp is the same server as inet:mc1:25"),
        ("inet:mc1:11211, inet:MC1.:11211", "inet:MC1.:11211 is the same server as inet:mc1:11211"),
        ("inet:[::1]:25, tls:[0:0::0:1]:25", "tls:[0:0::0:1]:25 is the same server as inet:[::1]:25"),
        ("unix:/run/mc, local:/run/mc", "local:/run/mc is the same server as unix:/run/mc"),
        ("inet:mc1:11211, memory:", "memory: cannot be one of several servers"),
        ("{memory:, weight=2}", "memory: cannot be one of several servers, nor have a weight"),
    ],
)
def test_errors(text: str, reason: str) -> None:
    """What cannot be used is refused with a reason."""
    with pytest.raises(ValueError, match=re.escape(reason)):
        parse_server_list(text)


def test_documentation() -> None:
    """The lists of servers that docs/ring.rst shows can be used, and the labels that it shows are the real ones."""
    text = (Path(__file__).parents[3] / "docs/ring.rst").read_text()
    lists = re.findall(r"^    memcache = (.*)$", text, re.MULTILINE)
    assert [[entry.weight for entry in parse_server_list(shown)] for shown in lists] == [[1, 1, 1], [2, 1]]
    labels = re.findall(r"^``((?:inet|unix):\S+)`` +``(\S+)``$", text, re.MULTILINE)
    assert len(labels) == 4
    for server, label in labels:
        assert parse_server_list(server)[0].label == label
