"""The keys of triplets and of clients: postgrey's, so that its database can be imported.

postgrey has them in two databases; here they are in one table, ``t/`` before those of triplets and ``c/`` before those
of clients. What postgrey would use as a key is called the *plain* key below.
"""

from __future__ import annotations

import re
from functools import lru_cache
from hashlib import sha1, sha256
from socket import inet_ntoa
from struct import unpack
from typing import NamedTuple

from socketmap_memcache.policies.greylist.settings import Settings
from socketmap_memcache.policies.greylist.whitelist_syntax import unmapped
from socketmap_memcache.protocols.memcache import has_forbidden
from socketmap_memcache.tables.cidr import Address, parse_address
from socketmap_memcache.tables.folding import fold

#: What the keys of triplets and of clients begin with in the table.
TRIPLET, CLIENT = b"t/", b"c/"

#: Bytes of an attribute that count; postgrey cuts off the rest.
ATTRIBUTE_LIMIT = 512

#: Bytes of a plain key, at most, that is used as it is: with what a ``key_format`` adds, memcached has to take it.
PLAIN_LIMIT = 200

_NUMBER = re.compile(rb"\b\d+\b")
_BATV_TAG = re.compile(rb"[0-9a-z]{10}")
_SRS0 = re.compile(rb"\A(SRS0)[=+-][^=]+=[^=]+=(?=[^=]+=.)", re.IGNORECASE)
_SRS1 = re.compile(rb"\A(SRS1)[=+-][^=]+=([^=]+=)[=+-][^=]+=[^=]+=(?=[^=]+=.)", re.IGNORECASE)
_HEX = re.compile(rb"(?<![0-9A-Za-z])[0-9A-Fa-f]{4,}(?:-[0-9A-Fa-f]{4,})*(?![0-9A-Za-z])")
_LEAST_HEX = 8
_DIGIT = re.compile(rb"[0-9]")


class ClientAddress(NamedTuple):
    """A client as postgrey writes it in its keys.

    :ivar text: its address; that of IPv6 in upper case and with all its zeros.
    :ivar network: the address of its network, or where hosts are told apart, its address and ``/32`` or ``/128``.
    """

    text: bytes
    network: bytes


def parse_client(address: bytes, settings: Settings) -> ClientAddress | None:
    """Read the address of a client.

    An IPv4 address in IPv6 form (``::ffff:192.0.2.1``) counts as the IPv4 address; postgrey takes all of them for one
    network.

    :return: ``None`` where it is no address: ``unknown``, one with a zone, anything else.
    """
    parsed = parse_unmapped(address)
    if parsed is None:
        return None
    bits, value = parsed
    shown, prefix = (_ipv4_text, settings.ipv4_prefix) if bits == 32 else (_ipv6_text, settings.ipv6_prefix)
    text = shown(value) if b":" in address else address  # IPv4 can be written in one way only
    if settings.lookup_by_host:
        return ClientAddress(text, b"%b/%d" % (text, bits))
    hosts = bits - prefix
    return ClientAddress(text, shown(value >> hosts << hosts))


@lru_cache(1)
def parse_unmapped(text: bytes) -> Address | None:
    """Read an address; that of IPv4 in IPv6 form is the IPv4 address. The last one is remembered: a list asks for the
    same one as the key.

    :return: ``None`` where it is none.
    """
    address = parse_address(text)
    return address if address is None or address[0] == 32 else unmapped(address)


def _ipv4_text(value: int) -> bytes:
    return inet_ntoa(value.to_bytes(4, "big")).encode()


def _ipv6_text(value: int) -> bytes:
    return b"%X:%X:%X:%X:%X:%X:%X:%X" % unpack("!8H", value.to_bytes(16, "big"))


def normalize_sender(sender: bytes, settings: Settings) -> bytes:
    """Leave out of the address what differs from one mail to the next.

    As postgrey: what is around the address in the local part of BATV (``prvs=tag=local``); the extension (from ``+``);
    and ``#`` takes the place of numbers between other characters than letters, digits and underscores. Options add
    what SRS brings, and hexadecimal numbers: at least 8 digits of which one is decimal, in groups of at least 4 with
    ``-`` between them.

    :param sender: any bytes; without ``@`` it is returned as it is.
    """
    user, at, domain = sender.partition(b"@")
    if not at:
        return sender
    if user.startswith(b"prvs="):
        user = _without_batv(user)
    if settings.normalize_srs:
        user = _SRS1.sub(rb"\1=#=\2=#=#=", _SRS0.sub(rb"\1=#=#=", user))
    user = user.partition(b"+")[0]
    if settings.normalize_hex:
        user = _HEX.sub(_hex_as_number, user)
    return _NUMBER.sub(b"#", user) + at + domain


def _without_batv(user: bytes) -> bytes:
    fields = user.rstrip(b"=").split(b"=")  # Perl's split leaves out empty fields at the end
    if len(fields) != 3:
        return user
    _, first, second = fields
    # The standard has the tag before the address; not all follow it.
    return first if _BATV_TAG.match(second) and not _BATV_TAG.match(first) else second


def _hex_as_number(match: re.Match[bytes]) -> bytes:
    number = match[0]
    return b"#" if len(number) >= _LEAST_HEX and _DIGIT.search(number) else number


def plain_triplet_key(client: ClientAddress, sender: bytes, recipient: bytes, settings: Settings) -> bytes:
    """Make postgrey's key of a triplet, before it is hashed.

    :param sender: as Postfix sent it, as is the recipient.
    """
    sender = normalize_sender(sender[:ATTRIBUTE_LIMIT], settings)
    return (b"%b/%b/%b" % (client.network, sender, recipient[:ATTRIBUTE_LIMIT])).lower()


def triplet_key(client: ClientAddress, sender: bytes, recipient: bytes, settings: Settings) -> bytes:
    """Make the key of a triplet in the table."""
    return table_key(TRIPLET, plain_triplet_key(client, sender, recipient, settings), settings.privacy)


def client_key(client: ClientAddress, settings: Settings) -> bytes:
    """Make the key of a client in the table."""
    if settings.privacy:
        return table_key(CLIENT, client.text, privacy=True)
    return CLIENT + client.text.lower()  # there is nothing in an address that a table could refuse


def table_key(kind: bytes, plain: bytes, privacy: bool) -> bytes:
    """Make the key in the table of one of postgrey's.

    It is the same in every table, and no table refuses it: a plain key that is long, or not UTF-8, or has blanks or
    control characters, is hashed.

    :param kind: :data:`TRIPLET` or :data:`CLIENT`.
    :param plain: postgrey's key, not hashed; or hashed, without ``privacy``.
    """
    if privacy:
        return kind + sha1(plain, usedforsecurity=False).hexdigest().encode()
    folded = plain.lower() if plain.isascii() else fold(plain.lower())
    if folded is None or len(folded) > PLAIN_LIMIT or has_forbidden(folded):
        return kind + b"#" + sha256(plain).hexdigest().encode()
    return kind + folded
