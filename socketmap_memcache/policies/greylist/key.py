"""The keys of triplets and of clients: postgrey's, so that its database can be imported.

postgrey has them in two databases; here they are in one table, ``t/`` before those of triplets and ``c/`` before those
of clients. What postgrey would use as a key is called the *plain* key below.
"""

from __future__ import annotations

import re
from hashlib import sha1, sha256
from socket import AF_INET, AF_INET6, inet_ntoa, inet_pton
from struct import unpack
from typing import NamedTuple

from socketmap_memcache.policies.greylist.settings import Settings
from socketmap_memcache.protocols.memcache import has_forbidden
from socketmap_memcache.tables.folding import fold

#: What the keys of triplets and of clients begin with in the table.
TRIPLET, CLIENT = b"t/", b"c/"

#: Bytes of an attribute that count; postgrey cuts off the rest.
ATTRIBUTE_LIMIT = 512

#: Bytes of a plain key, at most, that is used as it is: with what a ``key_format`` adds, memcached has to take it.
PLAIN_LIMIT = 200

_MAPPED = bytes(10) + b"\xff\xff"  # what an IPv4 address in an IPv6 address begins with
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
    try:
        text = address.decode("ascii")
        if ":" not in text:
            return _ipv4(inet_pton(AF_INET, text), settings)
        packed = inet_pton(AF_INET6, text)
    except (OSError, ValueError):
        return None
    if packed.startswith(_MAPPED):
        return _ipv4(packed[len(_MAPPED) :], settings)
    shown = _ipv6_text(packed)
    if settings.lookup_by_host:
        return ClientAddress(shown, shown + b"/128")
    return ClientAddress(shown, _ipv6_text(_network(packed, settings.ipv6_prefix)))


def _ipv4(packed: bytes, settings: Settings) -> ClientAddress:
    text = inet_ntoa(packed).encode()
    if settings.lookup_by_host:
        return ClientAddress(text, text + b"/32")
    return ClientAddress(text, inet_ntoa(_network(packed, settings.ipv4_prefix)).encode())


def _ipv6_text(packed: bytes) -> bytes:
    return b"%X:%X:%X:%X:%X:%X:%X:%X" % unpack("!8H", packed)


def _network(packed: bytes, prefix: int) -> bytes:
    hosts = len(packed) * 8 - prefix
    return (int.from_bytes(packed, "big") >> hosts << hosts).to_bytes(len(packed), "big")


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
