"""The keys of a ``memcache:`` table: which are looked up at all, and as what in the cache."""

from __future__ import annotations

import hashlib

from socketmap_memcache.errors import TemporaryError
from socketmap_memcache.protocols.memcache import KEY_LIMIT, has_forbidden
from socketmap_memcache.tables.domain_check import DomainCheck
from socketmap_memcache.tables.memcache_settings import Settings
from socketmap_memcache.under_way import UnderWay


class CacheKeys(DomainCheck):
    """Makes the cache's keys, by ``key_format`` and ``key_digest``, of those that ``domain`` lets through."""

    def __init__(self, table: str, settings: Settings, under_way: UnderWay) -> None:
        """:param table: its name, for errors."""
        super().__init__(settings.domain, under_way)
        self._table = table
        self._settings = settings
        self._plain = None if settings.key_digest else settings.key_format.plain

    def cache_key(self, key: bytes) -> bytes | None:
        """Make the key that the cache is asked for, or ``None`` for one that is skipped."""
        if self._plain is not None:
            before, after = self._plain
            cache_key = before + key + after
            return None if has_forbidden(cache_key) else cache_key
        expanded = self._settings.key_format.expand(key)
        if expanded is not None and self._settings.key_digest:
            return hashlib.new(self._settings.key_digest, expanded, usedforsecurity=False).hexdigest().encode()
        return None if expanded is None or has_forbidden(expanded) else expanded

    def cache_keys(self, keys: list[bytes | None]) -> list[bytes | None]:
        """Make the cache's keys of many; what is no key (empty, or ``None``) is skipped."""
        present = [key for key in keys if key]
        if self._plain is not None and len(present) == len(keys):
            before, after = self._plain
            made: list[bytes | None] = [before + key + after for key in present]
            if not has_forbidden(before + after + b"".join(present)):
                return made
        return [self.cache_key(key) if key else None for key in keys]

    def too_long(self, cache_key: bytes) -> TemporaryError:
        """Give the error for a key that memcached would refuse. Postfix asks all the same, and hears so much later."""
        return TemporaryError(f"{self._table}: the cache key has {len(cache_key)} bytes; memcached takes {KEY_LIMIT}")
