"""What a request costs in long whitelists, beside short ones: ``python -m benchmarks.whitelist``.

The mark: 10,000 networks and 10,000 names cost no more than 2 us a request over 10 of each.
"""

from __future__ import annotations

import sys
from random import Random
from time import perf_counter

from socketmap_memcache.policies.greylist.whitelist_match import ClientMatcher
from socketmap_memcache.policies.greylist.whitelist_syntax import parse_clients

MOST_ADDED = 2.0
"""Microseconds."""

_SHORT, _LONG = 10, 10_000
_REQUESTS = 20_000
_ROUNDS = 5
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


def main() -> int:
    """Print what a request costs in each; return 1 if the mark is missed."""
    random = Random(1)  # noqa: S311 (nothing secret)
    matchers = {count: ClientMatcher(parse_clients(_list(random, count), "list", [])) for count in (_SHORT, _LONG)}
    requests = [(_name(random), _address(random)) for _ in range(_REQUESTS)]
    best = dict.fromkeys(matchers, float("inf"))
    for _ in range(_ROUNDS):  # in turn, because the machine may have other things to do
        for count, matcher in matchers.items():
            best[count] = min(best[count], _microseconds(matcher, requests))
    for count, microseconds in best.items():
        print(f"{count:6d} networks and as many names: {microseconds:.2f} us a request")
    added = best[_LONG] - best[_SHORT]
    print(f"added by the long list: {added:.2f} us a request, at most {MOST_ADDED:g}")
    return int(added > MOST_ADDED)


if __name__ == "__main__":
    sys.exit(main())
