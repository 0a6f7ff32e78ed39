"""What a ``memcache:`` table puts into its cache, and for how long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from socketmap_memcache.asker import FIRING, Asker, tell
from socketmap_memcache.memcache.interface import ICache
from socketmap_memcache.memcache.memory import MONTH
from socketmap_memcache.protocols.memcache import KEY_LIMIT
from socketmap_memcache.tables.memcache_keys import CacheKeys
from socketmap_memcache.tables.memcache_settings import Settings

#: In place of a value: the backup does not have the key. No update stores a value with a NUL.
MISSING = b"\0missing"

#: The last UNIX time that memcached knows, in 2038: a later one counts as long past.
_LATEST = 2**31 - 1


class CacheEntries:
    """Writes the entries of one table.

    :ivar once: limits for what comes from the backup, with one try: a second could undo a change made meanwhile.
    """

    _log = Logger()

    def __init__(
        self,
        table: str,
        settings: Settings,
        keys: CacheKeys,
        cache: ICache,
        has_backup: bool,
        clock: Callable[[], float],
    ) -> None:
        """:param table: its name, for the log.

        :param clock: gives UNIX time.
        """
        self._table = table
        self._settings = settings
        self._limits = settings.limits
        self._keys = keys
        self._cache = cache
        self._has_backup = has_backup
        self._clock = clock
        self._too_long_logged = False
        self.once = attrs.evolve(settings.limits, max_try=1, refills=True)

    def update(self, cache_key: bytes, value: bytes, ttl: int | None) -> Deferred[bool]:
        """Store a value; fires with whether it is there."""
        answer: Deferred[bool] = Deferred()
        self.update_for(cache_key, value, ttl, FIRING, answer)
        return answer

    def update_for(self, cache_key: bytes, value: bytes, ttl: int | None, asker: Asker, token: Any) -> None:
        """Tell the asker what :meth:`update` would fire with."""
        if len(value) > self._limits.data_size_limit and not self.fits(value):
            if self._settings.leases.negative_ttl and len(cache_key) <= KEY_LIMIT:
                # Postfix leaves what is there, which here may be the mark that the backup does not have the key.
                deleted: Deferred[Any] = self._cache.delete(cache_key, self._limits)
                tell(deleted.addCallback(lambda _: False), asker, token)
            else:
                asker.answered(False, token)
        elif len(cache_key) > KEY_LIMIT:
            asker.failed(Failure(self._keys.too_long(cache_key)), token)
        else:
            lasting = self._ttl_of_update(ttl)
            self._cache.set_for(cache_key, value, self._settings.flags, lasting, self._limits, asker, token)

    def from_backup(self, cache_key: bytes, value: bytes | None) -> tuple[bytes, int] | None:
        """Say what the cache is to have of a backup's answer, and for how long; ``None`` for nothing."""
        if len(cache_key) > KEY_LIMIT:
            return None
        if value is None:
            negative_ttl = self._settings.leases.negative_ttl
            return (MISSING, negative_ttl) if negative_ttl else None
        return (value, self._default_ttl()) if value != MISSING and self.fits(value) else None

    def fits(self, value: bytes) -> bool:
        """Say whether a value is within ``data_size_limit``; the first that is not is logged."""
        limit = self._limits.data_size_limit
        if len(value) <= limit:
            return True
        if not self._too_long_logged:
            self._too_long_logged = True
            self._log.warn(
                "{table}: a value of {size} bytes is not cached (data_size_limit is {limit}); logged once",
                table=self._table,
                size=len(value),
                limit=limit,
            )
        return False

    def _ttl_of_update(self, ttl: int | None) -> int:
        """Give the cache's ttl for an entry that is to live this long: memcached's rules."""
        if ttl is None:
            return self._default_ttl()
        if ttl <= MONTH and not self._has_backup:
            return ttl
        default, now = self._settings.ttl, self._clock()
        if self._has_backup and default and (default if default <= MONTH else default - now) <= ttl:
            return self._default_ttl()
        if ttl <= MONTH:
            return ttl
        end = int(now + ttl)
        return end if end <= _LATEST else 0  # 0: for ever

    def _default_ttl(self) -> int:
        """Give the ttl of the file, and the time for which a value may be stale after it."""
        ttl, stale_ttl = self._settings.ttl, self._settings.leases.stale_ttl
        if ttl <= 0 or not stale_ttl:  # for ever, or not at all
            return ttl
        if ttl <= MONTH < ttl + stale_ttl:
            return int(self._clock() + ttl + stale_ttl)
        return ttl + stale_ttl
