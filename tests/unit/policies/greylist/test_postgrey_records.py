from __future__ import annotations

import attrs
import pytest

from socketmap_memcache.policies.greylist.postgrey_records import CLIENTS, TRIPLETS, has_our_network
from socketmap_memcache.policies.greylist.record import Client, RecordError, Triplet
from socketmap_memcache.policies.greylist.settings import Settings

HASH = b"0123456789abcdef0123456789abcdef01234567"
SETTINGS = Settings()
PRIVATE = attrs.evolve(SETTINGS, privacy=True)
BY_HOST = attrs.evolve(SETTINGS, lookup_by_host=True)
DAY = 24 * 3600


@pytest.mark.parametrize("value", [b"1,2", b"1,2,host"])
def test_triplet(value: bytes) -> None:
    """A triplet has the same key behind t/; the part of the host that postgrey once had in the value is left out."""
    entry = TRIPLETS.read(b"192.0.2.0/a@b/c@d", value, SETTINGS)
    assert entry == (b"t/192.0.2.0/a@b/c@d", Triplet(1, 2))


def test_client() -> None:
    """A client has the address that is asked for here, also where postgrey writes it in another way."""
    assert CLIENTS.read(b"192.0.2.7", b"5,6", SETTINGS) == (b"c/192.0.2.7", Client(5, 6))
    assert CLIENTS.read(b"2001:DB8:0:0:0:0:0:1", b"5,6", SETTINGS)[0] == b"c/2001:db8:0:0:0:0:0:1"
    assert CLIENTS.read(b"0:0:0:0:0:FFFF:C000:207", b"5,6", SETTINGS)[0] == b"c/192.0.2.7"


def test_hashed() -> None:
    """A hashed key is taken as it is, and one in clear is hashed where ours are."""
    assert TRIPLETS.read(HASH, b"1,2", PRIVATE)[0] == b"t/" + HASH
    assert CLIENTS.read(HASH, b"1,2", PRIVATE)[0] == b"c/" + HASH
    clear = TRIPLETS.read(b"192.0.2.0/a@b/c@d", b"1,2", PRIVATE)[0]
    assert clear == b"t/0f8018d80a85e3ff08f7cf0396380e263d2a7c5b"


@pytest.mark.parametrize("key,value", [(b"a/b/c", b"1"), (b"a/b/c", b"x,2"), (b"a/b", b"1,2"), (b"a/b/c", b"")])
def test_no_triplet(key: bytes, value: bytes) -> None:
    """What is no triplet of postgrey's is an error."""
    with pytest.raises(RecordError):
        TRIPLETS.read(key, value, SETTINGS)


@pytest.mark.parametrize("key,value", [(b"192.0.2.7", b"1"), (b"unknown", b"1,2")])
def test_no_client(key: bytes, value: bytes) -> None:
    """What is no client of postgrey's is an error."""
    with pytest.raises(RecordError):
        CLIENTS.read(key, value, SETTINGS)


def test_join() -> None:
    """Two records of the same become what one would be that had seen all."""
    assert TRIPLETS.join(Triplet(1, 9), Triplet(2, 10)) == Triplet(1, 10)
    assert TRIPLETS.join(Triplet(2, 10), Triplet(1, 9)) == Triplet(1, 10)
    assert CLIENTS.join(Client(5, 1), Client(4, 2)) == Client(5, 2)


def test_ttl() -> None:
    """A record is kept as long as it makes a difference, and no longer than one that is new."""
    waiting, passed = Triplet(1000, 1100), Triplet(1000, 1300)
    assert TRIPLETS.ttl(waiting, 1100, SETTINGS) == 2 * DAY - 99
    assert TRIPLETS.ttl(passed, 1400, SETTINGS) == 35 * DAY - 99
    assert TRIPLETS.ttl(passed, 0, SETTINGS) == 35 * DAY + 1
    assert CLIENTS.ttl(Client(1, 1000), 1000 + 35 * DAY, SETTINGS) == 1


@pytest.mark.parametrize(
    "key,settings,expected",
    [
        (b"192.0.2.0/a@b/c@d", SETTINGS, True),
        (b"192.0.2.7/a@b/c@d", SETTINGS, False),
        (b"192.0.2.7/32/a@b/c@d", SETTINGS, False),
        (b"192.0.2.7/32/a@b/c@d", BY_HOST, True),
        (b"192.0.2.0//c@d", BY_HOST, False),
        (b"2001:db8:1:2:0:0:0:0//c@d", SETTINGS, True),
        (b"2001:db8:1:2:0:0:0:1/128//c@d", BY_HOST, True),
        (b"unknown//c@d", SETTINGS, False),
        (HASH, SETTINGS, True),
    ],
)
def test_network(key: bytes, settings: Settings, expected: bool) -> None:
    """A triplet whose network is not of the size that is asked for is told from others."""
    assert has_our_network(key, settings) is expected
