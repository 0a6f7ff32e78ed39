"""Where the ring looks for keys, against libmemcached itself: not one of them elsewhere."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from random import Random

import pytest

from socketmap_memcache.memcache.ring import Ring
from socketmap_memcache.memcache.server_list import WeightedServer, parse_server_list

from .harness.libmemcached import Libmemcached
from .harness.memcached import Memcached
from .harness.processes import scratch_directory

RINGS = [
    "inet:mc1:11211, inet:mc2:11211",
    "inet:mc1:11211, inet:mc2:11212, inet:192.0.2.1:1, unix:/run/memcached/socket",
    "{inet:mc1.example.com:11211, weight=3}, {inet:mc2.example.com:11300, weight=1}, inet:[2001:db8::1]:11211",
    "inet:[2001:db8::1]:11212, {unix:/run/memcached/socket, weight=7}, {inet:mc:65535, weight=100}",
    ", ".join(f"{{inet:10.0.0.{number}:11211, weight={weight}}}" for number, weight in enumerate((1, 3, 7, 7, 7))),
]


@pytest.fixture
def random(request: pytest.FixtureRequest) -> Random:
    seed = request.config.getoption("--differential-seed")
    print(f"--differential-seed={seed}")
    return Random(seed)


def keys(random: Random, count: int) -> list[bytes]:
    """Give keys: half of them addresses, half of them any bytes that memcached takes."""
    allowed = bytes(number for number in range(33, 256) if number != 127)
    addresses = [b"table:user%d@example%d.com" % (number, number % 7) for number in range(count // 2)]
    return addresses + [bytes(random.choices(allowed, k=random.randint(1, 40))) for _ in addresses]


def differences(servers: list[WeightedServer], keys: list[bytes]) -> int:
    """Return how many of the keys are elsewhere for libmemcached."""
    with closing(Libmemcached(servers)) as libmemcached:
        expected = libmemcached.places(keys)
    ring = Ring([(entry.label, entry.weight) for entry in servers])
    return sum(map(int.__ne__, map(ring.index_of, keys), expected))


@pytest.mark.parametrize("text", RINGS)
def test_rings(text: str, random: Random) -> None:
    """Of 200,000 keys none is elsewhere."""
    assert differences(parse_server_list(text), keys(random, 200_000)) == 0


def test_random_rings(random: Random) -> None:
    """Of many keys none is elsewhere on rings of any size, with any weights, or all with the same."""
    some = keys(random, 2000)
    for count in range(1, 60):
        hosts = [f"inet:{'mc' if random.random() < 0.5 else '10.0.0.'}{number}" for number in range(count)]
        ports = random.choices([11211, 11212, 1, 65535], k=count)
        most = random.choice([1, 2, 5])
        weights = [random.randint(1, most) * random.choice([1, most]) for _ in hosts]
        text = " ".join(
            f"{{{host}:{port},weight={weight}}}" for host, port, weight in zip(hosts, ports, weights, strict=True)
        )
        assert differences(parse_server_list(text), some) == 0, text


class Site:
    """Four memcached, one of them on memcached's own port, and one on a UNIX socket."""

    def __init__(self, stack: ExitStack) -> None:
        directory = stack.enter_context(scratch_directory())
        with socket.socket() as probe:  # for an address whose port 11211 is nobody's
            probe.bind((f"127.{Random().randint(1, 254)}.{Random().randint(1, 254)}.1", 11211))
            place = "{}:{}".format(*probe.getsockname())
        self.memcacheds = []
        for number, where in enumerate(({"place": place}, {"tcp": True}, {"tcp": True}, {})):
            (directory / str(number)).mkdir()
            self.memcacheds.append(stack.enter_context(Memcached(directory / str(number), **where)))  # type: ignore[arg-type]
        addresses = [memcached.address for memcached in self.memcacheds]
        self.servers = parse_server_list(f"{addresses[0]} {{{addresses[1]}, weight=2}} {addresses[2]} {addresses[3]}")
        self.ring = Ring([(entry.label, entry.weight) for entry in self.servers])
        self.libmemcached = stack.enter_context(closing(Libmemcached(self.servers)))


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(stack)


class TestValues:
    def test_written_by_libmemcached(self, site: Site, random: Random) -> None:
        """What libmemcached writes is where the ring looks."""
        for key in keys(random, 1000):
            site.libmemcached.set(key, b"value of " + key)
            assert site.memcacheds[site.ring.index_of(key)].get(key) == b"value of " + key

    def test_written_by_the_ring(self, site: Site, random: Random) -> None:
        """What is written where the ring says is found by libmemcached."""
        some = keys(random, 1000)
        for number, memcached in enumerate(site.memcacheds):
            memcached.set_many({key: b"%d" % number for key in some if site.ring.index_of(key) == number})
        assert {site.libmemcached.get(key) for key in some} == {b"0", b"1", b"2", b"3"}
