"""Who is in a whitelist."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from time import process_time
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketmap_memcache.errors import Problem
from socketmap_memcache.policies.greylist import whitelist_match
from socketmap_memcache.policies.greylist.whitelist_match import (
    ClientMatcher,
    DomainSet,
    MailMatcher,
    NetworkSet,
    SlowExpressionError,
)
from socketmap_memcache.policies.greylist.whitelist_syntax import (
    Domain,
    Network,
    parse_clients,
    parse_recipients,
    parse_senders,
)
from socketmap_memcache.tables.time_limit import TimeLimitError, call_with_limit


def clients(*lines: bytes) -> ClientMatcher:
    problems: list[Problem] = []
    matcher = ClientMatcher(parse_clients(b"\n".join(lines), "list", problems))
    assert problems == []
    return matcher


def senders(*lines: bytes) -> MailMatcher:
    problems: list[Problem] = []
    matcher = MailMatcher(parse_senders(b"\n".join(lines), "list", problems))
    assert problems == []
    return matcher


@pytest.mark.parametrize(
    "line, yes, no",
    [
        (b"example.com", [b"example.com", b"a.b.Example.COM"], [b"anexample.com", b"example.com.net", b"com", b""]),
        (b".example.com", [b"a.example.com", b"a.b.example.com"], [b"example.com", b"aexample.com"]),
        (b"*.example.com", [b"a.example.com"], [b"example.com"]),
        (b"unknown", [b"unknown", b"a.unknown"], [b"known"]),
        (b"/^mx\\d+\\./", [b"mx1.example", b"MX22.example"], [b"mx.example", b"a.mx1.example"]),
        (b"/(.)\\1\\./", [b"aa.example"], [b"ab.example"]),
        (b"/^x/", [b"x" * 512], [b"x" * 513]),
    ],
)
def test_client_names(line: bytes, yes: Iterable[bytes], no: Iterable[bytes]) -> None:
    """A client is in the list by its name, the whole of it or, from a dot on, its end, or by an expression."""
    matcher = clients(line)
    assert [name for name in yes if not matcher.matches(name, b"192.0.2.1")] == []
    assert [name for name in no if matcher.matches(name, b"192.0.2.1")] == []


@pytest.mark.parametrize(
    "line, yes, no",
    [
        (b"192.0.2.1", [b"192.0.2.1", b"::ffff:192.0.2.1"], [b"192.0.2.2", b"::192.0.2.1"]),
        (b"192.0.2", [b"192.0.2.0", b"192.0.2.255"], [b"192.0.1.255", b"192.0.3.0"]),
        (b"192.0", [b"192.0.0.0", b"192.0.255.255"], [b"192.1.0.0"]),
        (b"192.0.2.128/25", [b"192.0.2.129"], [b"192.0.2.127", b"192.0.3.0"]),
        (b"0.0.0.0/0", [b"1.2.3.4", b"::ffff:1.2.3.4"], [b"::1"]),
        (b"::/0", [b"::1", b"ffff::"], [b"1.2.3.4", b"::ffff:1.2.3.4"]),
        (b"2001:db8::/33", [b"2001:DB8:0:0::5"], [b"2001:db8:8000::"]),
        (b"0.0.0.0/0", [], [b"", b"unknown", b"1.2.3", b"1.2.3.4 ", b"1.2.3.4.5", b"\xff"]),
        (b"::/0", [], [b"fe80::1%eth0", b"2001:db8::/32", b"IPv6:::1"]),
    ],
)
def test_client_addresses(line: bytes, yes: Iterable[bytes], no: Iterable[bytes]) -> None:
    """A client is in the list by its address; what is no address matches none, and IPv4 and IPv6 are kept apart."""
    matcher = clients(line)
    assert [address for address in yes if not matcher.matches(b"unknown", address)] == []
    assert [address for address in no if matcher.matches(b"unknown", address)] == []


def test_long_name() -> None:
    """A client with a name that is too long for the list is still looked for by its address."""
    assert clients(b"192.0.2.1").matches(b"x" * 100000, b"192.0.2.1")
    assert not clients(b"x").matches(b".x" * 50000, b"192.0.2.1")


@pytest.mark.parametrize(
    "line, yes, no",
    [
        (
            b"user@example.com",
            [b"user@example.com", b"USER@Example.Com", b"user+x@example.com", b"user+x+y@example.com"],
            [b"user@a.example.com", b"user+@example.com", b"a.user@example.com", b"user", b"users@example.com"],
        ),
        (b"user+x@example.com", [b"user+x+y@example.com"], [b"user+y@example.com", b"user@example.com"]),
        (b"user@", [b"user@a.example", b"user+x@b.example", b"user"], [b"users@a.example", b"+user@a.example"]),
        (b"+@", [b"+@a.example", b"++x@a.example"], [b"+x@a.example"]),
        (
            b"example.com",
            [b"a@example.com", b"b@c.example.com"],
            [b"a@anexample.com", b"example.com", b"a.example.com"],
        ),
        (b"@example.com", [b"a@Example.com"], [b"a@b.example.com", b"a"]),
        (b".example.com", [b"a@b.example.com", b"a@b.c.example.com"], [b"a@example.com"]),
        (b"[192.0.2.1]", [b"a@[192.0.2.1]"], [b"a@192.0.2.1"]),
        (b"/^news-\\d+@/", [b"News-12@example.com"], [b"news@example.com"]),
        (b"/./", [b"x" * 512], [b"", b"x" * 513]),
        (b"<>", [b""], [b"a", b"@a"]),
        (b"a@", [], [b"", b"@", b"@a"]),
    ],
)
def test_mail_addresses(line: bytes, yes: Iterable[bytes], no: Iterable[bytes]) -> None:
    """An address is in the list by its user, with or without extension, by its domain, or by an expression."""
    matcher = senders(line)
    assert [address for address in yes if not matcher.matches(address)] == []
    assert [address for address in no if matcher.matches(address)] == []


def test_many_expressions() -> None:
    """Each of many expressions is found, whatever the others are."""
    matcher = MailMatcher(
        parse_recipients(b"".join(b"/^user%d@|^(b)ox%d@/\n" % (n, n) for n in range(250)), "list", [])
    )
    assert all(matcher.matches(b"box%d@example" % n) for n in range(250))
    assert not matcher.matches(b"box250@example")


def test_slow_expression() -> None:
    """An expression that takes too long is stopped, which is no answer, and set aside until they resume."""
    matcher = senders(b"/^b+!/", b"", b"/^(a|aa)+$/", b"/^(a|ab)+!$/")
    bad = b"a" * 100 + b"!"
    with mock.patch.object(whitelist_match, "TIME_LIMIT", 0.02):
        for _ in range(2):
            with pytest.raises(SlowExpressionError) as raised:
                matcher.matches(bad)
            assert raised.value.place == "list:3"
            assert matcher.matches(bad)
            assert not matcher.matches(b"aa")
            assert matcher.matches(b"bb!")
            matcher.resume()
            assert matcher.matches(b"aa")


def test_many_slow_expressions() -> None:
    """Of many expressions that are all slow, each takes up time once."""
    matcher = clients(*[b"/^(a|aa)+%d$/" % number for number in range(5)], b"/^a+!$/")
    places = []
    with mock.patch.object(whitelist_match, "TIME_LIMIT", 0.02):
        for _ in range(5):
            with pytest.raises(SlowExpressionError) as raised:
                matcher.matches(b"a" * 100, b"192.0.2.1")
            places.append(raised.value.place)
        assert not matcher.matches(b"a" * 100, b"192.0.2.1")
        assert matcher.matches(b"a!", b"192.0.2.1")
        assert sorted(places) == [f"list:{number}" for number in range(1, 6)]


def test_too_many_slow_expressions() -> None:
    """Where ten of a list have taken too long, the others are not searched either, until they resume."""
    matcher = senders(b"/^b/", *[b"/^(a|aa)+%d$/" % number for number in range(20)])
    bad, all_aside = b"a" * 100, []
    with mock.patch.object(whitelist_match, "TIME_LIMIT", 0.01):
        for _ in range(10):
            with pytest.raises(SlowExpressionError) as raised:
                matcher.matches(bad)
            all_aside.append(raised.value.all_aside)
        assert not matcher.matches(bad)
    assert all_aside == [False] * 9 + [True]
    assert not matcher.matches(b"b")
    matcher.resume()
    assert matcher.matches(b"b")


def test_slow_together() -> None:
    """Of expressions that take too long together, but not each for itself, the one that takes longest is set aside."""
    matcher = senders(b"/^b/", b"/a*a*a*a*!/", b"/^c/")
    stops = [True, False]

    def stopped_once(seconds: float, function: Callable[[bytes], object], argument: bytes) -> object:
        if stops.pop(0):
            raise TimeLimitError
        return call_with_limit(seconds, function, argument)

    with (
        mock.patch.object(whitelist_match, "call_with_limit", stopped_once),
        pytest.raises(SlowExpressionError) as raised,
    ):
        matcher.matches(b"a" * 60)
    assert raised.value.place == "list:2"
    assert matcher.matches(b"b")
    assert not matcher.matches(b"a!")


def test_names_after_resuming() -> None:
    """What was not found while an expression was set aside is found again afterwards."""
    matcher = clients(b"/^(a|aa)+$/")
    with mock.patch.object(whitelist_match, "TIME_LIMIT", 0.02), pytest.raises(SlowExpressionError):
        matcher.matches(b"a" * 100 + b"!", b"192.0.2.1")
    assert not matcher.matches(b"aa", b"192.0.2.1")
    matcher.resume()
    assert matcher.matches(b"aa", b"192.0.2.1")


def test_quick_expression() -> None:
    """A quick expression is found in any subject, with a time limit where the subject is a long one."""
    matcher = senders(b"/^a+@/")
    with mock.patch.object(whitelist_match, "call_with_limit", side_effect=TimeLimitError):
        assert matcher.matches(b"aaa@example.com")
        assert not matcher.matches(b"b@example.com")
        with pytest.raises(SlowExpressionError):
            matcher.matches(b"a" * 64 + b"@")
    matcher.resume()
    assert matcher.matches(b"a" * 64 + b"@")


@pytest.mark.parametrize("length", [64, 250])
@pytest.mark.parametrize(
    "expression", [b"[a-z]+[a-z.]+!%d", b"^.*.*.*!%d", b"^" + 27 * b"(?:a|aa)" + b"!%d", b"^" + 27 * b"a?" + b"!%d"]
)
def test_quick_is_quick(expression: bytes, length: int) -> None:
    """A hundred expressions of the worst that counts as quick, and a subject made for them, take no longer than one."""
    matcher = senders(*[b"/%b/" % (expression % number) for number in range(100)])
    started = process_time()
    with contextlib.suppress(SlowExpressionError):
        matcher.matches(b"a" * length)
    assert process_time() - started < 1


class Counted(frozenset[bytes]):
    """Counts how often it is asked."""

    asked = 0

    def __contains__(self, item: object) -> bool:
        self.asked += 1
        return super().__contains__(item)


class Compared(int):
    """Counts how often it is compared."""

    compared = 0

    def __lt__(self, other: int) -> bool:
        self.compared += 1
        return super().__lt__(other)


def test_cost_of_names() -> None:
    """A name costs one look-up for itself and one for each dot in it, however long the list is."""
    domains = DomainSet(Domain(b"host%d.example" % number) for number in range(10_000))
    themselves, above = Counted(domains._themselves), Counted(domains._above)
    domains._themselves, domains._above = themselves, above
    assert not domains.has(b"a.b.example.com")
    assert (themselves.asked, above.asked) == (1, 3)


def test_cost_of_addresses() -> None:
    """Ten thousand networks of any length cost no more than fourteen comparisons."""
    found = NetworkSet(Network(32, number << 16, (number << 16) + number) for number in range(10_000))
    value = Compared(5000 << 16)
    with mock.patch.object(whitelist_match, "parse_unmapped", return_value=(32, value)):
        assert found.has(b"0.0.0.0")
    assert 1 < value.compared <= 14


@given(st.lists(st.tuples(st.integers(0, 63), st.integers(0, 63))), st.integers(0, 70))
def test_ranges(ends: list[tuple[int, int]], value: int) -> None:
    """However ranges overlap, an address is in their union if it is in one of them."""
    networks = [Network(32, *sorted(pair)) for pair in ends]
    expected = any(network.first <= value <= network.last for network in networks)
    assert NetworkSet(networks).has(b"0.0.0.%d" % value) is expected
