from __future__ import annotations

from hashlib import sha1, sha256
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketmap_memcache.policies.greylist.key import (
    CLIENT,
    PLAIN_LIMIT,
    TRIPLET,
    client_key,
    normalize_sender,
    parse_client,
    plain_triplet_key,
    table_key,
    triplet_key,
)
from socketmap_memcache.policies.greylist.settings import Settings
from socketmap_memcache.protocols.memcache import is_key
from socketmap_memcache.tables.folding import fold

SETTINGS = Settings()
BY_HOST = Settings(lookup_by_host=True)
PRIVATE = Settings(privacy=True)


class TestClient:
    @pytest.mark.parametrize(
        "address, text, network",
        [
            (b"10.1.2.3", b"10.1.2.3", b"10.1.2.0"),
            (b"255.255.255.255", b"255.255.255.255", b"255.255.255.0"),
            (b"2001:db8:1:2:3::a", b"2001:DB8:1:2:3:0:0:A", b"2001:DB8:1:2:0:0:0:0"),
            (b"::1", b"0:0:0:0:0:0:0:1", b"0:0:0:0:0:0:0:0"),
        ],
    )
    def test_network(self, address: bytes, text: bytes, network: bytes) -> None:
        """A client is known by its address, and belongs to a network; both as postgrey writes them."""
        assert parse_client(address, SETTINGS) == (text, network)

    def test_by_host(self) -> None:
        """Where hosts are told apart, the address stands for the network, with postgrey's prefix."""
        assert parse_client(b"10.1.2.3", BY_HOST) == (b"10.1.2.3", b"10.1.2.3/32")
        assert parse_client(b"2001:db8::", BY_HOST) == (b"2001:DB8:0:0:0:0:0:0", b"2001:DB8:0:0:0:0:0:0/128")

    @pytest.mark.parametrize("settings", [SETTINGS, BY_HOST])
    def test_mapped(self, settings: Settings) -> None:
        """An IPv4 address in IPv6 form is the IPv4 address."""
        assert parse_client(b"::ffff:10.1.2.3", settings) == parse_client(b"10.1.2.3", settings)
        assert parse_client(b"::FFFF:a01:203", settings) == parse_client(b"10.1.2.3", settings)

    @given(st.ip_addresses(), st.integers(1, 32), st.integers(1, 128))
    def test_any_prefix(self, address: object, ipv4_prefix: int, ipv6_prefix: int) -> None:
        """The network is what the prefix leaves of the address."""
        settings = Settings(ipv4_prefix=ipv4_prefix, ipv6_prefix=ipv6_prefix)
        client = parse_client(str(address).encode(), settings)
        assert client is not None
        parsed = ip_address(client.text.decode())
        prefix = ipv4_prefix if parsed.version == 4 else ipv6_prefix
        network = ip_network(f"{parsed}/{prefix}", strict=False)
        assert ip_address(client.network.decode()) == network.network_address

    @pytest.mark.parametrize(
        "address",
        [
            *(b"", b"unknown", b"localhost", b"1.2.3", b"1.2.3.4.5", b"1.2.3.256", b"01.2.3.4", b"1.2.3.4/24"),
            *(b" 1.2.3.4", b"1.2.3.4 ", b"1.2.3.4\0", b"\xff.2.3.4", "\u0661.2.3.4".encode()),
            *(b"fe80::1%eth0", b"2001:db8::/32", b"1:2", b":::", b"IPv6:::1", b"[::1]", b"1.2.3.4:25"),
        ],
    )
    def test_no_address(self, address: bytes) -> None:
        """What is no address has no key."""
        assert parse_client(address, SETTINGS) is None

    @given(st.binary())
    def test_garbage(self, address: bytes) -> None:
        """Any bytes are an address or none."""
        parse_client(address, SETTINGS)


class TestSender:
    @pytest.mark.parametrize(
        "sender, normalized",
        [
            (b"", b""),
            (b"nobody", b"nobody"),
            (b"12", b"12"),
            (b"user+list@x", b"user@x"),
            (b"+list@x", b"@x"),
            (b"@x", b"@x"),
            (b"a+b@c+d@x", b"a@c+d@x"),
            (b"a@12@x", b"a@12@x"),
            (b"bounce-123-456@x", b"bounce-#-#@x"),
            (b"a1b2@x", b"a1b2@x"),
            (b"x_123@x", b"x_123@x"),
            (b"v12.34-z@x", b"v12.#-z@x"),
            (b"50%off@x", b"#%off@x"),
            (b"\xe9" + b"12@x", b"\xe9#@x"),
            (b"12@34.example", b"#@34.example"),
            (b"prvs=0123456789=user@x", b"user@x"),
            (b"prvs=user=0123456789@x", b"user@x"),
            (b"prvs=one=two@x", b"two@x"),
            (b"prvs=0123456789=abcdefghij@x", b"abcdefghij@x"),
            (b"prvs=ABCDEFGHIJ=user@x", b"user@x"),
            (b"prvs=one=two=@x", b"two@x"),
            (b"prvs=one@x", b"prvs=one@x"),
            (b"prvs=a=b=c@x", b"prvs=a=b=c@x"),
            (b"prvs=@x", b"prvs=@x"),
            (b"PRVS=0123456789=user@x", b"PRVS=#=user@x"),
            (b"prvs=0123456789=user+12@x", b"user@x"),
        ],
    )
    def test_as_postgrey(self, sender: bytes, normalized: bytes) -> None:
        """BATV, extensions and numbers are left out as postgrey does."""
        assert normalize_sender(sender, SETTINGS) == normalized

    @pytest.mark.parametrize(
        "sender, normalized",
        [
            (b"SRS0=ab+c=XY=example.com=user@x", b"SRS0=#=#=example.com=user@x"),
            (b"srs0+abcd=XY=example.com=user+ext@x", b"srs0=#=#=example.com=user@x"),
            (b"SRS0-abcd=XY=example.com=user=x@x", b"SRS0=#=#=example.com=user=x@x"),
            (b"SRS1=abcd=first.example==efgh=XY=example.com=user@x", b"SRS1=#=first.example==#=#=example.com=user@x"),
            (b"SRS1+abcd=first.example=+efgh=XY=example.com=user@x", b"SRS1=#=first.example==#=#=example.com=user@x"),
            (b"SRS0=abcd=XY=example.com=@x", b"SRS0=abcd=XY=example.com=@x"),
            (b"SRS0=abcd=user@x", b"SRS0=abcd=user@x"),
            (b"aSRS0=abcd=XY=example.com=user@x", b"aSRS0=abcd=XY=example.com=user@x"),
        ],
    )
    def test_srs(self, sender: bytes, normalized: bytes) -> None:
        """With the option, what SRS adds anew each day is left out."""
        assert normalize_sender(sender, Settings(normalize_srs=True)) == normalized

    @pytest.mark.parametrize(
        "sender, normalized",
        [
            (b"bounce-0a1b2c3d@x", b"bounce-#@x"),
            (b"bounce_0A1B2C3D_x@x", b"bounce_#_x@x"),
            (b"01000179-abcd-4321-beef-0123456789ab-000000@x", b"#@x"),
            (b"a.0a1b2c3@x", b"a.0a1b2c3@x"),
            (b"feedbeef@x", b"feedbeef@x"),
            (b"x0a1b2c3d@x", b"x0a1b2c3d@x"),
            (b"bounce-0a1b2c3dz@x", b"bounce-0a1b2c3dz@x"),
            (b"0a1b2c3d", b"0a1b2c3d"),
        ],
    )
    def test_hex(self, sender: bytes, normalized: bytes) -> None:
        """With the option, hexadecimal numbers are left out, but not words, nor what is short."""
        assert normalize_sender(sender, Settings(normalize_hex=True)) == normalized

    @given(st.binary(max_size=40), st.booleans(), st.booleans())
    def test_garbage(self, sender: bytes, srs: bool, hexadecimal: bool) -> None:
        """Any bytes are normalized, and nothing in the domain is touched."""
        normalized = normalize_sender(sender, Settings(normalize_srs=srs, normalize_hex=hexadecimal))
        assert normalized.partition(b"@")[1:] == sender.partition(b"@")[1:]


def key(sender: bytes, recipient: bytes, settings: Settings = SETTINGS) -> bytes:
    client = parse_client(b"2001:db8::1", settings)
    assert client is not None
    return triplet_key(client, sender, recipient, settings)


class TestTableKeys:
    def test_plain(self) -> None:
        """A triplet's key is postgrey's, in lower case; the recipient is as Postfix sent it."""
        assert key(b"A+b@X", b"C+d@Y") == b"t/2001:db8:0:0:0:0:0:0/a@x/c+d@y"
        assert key(b"", b"") == b"t/2001:db8:0:0:0:0:0:0//"

    def test_client(self) -> None:
        """A client's key is its address."""
        client = parse_client(b"2001:db8::a", SETTINGS)
        assert client is not None
        assert client_key(client, SETTINGS) == b"c/2001:db8:0:0:0:0:0:a"

    def test_privacy(self) -> None:
        """With privacy keys are hashed as postgrey hashes them: a triplet's in lower case, a client's address not."""
        plain = b"2001:db8:0:0:0:0:0:0/a@x/c@y"
        assert key(b"A@X", b"C@Y", PRIVATE) == b"t/" + sha1(plain, usedforsecurity=False).hexdigest().encode()
        client = parse_client(b"2001:db8::a", PRIVATE)
        assert client is not None
        assert (
            client_key(client, PRIVATE)
            == b"c/" + sha1(b"2001:DB8:0:0:0:0:0:A", usedforsecurity=False).hexdigest().encode()
        )

    @pytest.mark.parametrize("bad", [b" ", b"\t", b"\x01", b"\x7f", b"\xff", b"x" * PLAIN_LIMIT])
    def test_unusual(self, bad: bytes) -> None:
        """What a table could refuse is hashed."""
        plain = b"2001:db8:0:0:0:0:0:0/a%b@x/c@y" % bad
        assert key(b"a%b@x" % bad, b"c@y") == b"t/#" + sha256(plain).hexdigest().encode()

    def test_limit(self) -> None:
        """A key of just the length that is allowed is used as it is."""
        assert table_key(TRIPLET, b"x" * PLAIN_LIMIT, privacy=False) == b"t/" + b"x" * PLAIN_LIMIT

    def test_unicode(self) -> None:
        """A UTF-8 key is folded as the tables do, so that it is found however it is written."""
        assert key("Stra\u00dfe@x".encode(), b"y") == key(b"strasse@x", b"y")
        growing = "\u0390".encode() * (PLAIN_LIMIT // 2)  # as folded, each of these is three characters
        assert table_key(CLIENT, growing, privacy=False).startswith(b"c/#")

    def test_long_attributes(self) -> None:
        """Of an attribute 512 bytes count, as in postgrey."""
        client = parse_client(b"10.1.2.3", SETTINGS)
        assert client is not None
        assert plain_triplet_key(client, b"s" * 600, b"r" * 600, SETTINGS) == b"10.1.2.0/%b/%b" % (
            b"s" * 512,
            b"r" * 512,
        )

    @given(st.binary(max_size=250), st.binary(max_size=250))
    def test_any_table(self, sender: bytes, recipient: bytes) -> None:
        """Every key is one that memcached takes, that every table takes, and that none changes."""
        made = key(sender, recipient)
        assert is_key(made)
        assert fold(made) == made
