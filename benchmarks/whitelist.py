"""What a long whitelist of clients adds to a request: 10,000 networks and as many names, beside 10 of each."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from time import perf_counter

from benchmarks.rows import Row
from benchmarks.session import Bench
from socketmap_memcache.policies.greylist.whitelist_match import ClientMatcher
from socketmap_memcache.policies.greylist.whitelist_syntax import parse_clients

_SHORT, _LONG = 10, 10_000
_REQUESTS = 20_000
_FIRST_IPV6 = 0x2001_0DB8 << 96


def _address(random: Random) -> bytes:
    if random.random() < 0.5:
        return b"%d.%d.%d.%d" % tuple(random.randrange(1, 224) for _ in range(4))
    return b"2001:db8:%x:%x::%x" % tuple(random.randrange(1 << 16) for _ in range(3))


def _name(random: Random) -> bytes:
    return b"host%d.net%d.example" % (random.randrange(1 << 20), random.randrange(1 << 10))


def _list(random: Random, count: int) -> bytes:
    lines = []
    for _ in range(count):
        address = _address(random)
        length = random.randrange(28, 65) if b":" in address else random.randrange(20, 33)
        lines += [b"%b/%d" % (address, length), _name(random)]
    return b"\n".join(lines)


def _microseconds(matcher: ClientMatcher, requests: list[tuple[bytes, bytes]]) -> float:
    started = perf_counter()
    for name, address in requests:
        matcher.matches(name, address)
    return (perf_counter() - started) / len(requests) * 1e6


def measure_whitelist(bench: Bench) -> Iterator[Row]:
    """Measure both, without a service around them."""
    random = Random(1)  # noqa: S311 (nothing secret)
    matchers = {count: ClientMatcher(parse_clients(_list(random, count), "list", [])) for count in (_SHORT, _LONG)}
    requests = [(_name(random), _address(random)) for _ in range(_REQUESTS)]
    best = dict.fromkeys(matchers, float("inf"))
    for _ in range(bench.rounds):  # in turn, because the machine may have other things to do
        for count, matcher in matchers.items():
            best[count] = min(best[count], _microseconds(matcher, requests))
    behind = f"{best[_LONG]:.2f} us against {best[_SHORT]:.2f} us with {_SHORT}"
    what = f"{_LONG:,} networks and names in a whitelist, added to a request"
    yield Row(what, best[_LONG] - best[_SHORT], " us", behind, mark=2.0, at_most=True)
