from __future__ import annotations

from collections import Counter

import pytest

from socketmap_memcache.memcache.ring import Ring, label, point_counts

KEYS = [
    *(b"user%d@example.com" % number for number in range(50)),
    *(bytes([number, 255 - number, number]) for number in range(128, 178)),
]
MANY = [b"key%d" % number for number in range(20_000)]


@pytest.mark.parametrize(
    "servers, expected",
    [
        (
            [("mc1", 1), ("mc2", 1), ("mc3", 1)],
            "1010200000202000001001101000110022121112012220212202222100000000222001012120210202221220122111212121",
        ),
        (
            [("192.0.2.1", 3), ("192.0.2.1:11212", 1), ("2001:db8::1", 1), ("/run/memcached.sock:0", 2)],
            "1300310002132330133001233100333323330333313030032213203020023000333130333010020310302011311300330032",
        ),
        (
            [(f"mc{number}:11300", number + 1) for number in range(9)],
            "6355873275338668715044178578487283877057328352861575888666125260754565480743675367445847535888486273",
        ),
        (
            [("mc0", 1), ("mc1", 3), ("mc2", 7), ("mc3", 7), ("mc4", 7)],
            "2403014333343441312412422244224243232423424234323444433244211134323114423331243343332301433224423242",
        ),
    ],
)
def test_libmemcached(servers: list[tuple[str, int]], expected: str) -> None:
    """Keys, of 8-bit bytes too, go where libmemcached 1.0.16 with ketama_weighted sends them."""
    ring = Ring(servers)
    assert "".join(str(ring.index_of(key)) for key in KEYS) == expected


@pytest.mark.parametrize(
    "weights, counts",
    [
        ([1], [160]),
        ([5], [160]),
        ([1, 1, 1], [160, 160, 160]),
        ([1, 3], [80, 240]),
        ([1, 3, 7, 7, 7], [28, 92, 224, 224, 224]),  # exactly: 32, 96 and thrice 224
        ([1] * 25, [156] * 25),
        ([1, 1000], [0, 316]),
    ],
)
def test_points(weights: list[int], counts: list[int]) -> None:
    """Weights share 160 points for each server, rounded down as floats of 32 bits are."""
    assert point_counts(weights) == counts


@pytest.mark.parametrize(
    "host, port, expected",
    [
        ("mc1", 11211, "mc1"),
        ("mc1", 11212, "mc1:11212"),
        ("2001:db8::1", 11211, "2001:db8::1"),
        ("2001:db8::1", 1, "2001:db8::1:1"),
        ("/run/memcached.sock", 0, "/run/memcached.sock:0"),
    ],
)
def test_label(host: str, port: int, expected: str) -> None:
    """A label is that of libmemcached, which leaves out its default port."""
    assert label(host, port) == expected


def test_label_of_any_bytes() -> None:
    """The path of a UNIX socket may have bytes that are no text."""
    assert Ring([("/run/\udcff:0", 1)]).index_of(b"key") == 0


def test_one_server() -> None:
    """All keys belong to the only server."""
    ring = Ring([("mc1", 7)])
    assert {ring.index_of(key) for key in KEYS} == {0}
    assert {ring.order(key) for key in KEYS} == {(0,)}


def test_order_begins_at_the_owner() -> None:
    """The order of a key has each server once, and begins with the one that the key belongs to."""
    ring = Ring([("mc1", 1), ("mc2", 2), ("mc3", 1), ("mc4", 5)])
    for key in [*MANY, *MANY]:  # the second time from memory
        order = ring.order(key)
        assert order[0] == ring.index_of(key)
        assert sorted(order) == [0, 1, 2, 3]


def test_order_without_a_server() -> None:
    """Without a server its keys go to the next of their order, and all others stay."""
    names = ["mc1", "mc2", "mc3", "mc4"]
    ring = Ring([(name, 1) for name in names])
    for gone, name in enumerate(names):
        others = [other for other in names if other != name]
        smaller = Ring([(other, 1) for other in others])
        for key in MANY[:2000]:
            expected = [names[number] for number in ring.order(key) if number != gone]
            assert [others[number] for number in smaller.order(key)] == expected


def test_order_of_servers_without_points() -> None:
    """A server with too little weight for any key is the last of each order."""
    ring = Ring([("mc1", 1), ("mc2", 1000), ("mc3", 1000)])
    assert {ring.order(key) for key in MANY} == {(1, 2, 0), (2, 1, 0)}


def test_weights() -> None:
    """A server has about as many keys as its weight says."""
    ring = Ring([("mc1", 1), ("mc2", 2), ("mc3", 5)])
    counts = Counter(map(ring.index_of, MANY))
    for server, weight in enumerate((1, 2, 5)):
        assert 0.7 < counts[server] / (len(MANY) * weight / 8) < 1.3


def test_sequence_of_servers() -> None:
    """Hosts may list the servers in any order: the labels count."""
    names = ["mc1", "mc2", "mc3", "mc4", "mc5"]
    ring, reverse = (Ring([(name, 1) for name in sequence]) for sequence in (names, names[::-1]))
    for key in MANY:
        assert ring.index_of(key) == 4 - reverse.index_of(key)


def test_one_more_server() -> None:
    """When a server is added, the keys that move are its share, and move to it."""
    names = ["mc1", "mc2", "mc3", "mc4"]
    before = Ring([(name, 1) for name in names])
    after = Ring([(name, 1) for name in [*names, "mc5"]])
    moved = [key for key in MANY if before.index_of(key) != after.index_of(key)]
    assert {after.index_of(key) for key in moved} == {4}
    assert 0.14 < len(moved) / len(MANY) < 0.26
