"""Look-ups of several keys of a ``memcache:`` table at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import attrs
from twisted.internet.defer import Deferred, DeferredList, fail, succeed
from twisted.python.failure import Failure

from socketmap_memcache.errors import TemporaryError
from socketmap_memcache.memcache.interface import IBatchCache, ICache
from socketmap_memcache.protocols.memcache import KEY_LIMIT
from socketmap_memcache.tables.backup_queries import BackupQueries
from socketmap_memcache.tables.cache_entries import MISSING
from socketmap_memcache.tables.folding import normalize_all
from socketmap_memcache.tables.lookup_all import Answer, gather
from socketmap_memcache.tables.lookup_first import first_of
from socketmap_memcache.tables.memcache_keys import CacheKeys
from socketmap_memcache.tables.memcache_settings import Settings
from socketmap_memcache.under_way import UnderWay

#: Keys in one command to memcached, at most, where many are looked up at once.
_KEYS_A_GET = 100


class SeveralLookups:
    """Asks the cache for all keys in one go, then the backup for those that need it."""

    def __init__(
        self,
        settings: Settings,
        keys: CacheKeys,
        cache: ICache,
        queries: BackupQueries | None,
        under_way: UnderWay,
        lookup: Callable[[bytes], Deferred[bytes | None]],
    ) -> None:
        """:param queries: those to the backup, if there is one.

        :param lookup: looks up one key.
        """
        self._settings = settings
        self._once = attrs.evolve(settings.limits, max_try=1)
        self._keys = keys
        self._cache = cache
        self._queries = queries
        self._under_way = under_way
        self._lookup = lookup
        #: The cache, if it may be asked for many keys in one command.
        self._batch = cache if settings.domain is None and IBatchCache.providedBy(cache) else None

    # The first that exists counts.

    def lookup_first(self, keys: Sequence[bytes]) -> Deferred[tuple[int, bytes] | None]:
        """Look up several keys at once; see :class:`IBatchTable`.

        The cache is asked for all of them in one command, then the backup for those that may come before the first
        found.
        """
        folded = normalize_all(keys, self._settings.fold_keys)
        cache_keys = self._keys.cache_keys(folded)
        sent = [key for key in dict.fromkeys(cache_keys) if key is not None]
        if self._batch is None or not 0 < len(sent) <= _KEYS_A_GET or max(map(len, sent)) > KEY_LIMIT:
            return self._first_singly(folded)
        self._under_way.count += 1
        found: Deferred[Any] = self._batch.get_many(sent, self._settings.limits)
        found.addCallbacks(
            self._first_cached, self._not_cached, callbackArgs=(folded, cache_keys), errbackArgs=(folded, cache_keys)
        )
        return found.addBoth(self._under_way.done)

    def _first_cached(
        self, values: dict[bytes, bytes | None], keys: list[bytes | None], cache_keys: list[bytes | None]
    ) -> Deferred[tuple[int, bytes] | None] | tuple[int, bytes] | None:
        if None in values.values():  # a value that is too long, or a server of several that has failed
            return self._first_singly(keys)
        queries = self._queries
        late: dict[int, Deferred[bytes | None]] = {}
        first = None
        for place, cache_key in enumerate(cache_keys):
            if cache_key is None:
                continue
            value = values.get(cache_key)
            if queries is not None and queries.is_unsure(value):
                late[place] = queries.ask(cast(bytes, keys[place]), cache_key)
            elif value is not None and (queries is None or value != MISSING):
                self._was_cached(keys[place])
                first = place, value
                break
        return gather(late.values()).addCallback(_first_late, list(late), first) if late else first

    def _not_cached(
        self, failure: Failure, keys: list[bytes | None], cache_keys: list[bytes | None]
    ) -> Deferred[tuple[int, bytes] | None] | Failure:
        queries = self._queries
        if queries is None or failure.check(TemporaryError) is None:
            return failure
        late = {
            place: queries.ask_without_cache(cast(bytes, keys[place]), cache_key)
            for place, cache_key in enumerate(cache_keys)
            if cache_key is not None
        }
        return gather(late.values()).addCallback(_first_late, list(late), None)

    def _first_singly(self, keys: list[bytes | None]) -> Deferred[tuple[int, bytes] | None]:
        self._under_way.count += 1
        asked = [self._keys.if_in_domain(key, self._ask_cache, None) if key else succeed(None) for key in keys]
        answers = DeferredList(asked, consumeErrors=True).addCallback(self._ask_backup, keys)
        return answers.addBoth(self._under_way.done)

    def _ask_cache(self, key: bytes) -> Deferred[_Unsure | bytes | None]:
        cache_key = self._keys.cache_key(key)
        if cache_key is None:
            return succeed(None)
        if len(cache_key) > KEY_LIMIT:
            answer: Deferred[Any] = fail(self._keys.too_long(cache_key))
        else:
            answer = self._cache.get(cache_key, self._settings.limits)
        queries = self._queries
        if queries is not None:
            answer.addCallbacks(
                lambda value: _Unsure(queries.ask, key, cache_key) if queries.is_unsure(value) else value,
                lambda failure: (
                    _Unsure(queries.ask_without_cache, key, cache_key) if failure.check(TemporaryError) else failure
                ),
            )
        return answer

    def _ask_backup(
        self, cached: list[tuple[bool, Any]], keys: list[bytes | None]
    ) -> Deferred[tuple[int, bytes] | None]:
        answers: list[Deferred[bytes | None]] = []
        for (succeeded, result), key in zip(cached, keys, strict=True):
            if isinstance(result, _Unsure):
                answers.append(result.ask(result.key, result.cache_key))
            elif result == MISSING and self._queries is not None:
                answers.append(succeed(None))
            else:
                answers.append(succeed(result) if succeeded else fail(result))
                if succeeded and result is not None:
                    self._was_cached(key)
                if result is not None:
                    break
        return DeferredList(answers, consumeErrors=True).addCallback(first_of)

    def _was_cached(self, key: bytes | None) -> None:
        queries = self._queries
        if queries is not None and queries.may_be_stale and key is not None:
            cache_key = self._keys.cache_key(key)
            assert cache_key is not None
            queries.was_cached(key, cache_key)

    # All of them count.

    def lookup_all(self, keys: Sequence[bytes]) -> Deferred[list[Answer]]:
        """Look up many keys at once; see :class:`IBulkTable`.

        One command asks memcached for a hundred of them. Only what it answers in good order is taken from there: a key
        whose command failed, or whose value is too long, is looked up on its own, with all tries.
        """
        cache = self._batch
        if cache is None:
            return gather(self._lookup(key) for key in keys)
        self._under_way.count += 1
        folded = normalize_all(keys, self._settings.fold_keys)
        cache_keys = self._keys.cache_keys(folded)
        sent = [key for key in dict.fromkeys(cache_keys) if key is not None and len(key) <= KEY_LIMIT]
        parts = [sent[begin : begin + _KEYS_A_GET] for begin in range(0, len(sent), _KEYS_A_GET)]
        gets: Deferred[Any] = DeferredList([cache.get_many(part, self._once) for part in parts], consumeErrors=True)
        return gets.addCallback(self._all_cached, parts, folded, cache_keys).addBoth(self._under_way.done)

    def _all_cached(
        self,
        results: list[tuple[bool, dict[bytes, bytes | None]]],
        parts: list[list[bytes]],
        keys: list[bytes | None],
        cache_keys: list[bytes | None],
    ) -> Deferred[list[Answer]] | list[Answer]:
        queries = self._queries
        values: dict[bytes, bytes | None] = {}
        missing: set[bytes] = set()
        for (succeeded, found), part in zip(results, parts, strict=True):
            if succeeded:
                values.update(found)
                missing.update([key for key in part if key not in found])
        answers: list[Answer] = [values.get(key) if key else None for key in cache_keys]
        late: dict[int, Deferred[bytes | None]] = {}
        for place, answer in enumerate(answers):
            if answer and answer != MISSING:
                continue
            key, cache_key = keys[place], cache_keys[place]
            if key is None or cache_key is None:
                continue
            if answer is None and cache_key not in missing:
                late[place] = self._lookup(key)
            elif queries is None:
                continue
            elif queries.is_unsure(values.get(cache_key)):
                late[place] = queries.ask(key, cache_key)
            elif answer == MISSING:
                answers[place] = None
        return gather(late.values()).addCallback(_fill_in, answers, late) if late else answers


def _first_late(
    answers: list[Answer], places: list[int], first: tuple[int, bytes] | None
) -> tuple[int, bytes] | Failure | None:
    """Give the first that the backup has, or has failed to give; else what the cache had after those."""
    for place, answer in zip(places, answers, strict=True):
        if answer is not None:
            return answer if isinstance(answer, Failure) else (place, answer)
    return first


def _fill_in(found: list[Answer], answers: list[Answer], places: Iterable[int]) -> list[Answer]:
    for place, answer in zip(places, found, strict=True):
        answers[place] = answer
    return answers


@attrs.frozen
class _Unsure:
    """The cache does not have a key; whether it exists is for the backup to say."""

    ask: Callable[[bytes, bytes], Deferred[bytes | None]]
    key: bytes
    cache_key: bytes
