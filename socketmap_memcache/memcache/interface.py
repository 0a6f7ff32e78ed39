"""What a cache is to the tables: a memcached, or memory of this process."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from zope.interface import Attribute, Interface

from socketmap_memcache.asker import Asker
from socketmap_memcache.errors import TemporaryError


@attrs.frozen
class Limits:
    """The error controls of memcache_table(5), which each table sets for its own requests.

    :ivar timeout: seconds from the start of a try to its answer; above 0.
    :ivar max_try: tries in all; at least 1.
    :ivar retry_pause: seconds between the failure of one try and the start of the next.
    :ivar line_size_limit: bytes of a reply line, its CR included.
    :ivar data_size_limit: bytes of a value, read or written.
    :ivar backed: whether there is another store, which knows what is true: a change that the cache may have missed is
        made good by a delete when the server is back, and nothing waits for a server that may be down.
    :ivar fenced: whether "not found" has to be certain, as where no other store is asked for what is missing here.
    :ivar refills: whether what is set comes from that store: where it was never sent the cache has missed nothing.
    """

    timeout: float = 2
    max_try: int = 2
    retry_pause: float = 1
    line_size_limit: int = 1024
    data_size_limit: int = 10240
    backed: bool = False
    fenced: bool = False
    refills: bool = False


class ICache(Interface):
    """A cache. Keys must pass :func:`socketmap_memcache.protocols.memcache.is_key`.

    Each Deferred fails with :class:`~socketmap_memcache.errors.TemporaryError` (or its child ``LookupTimeout``), and
    with nothing else, when no try succeeded.
    """

    name: str = Attribute("The server as Postfix writes it, ``inet:host:port``, ``unix:/path``, or ``memory:``.")

    def get(key: bytes, limits: Limits) -> Deferred[bytes | None]:
        """Fire with the value, or with ``None`` where there is none (or no more)."""

    def get_for(key: bytes, limits: Limits, asker: Asker, token: Any) -> None:
        """Tell the asker what :meth:`get` would fire with."""

    def set(key: bytes, value: bytes, flags: int, ttl: int, limits: Limits) -> Deferred[bool]:
        """Store a value; fires with ``True``.

        :param ttl: as memcached takes it: seconds, 0 for ever, above 30 days a UNIX time, negative already over.
        """

    def set_for(key: bytes, value: bytes, flags: int, ttl: int, limits: Limits, asker: Asker, token: Any) -> None:
        """Tell the asker what :meth:`set` would fire with."""

    def delete(key: bytes, limits: Limits) -> Deferred[bool]:
        """Delete a key; fires with whether it was there."""

    def close() -> None:
        """Give up the cache, once: what is under way is still answered, then connections and timers are let go."""


class IBatchCache(ICache):
    """A cache that can be asked for many keys in one command: ten times as fast as one after the other."""

    def get_many(keys: Collection[bytes], limits: Limits) -> Deferred[dict[bytes, bytes | None]]:
        """Fire with the values of the keys that exist; ``None`` is one to be asked for with :meth:`get`:
        a value that is longer than the limit, or a key of a server that failed.

        :param keys: not empty; a hundred or so at once.
        """


@attrs.frozen
class Leased:
    """What is known of a key that one client at a time refills.

    :ivar value: fresh or stale; ``None`` where there is none (yet).
    :ivar won: whether it is the asker who is to refill the key, or to give that up.
    :ivar fresh: ``False`` for a value that is stale, and where there is none.
    :ivar cas: what :meth:`ILeaseCache.refill` and :meth:`ILeaseCache.give_up` need of who has won.
    """

    value: bytes | None
    won: bool
    fresh: bool
    cas: bytes


class ILeaseCache(ICache):
    """A cache that, of all who miss a key, on whatever host, tells one to refill it: that one holds the *lease*."""

    def get_leased(key: bytes, limits: Limits, lease_ttl: int, stale_ttl: int) -> Deferred[Leased]:
        """Ask for a value, and for the lease of the key where there is none or it is stale.

        :param lease_ttl: seconds after which somebody else may win a lease that came to nothing; at least 1.
        :param stale_ttl: a value that has no more than these seconds left is stale; 0 where none is.
        :return: fails with :class:`LeasesUnsupportedError` where the server does not know what this needs.
        """

    def refill(key: bytes, value: bytes, flags: int, ttl: int, cas: bytes, limits: Limits) -> Deferred[bool]:
        """Store a value under a lease; fires with ``False`` where the key has been changed since.

        :param ttl: as for :meth:`ICache.set`; with the time that the value may be stale.
        """

    def give_up(key: bytes, cas: bytes, limits: Limits) -> Deferred[bool]:
        """Let another one win the lease of a key; fires with ``False`` where the key has been changed since."""


class IMember(IBatchCache, ILeaseCache):
    """A cache that is one server of a cluster."""

    usable: bool = Attribute("Whether it is worth while to send something new: the server is up, or was never asked.")
    up_since: float = Attribute("When the server was found to be up again, in reactor seconds, or minus infinity.")

    def owe(key: bytes) -> None:
        """See to it that the server does not serve what it has of a key: it may have missed a change."""


class LeasesUnsupportedError(TemporaryError):
    """The server has no meta commands: it is older than memcached 1.6, or a proxy."""
