"""What the entries of postgrey's files are here: pure rules of the import."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import attrs

from socketmap_memcache.policies.greylist import key as keys
from socketmap_memcache.policies.greylist import record as records
from socketmap_memcache.policies.greylist.decide import client_is_over, triplet_is_over
from socketmap_memcache.policies.greylist.postgrey_database import is_hashed
from socketmap_memcache.policies.greylist.record import Client, RecordError, Triplet
from socketmap_memcache.policies.greylist.settings import Settings

R = TypeVar("R", Triplet, Client)


@attrs.frozen
class Kind(Generic[R]):
    """What differs between the entries of the two files.

    :ivar prefix: what keys of this kind begin with in the table.
    :ivar parse: reads a value of the table.
    :ivar is_over: says whether a record makes no difference any more, at a time.
    :ivar join: makes one record of two for the same key, as if one of them had seen all.
    :ivar end: gives the last second in which a record makes a difference.
    :ivar canonical: gives a key of postgrey's as it is asked for here; raises :class:`RecordError` where none is.
    """

    prefix: bytes
    parse: Callable[[bytes], R]
    is_over: Callable[[R, int, Settings], bool]
    join: Callable[[R, R], R]
    end: Callable[[R, Settings], int]
    canonical: Callable[[bytes, Settings], bytes]

    def read(self, key: bytes, value: bytes, settings: Settings) -> tuple[bytes, R]:
        """Give the key in the table and the record of an entry of postgrey's.

        :raises RecordError: the entry is not one of postgrey's.
        """
        record = self.parse(b",".join(value.split(b",")[:2]))  # a third field was the host's part of an address once
        if is_hashed(key):
            return self.prefix + key, record
        return keys.table_key(self.prefix, self.canonical(key, settings), settings.privacy), record

    def ttl(self, record: R, now: int, settings: Settings) -> int:
        """Give the seconds that a record is to be kept for, which is not over."""
        return min(self.end(record, settings) - now, settings.max_age) + 1


def _join_triplets(one: Triplet, other: Triplet) -> Triplet:
    return Triplet(min(one.first, other.first), max(one.last, other.last))


def _join_clients(one: Client, other: Client) -> Client:
    return Client(max(one.count, other.count), max(one.last, other.last))


def _end_of_triplet(triplet: Triplet, settings: Settings) -> int:
    has_passed = triplet.last - triplet.first >= settings.delay
    return triplet.last + settings.max_age if has_passed else triplet.first + settings.retry_window


def _end_of_client(client: Client, settings: Settings) -> int:
    return client.last + settings.max_age


def _canonical_triplet(key: bytes, _settings: Settings) -> bytes:
    if key.count(b"/") < 2:
        raise RecordError("not a triplet of postgrey's")
    return key


def _canonical_client(key: bytes, settings: Settings) -> bytes:
    client = keys.parse_client(key, settings)
    if client is None:
        raise RecordError("not a client of postgrey's")
    return client.text


TRIPLETS = Kind(
    keys.TRIPLET, records.parse_triplet, triplet_is_over, _join_triplets, _end_of_triplet, _canonical_triplet
)
CLIENTS = Kind(keys.CLIENT, records.parse_client, client_is_over, _join_clients, _end_of_client, _canonical_client)


def has_our_network(key: bytes, settings: Settings) -> bool:
    """Say whether a triplet of postgrey's may be asked for with these settings; of a hashed one nobody can know."""
    network, _, rest = key.partition(b"/")
    if is_hashed(key):
        return True
    if rest.startswith((b"32/", b"128/")):  # as with --lookup-by-host
        network = key[: len(network) + rest.find(b"/") + 1]
    client = keys.parse_client(network.partition(b"/")[0], settings)
    return client is not None and client.network.lower() == network
