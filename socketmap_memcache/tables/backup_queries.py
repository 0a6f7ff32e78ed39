"""What a ``memcache:`` table asks its backup, and how the cache hears of the answers."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from socketmap_memcache.errors import TemporaryError
from socketmap_memcache.memcache.interface import ICache
from socketmap_memcache.tables.cache_entries import CacheEntries
from socketmap_memcache.tables.interface import ITable
from socketmap_memcache.tables.memcache_settings import Settings
from socketmap_memcache.tables.single_flight import SingleFlight, Waiters


class BackupQueries:
    """Asks for each key once at a time, and puts what comes back into the cache.

    :ivar may_be_lease: whether an empty value in the cache may be the mark of a lease.
    :ivar may_be_stale: whether a value in the cache may be stale, so that :meth:`was_cached` is to be called.
    """

    may_be_lease = False
    may_be_stale = False

    def __init__(self, settings: Settings, cache: ICache, entries: CacheEntries, backup: ITable) -> None:
        """Make one that has asked nothing yet."""
        self._settings = settings
        self._cache = cache
        self._entries = entries
        self._backup = backup
        self._flights = SingleFlight()  # the cache shares requests by itself
        self._changing: dict[bytes, int] = {}  # how many updates and deletes of a key are under way

    def ask(self, key: bytes, cache_key: bytes) -> Deferred[bytes | None]:
        """Ask for a key that the cache does not have."""
        return self._flights.run(key, self._query, key, cache_key)

    def ask_without_cache(self, key: bytes, cache_key: bytes) -> Deferred[bytes | None]:
        """Ask for a key of which the cache could not say anything."""
        return self._flights.run(key, self._query_backup, key, cache_key)

    def is_unsure(self, cached: bytes | None) -> bool:
        """Say whether the backup must be asked although, or because, this is what the cache has."""
        return cached is None or (self.may_be_lease and not cached)

    def was_cached(self, key: bytes, cache_key: bytes) -> None:
        """Hear that a value of the cache is the answer, before the operation is done."""

    def change_begins(self, key: bytes) -> None:
        """Hear that an update or delete of a key begins: later look-ups do not share the query under way."""
        self._changing[key] = self._changing.get(key, 0) + 1
        self._flights.detach(key)

    def change_ends(self, key: bytes) -> None:
        """Hear that it is done. A look-up that began meanwhile may have read the backup before it was changed."""
        self._flights.detach(key)
        self._changing[key] -= 1
        if not self._changing[key]:
            del self._changing[key]

    def _query(self, key: bytes, cache_key: bytes) -> Deferred[bytes | None]:
        return self._query_backup(key, cache_key)

    def _query_backup(self, key: bytes, cache_key: bytes) -> Deferred[bytes | None]:
        answer: Deferred[bytes | None] = self._backup.lookup(key)
        return answer.addCallback(self._refill, key, cache_key, self._flights.current(key))

    def _refill(self, value: bytes | None, key: bytes, cache_key: bytes, flight: Waiters | None) -> bytes | None:
        """Put into the cache what the backup has. The look-up does not wait for it, nor fail with it."""
        if self._unchanged(key, flight, self._flights):
            entry = self._entries.from_backup(cache_key, value)
            if entry is not None:
                data, ttl = entry
                stored = self._cache.set(cache_key, data, self._settings.flags, ttl, self._entries.once)
                stored.addErrback(ignore_failure)
        return value

    def _unchanged(self, key: bytes, flight: Waiters | None, flights: SingleFlight) -> bool:
        """Say whether the answer to this query is sure to be up to date.

        With an update of the key meanwhile, the value may be the one before.
        """
        return key not in self._changing and flights.current(key) is flight


def ignore_failure(failure: Failure) -> None:
    """End with a failure of the cache, which the client has logged."""
    failure.trap(TemporaryError)
