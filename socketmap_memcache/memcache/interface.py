"""What a cache is to the tables: a memcached, or memory of this process."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from zope.interface import Attribute, Interface

from socketmap_memcache.asker import Asker


@attrs.frozen
class Limits:
    """The error controls of memcache_table(5), which each table sets for its own requests.

    :ivar timeout: seconds from the start of a try to its answer; above 0.
    :ivar max_try: tries in all; at least 1.
    :ivar retry_pause: seconds between the failure of one try and the start of the next.
    :ivar line_size_limit: bytes of a reply line, its CR included.
    :ivar data_size_limit: bytes of a value, read or written.
    """

    timeout: float = 2
    max_try: int = 2
    retry_pause: float = 1
    line_size_limit: int = 1024
    data_size_limit: int = 10240


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
        """Fire with the values of the keys that exist; ``None`` is a value that is longer than the limit.

        :param keys: not empty; a hundred or so at once.
        """
