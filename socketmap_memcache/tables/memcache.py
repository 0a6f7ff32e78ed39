"""``memcache:``: a cache in front of a backup table, as memcache_table(5) describes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure
from zope.interface import implementer

from socketmap_memcache.asker import FIRING, Asker, tell
from socketmap_memcache.clock import time_of_day
from socketmap_memcache.errors import TableError, TemporaryError
from socketmap_memcache.memcache.interface import ICache, ILeaseCache
from socketmap_memcache.memcache.pool import ClientPool
from socketmap_memcache.protocols.memcache import KEY_LIMIT
from socketmap_memcache.tables.backup_queries import BackupQueries
from socketmap_memcache.tables.cache_entries import MISSING, CacheEntries
from socketmap_memcache.tables.folding import normalize
from socketmap_memcache.tables.interface import (
    IAskedTable,
    IBatchTable,
    IBulkTable,
    ICursor,
    IRefusing,
    ISweptTable,
    ITable,
    NoBackupError,
    ReadOnlyError,
    check_entry,
    sweep,
)
from socketmap_memcache.tables.leases import LeasedQueries
from socketmap_memcache.tables.lookup_all import Answer
from socketmap_memcache.tables.memcache_changes import Changes
from socketmap_memcache.tables.memcache_keys import CacheKeys
from socketmap_memcache.tables.memcache_settings import Settings
from socketmap_memcache.tables.memcache_several import SeveralLookups
from socketmap_memcache.tables.read_only import RefusingCursor
from socketmap_memcache.under_way import UnderWay


@implementer(IAskedTable, IBatchTable, IBulkTable, IRefusing, ISweptTable)
class MemcacheTable:
    """Asks the cache first; on a miss or a failure there, the backup, whose answer then counts, and refills the cache.

    Without a backup a miss is a miss and a failure a failure. A key is *skipped*, which means missing without asking
    either, when it is empty, is not UTF-8, is not in ``domain``, has not what ``key_format`` needs, or makes a key for
    the cache that has white space or control characters.

    Updates and deletes go to the cache first and to the backup last, and the backup's result is the result. A cache
    that may have missed one of them deletes the key before this process hears anything else of it.
    """

    def __init__(self, name: str, settings: Settings, cache: ICache, backup: ITable | None, pool: ClientPool) -> None:
        """Make a table that will give the cache back to the pool, and close the backup and the domain list."""
        self.name = name
        self._settings = settings
        self._limits = settings.limits
        self._fold_keys = settings.fold_keys
        self._domain = settings.domain
        self._cache = cache
        self._backup = backup
        self._pool = pool
        self._under_way = under_way = UnderWay(self._let_go)
        self._keys = keys = CacheKeys(name, settings, under_way)
        entries = CacheEntries(name, settings, keys, cache, backup is not None, time_of_day(pool.reactor))
        queries: BackupQueries | None = None
        if backup is not None:
            if settings.leases.lease and ILeaseCache.providedBy(cache):
                queries = LeasedQueries(name, settings, cache, entries, backup, under_way, pool.reactor)
            else:
                queries = BackupQueries(settings, cache, entries, backup)
            self._before_backup = _BeforeBackup(queries, under_way, queries.may_be_lease, queries.may_be_stale)
        self._changes = Changes(name, settings, keys, entries, cache, backup, queries, under_way)
        self._several = SeveralLookups(settings, keys, cache, queries, under_way, self.lookup)

    # Look-ups.

    def lookup(self, key: bytes) -> Deferred[bytes | None]:
        """Look up a key; see :class:`ITable`."""
        answer: Deferred[bytes | None] = Deferred()
        self.lookup_for(key, FIRING, answer)
        return answer

    def lookup_for(self, key: bytes, asker: Asker, token: Any) -> None:
        """Look up a key; see :class:`IAskedTable`."""
        folded = key.lower() if self._fold_keys and key.isascii() else normalize(key, self._fold_keys)
        if not folded:
            asker.answered(None, token)
        elif self._domain is None:
            self._lookup_in_domain(folded, asker, token)
        else:
            tell(self._keys.if_in_domain(folded, self._ask_in_domain, None), asker, token)

    def lookup_first(self, keys: Sequence[bytes]) -> Deferred[tuple[int, bytes] | None]:
        """Look up several keys at once; see :class:`IBatchTable`."""
        return self._several.lookup_first(keys)

    def lookup_all(self, keys: Sequence[bytes]) -> Deferred[list[Answer]]:
        """Look up many keys at once; see :class:`IBulkTable`."""
        return self._several.lookup_all(keys)

    def _ask_in_domain(self, key: bytes) -> Deferred[bytes | None]:
        answer: Deferred[bytes | None] = Deferred()
        self._lookup_in_domain(key, FIRING, answer)
        return answer

    def _lookup_in_domain(self, key: bytes, asker: Asker, token: Any) -> None:
        cache_key = self._keys.cache_key(key)
        if cache_key is None:
            asker.answered(None, token)
            return
        if self._backup is not None:
            self._under_way.count += 1
            asker, token = self._before_backup, (key, cache_key, asker, token)
        if len(cache_key) <= KEY_LIMIT:
            self._cache.get_for(cache_key, self._limits, asker, token)
        else:
            asker.failed(Failure(self._keys.too_long(cache_key)), token)

    # Updates, deletes, sequence.

    def update(self, key: bytes, value: bytes, ttl: int | None = None) -> Deferred[bool]:
        """Store a value; see :class:`ITable`.

        :param ttl: the cache keeps the value no longer than that, and no longer than the ``ttl`` of the file, if there
            is a backup.
        :return: fires with ``False`` for a key that look-ups skip, after a warning in the log; and where there is no
            backup, for a value above ``data_size_limit``. With a backup such a value goes there only, as with Postfix.
        """
        answer: Deferred[bool] = Deferred()
        self.update_for(key, value, ttl, FIRING, answer)
        return answer

    def update_for(self, key: bytes, value: bytes, ttl: int | None, asker: Asker, token: Any) -> None:
        """Store a value; see :class:`IAskedTable`."""
        try:
            folded = check_entry(self.name, key, value, ttl, self._fold_keys)
        except TableError:
            asker.failed(Failure(), token)
        else:
            self._changes.update_for(folded, value, ttl, asker, token)

    def delete(self, key: bytes) -> Deferred[bool]:
        """Delete an entry; see :class:`ITable`."""
        folded = normalize(key, self._settings.fold_keys)
        return self._changes.delete(folded) if folded else succeed(False)

    def cursor(self) -> ICursor:
        """Walk through the backup; see :class:`ITable`. A cache alone cannot be walked through."""
        if self._backup is None:
            return RefusingCursor(NoBackupError(f"database {self.name}: first/next support requires backup database"))
        return self._backup.cursor()

    def sweep(self) -> ICursor:
        """Walk through the backup; see :class:`ISweptTable`."""
        return self.cursor() if self._backup is None else sweep(self._backup)

    def refusal(self, operation: str) -> ReadOnlyError | None:
        """Say what the backup says; see :class:`IRefusing`."""
        return self._changes.refusal(operation)

    # The end.

    def close(self) -> None:
        """Let go of everything; see :class:`ITable`."""
        self._under_way.close()

    def _let_go(self) -> None:
        self._pool.release(self._cache)
        if self._backup is not None:
            self._backup.close()
        if self._domain is not None:
            self._domain.close()


@attrs.frozen
class _BeforeBackup:
    """Hears what the cache has to say of a key, and lets the backup speak where that is not the last word."""

    _queries: BackupQueries
    _under_way: UnderWay
    _may_be_lease: bool
    _may_be_stale: bool

    def answered(self, value: bytes | None, token: tuple[bytes, bytes, Asker, Any]) -> None:
        key, cache_key, asker, asker_token = token
        if value is None or (not value and self._may_be_lease):
            tell(self._queries.ask(key, cache_key).addBoth(self._under_way.done), asker, asker_token)
        else:
            if self._may_be_stale and value != MISSING:
                self._queries.was_cached(key, cache_key)
            self._under_way.done(value)
            asker.answered(None if value == MISSING else value, asker_token)

    def failed(self, failure: Failure, token: tuple[bytes, bytes, Asker, Any]) -> None:
        key, cache_key, asker, asker_token = token
        if failure.check(TemporaryError) is None:
            self._under_way.done(failure)
            asker.failed(failure, asker_token)
        else:
            tell(self._queries.ask_without_cache(key, cache_key).addBoth(self._under_way.done), asker, asker_token)
