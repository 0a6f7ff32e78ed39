"""Updates and deletes of a ``memcache:`` table: in the cache first, in the backup last, whose result counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.logger import Logger

from socketmap_memcache.asker import Asker, tell
from socketmap_memcache.memcache.interface import ICache
from socketmap_memcache.protocols.memcache import KEY_LIMIT
from socketmap_memcache.tables.backup_queries import BackupQueries, ignore_failure
from socketmap_memcache.tables.cache_entries import CacheEntries
from socketmap_memcache.tables.interface import ITable, ReadOnlyError
from socketmap_memcache.tables.memcache_keys import CacheKeys
from socketmap_memcache.tables.memcache_settings import Settings
from socketmap_memcache.tables.read_only import refusal_of
from socketmap_memcache.under_way import UnderWay


class Changes:
    """Makes the changes of one table. Keys are folded already, and keys and values good."""

    _log = Logger()

    def __init__(
        self,
        table: str,
        settings: Settings,
        keys: CacheKeys,
        entries: CacheEntries,
        cache: ICache,
        backup: ITable | None,
        queries: BackupQueries | None,
        under_way: UnderWay,
    ) -> None:
        """:param table: its name, for the log.

        :param queries: those to the backup, if there is one; they hear of each change.
        """
        self._table = table
        self._settings = settings
        self._keys = keys
        self._entries = entries
        self._cache = cache
        self._backup = backup
        self._queries = queries
        self._under_way = under_way

    def update_for(self, key: bytes, value: bytes, ttl: int | None, asker: Asker, token: Any) -> None:
        """Store a value, and tell the asker whether it is stored."""
        if self._backup is not None or self._settings.domain is not None:
            tell(self._change("update", key, lambda cache_key: self._update(key, cache_key, value, ttl)), asker, token)
            return
        # There is nothing to keep in step with.
        cache_key = self._keys.cache_key(key)
        if cache_key is None:
            tell(self._skip("update", key), asker, token)
        else:
            self._entries.update_for(cache_key, value, ttl, asker, token)

    def delete(self, key: bytes) -> Deferred[bool]:
        """Delete an entry; fires with whether it was there."""
        return self._change("delete", key, lambda cache_key: self._delete(key, cache_key))

    def refusal(self, operation: str) -> ReadOnlyError | None:
        """Say what the backup says; see :class:`IRefusing`."""
        return None if self._backup is None else refusal_of(self._backup, operation)

    def _change(self, operation: str, key: bytes, change: Callable[[bytes], Deferred[bool]]) -> Deferred[bool]:
        refusal = self.refusal(operation)
        if refusal is not None:
            # Postfix would change the cache, and then die.
            return fail(refusal)

        def change_in_domain(key: bytes) -> Deferred[bool]:
            cache_key = self._keys.cache_key(key)
            return self._skip(operation, key) if cache_key is None else change(cache_key)

        if self._queries is not None:
            self._queries.change_begins(key)
        self._under_way.count += 1
        changed: Deferred[Any] = maybeDeferred(self._keys.if_in_domain, key, change_in_domain, None)
        changed.addCallback(lambda done: self._skip(operation, key) if done is None else done)
        return changed.addBoth(self._changed, key).addBoth(self._under_way.done)

    def _update(self, key: bytes, cache_key: bytes, value: bytes, ttl: int | None) -> Deferred[bool]:
        stored = self._entries.update(cache_key, value, ttl)
        backup = self._backup
        if backup is None:
            return stored
        stored.addErrback(ignore_failure)
        return stored.addCallback(lambda _: backup.update(key, value, ttl))

    def _delete(self, key: bytes, cache_key: bytes) -> Deferred[bool]:
        deleted = self._delete_cached(cache_key)
        backup, queries = self._backup, self._queries
        if backup is None or queries is None:
            return deleted
        deleted.addErrback(ignore_failure)
        deleted.addCallback(lambda _: backup.delete(key))
        if queries.may_be_lease:
            # Another host may have won the lease meanwhile, and have found in the backup what is deleted now.
            deleted.addCallback(self._delete_lease, cache_key)
        return deleted

    def _delete_cached(self, cache_key: bytes) -> Deferred[bool]:
        if len(cache_key) > KEY_LIMIT:
            return fail(self._keys.too_long(cache_key))
        deleted: Deferred[bool] = self._cache.delete(cache_key, self._settings.limits)
        return deleted

    def _delete_lease(self, was_there: bool, cache_key: bytes) -> Deferred[bool]:
        deleted = self._delete_cached(cache_key).addErrback(ignore_failure)
        return deleted.addCallback(lambda _: was_there)

    def _changed(self, result: Any, key: bytes) -> Any:
        if self._queries is not None:
            self._queries.change_ends(key)
        return result

    def _skip(self, operation: str, key: bytes) -> Deferred[bool]:
        if operation == "update":
            self._log.warn("{table}: skipping update for key {key!r}", table=self._table, key=key[:100])
        return succeed(False)
