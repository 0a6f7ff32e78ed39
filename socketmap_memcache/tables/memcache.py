"""``memcache:``: a cache in front of a backup table, as memcache_table(5) describes it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import attrs
from twisted.internet.defer import Deferred, DeferredList, fail, maybeDeferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from socketmap_memcache.asker import FIRING, Asker, tell
from socketmap_memcache.errors import TableError, TemporaryError
from socketmap_memcache.memcache.interface import IBatchCache, ICache, Limits
from socketmap_memcache.memcache.memory import MONTH
from socketmap_memcache.memcache.pool import ClientPool
from socketmap_memcache.protocols.memcache import KEY_LIMIT, has_forbidden
from socketmap_memcache.tables.folding import normalize, normalize_all
from socketmap_memcache.tables.interface import (
    IAskedTable,
    IBatchTable,
    IBulkTable,
    ICursor,
    IRefusing,
    ITable,
    NoBackupError,
    ReadOnlyError,
    check_ttl,
    check_value,
    writable_key,
)
from socketmap_memcache.tables.key_format import KeyFormat
from socketmap_memcache.tables.lookup_all import Answer, gather
from socketmap_memcache.tables.lookup_first import first_of
from socketmap_memcache.tables.read_only import RefusingCursor, refusal_of
from socketmap_memcache.tables.single_flight import SingleFlight, Waiters

if TYPE_CHECKING:
    from socketmap_memcache.tables.match_list import MatchList

#: Keys in one command to memcached, at most, where many are looked up at once.
_KEYS_A_GET = 100


@attrs.frozen
class Settings:
    """What a ``.cf`` file sets, beside the cache and the backup.

    :ivar flags: sent with each update, as they are.
    :ivar ttl: sent with each update that has no ttl of its own, as it is: memcached's rules.
    :ivar key_format: makes the key that the cache is asked for.
    :ivar key_digest: a name of :mod:`hashlib`'s; that key's digest takes its place. Empty for none.
    :ivar domain: the domains that are looked up at all, or ``None`` for all keys.
    :ivar fold_keys: whether keys are folded to lower case. Postfix does that for memcache:, not for socketmap:.
    """

    flags: int
    ttl: int
    key_format: KeyFormat
    key_digest: str
    domain: MatchList | None
    fold_keys: bool
    limits: Limits


@implementer(IAskedTable, IBatchTable, IBulkTable, IRefusing)
class MemcacheTable:
    """Asks the cache first; on a miss or a failure there, the backup, whose answer then counts, and refills the cache.

    Without a backup a miss is a miss and a failure a failure. A key is *skipped*, which means missing without asking
    either, when it is empty, is not UTF-8, is not in ``domain``, has not what ``key_format`` needs, or makes a key for
    the cache that has white space or control characters.

    Updates and deletes go to the cache first and to the backup last, and the backup's result is the result. A cache
    that missed one of them (it could not be reached) has the old value until its ttl is over.
    """

    _log = Logger()

    def __init__(self, name: str, settings: Settings, cache: ICache, backup: ITable | None, pool: ClientPool) -> None:
        """Make a table that will give the cache back to the pool, and close the backup and the domain list."""
        self.name = name
        self._settings = settings
        self._limits = settings.limits
        self._once = attrs.evolve(settings.limits, max_try=1)
        self._plain = None if settings.key_digest else settings.key_format.plain
        self._fold_keys = settings.fold_keys
        self._domain = settings.domain
        self._cache = cache
        self._backup = backup
        self._pool: ClientPool | None = pool
        self._queries = SingleFlight()  # to the backup; the cache shares requests by itself
        self._changing: dict[bytes, int] = {}  # how many updates and deletes of a key are under way
        self._clock = pool.reactor.seconds
        self._under_way = 0  # operations that may still need the cache or the backup
        self._closed = False
        self._too_long_logged = False
        self._before_backup = _BeforeBackup(self._ask_backup, self._done)

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
            tell(self._if_in_domain(folded, self._ask_in_domain, None), asker, token)

    def lookup_first(self, keys: Sequence[bytes]) -> Deferred[tuple[int, bytes] | None]:
        """Look up several keys at once; see :class:`IBatchTable`.

        The cache is asked for all of them in one go, then the backup for those that may come before the first found.
        """
        self._under_way += 1
        folded = [normalize(key, self._settings.fold_keys) for key in keys]
        asked = [self._if_in_domain(key, self._ask_cache_first, None) if key else succeed(None) for key in folded]
        return DeferredList(asked, consumeErrors=True).addCallback(self._ask_backup_second).addBoth(self._done)

    def lookup_all(self, keys: Sequence[bytes]) -> Deferred[list[Answer]]:
        """Look up many keys at once; see :class:`IBulkTable`.

        One command asks memcached for a hundred of them. Only what it answers in good order is taken from there: a key
        whose command failed, or whose value is too long, is looked up on its own, with all tries.
        """
        cache = self._cache
        if self._settings.domain is not None or not IBatchCache.providedBy(cache):
            return gather(self.lookup(key) for key in keys)
        self._under_way += 1
        folded = normalize_all(keys, self._settings.fold_keys)
        cache_keys = folded
        if not self._are_cache_keys(folded):
            cache_keys = [self._cache_key(key) if key else None for key in folded]
        sent = [key for key in dict.fromkeys(cache_keys) if key is not None and len(key) <= KEY_LIMIT]
        parts = [sent[begin : begin + _KEYS_A_GET] for begin in range(0, len(sent), _KEYS_A_GET)]
        gets = DeferredList([cache.get_many(part, self._once) for part in parts], consumeErrors=True)
        return gets.addCallback(self._all_cached, parts, folded, cache_keys).addBoth(self._done)

    def _all_cached(
        self,
        results: list[tuple[bool, dict[bytes, bytes | None]]],
        parts: list[list[bytes]],
        keys: list[bytes | None],
        cache_keys: list[bytes | None],
    ) -> Deferred[list[Answer]] | list[Answer]:
        values: dict[bytes, bytes | None] = {}
        missing: set[bytes] = set()
        for (succeeded, found), part in zip(results, parts, strict=True):
            if succeeded:
                values.update(found)
                missing.update([key for key in part if key not in found])
        answers: list[Answer] = [values.get(key) if key else None for key in cache_keys]
        late: dict[int, Deferred[bytes | None]] = {}
        for place, answer in enumerate(answers):
            if answer is not None:
                continue
            key, cache_key = keys[place], cache_keys[place]
            if key is None or cache_key is None:
                continue
            if cache_key not in missing:
                late[place] = self._ask_in_domain(key)
            elif self._backup is not None:
                late[place] = self._ask_backup(key, cache_key)
        return gather(late.values()).addCallback(_fill_in, answers, late) if late else answers

    def _ask_in_domain(self, key: bytes) -> Deferred[bytes | None]:
        answer: Deferred[bytes | None] = Deferred()
        self._lookup_in_domain(key, FIRING, answer)
        return answer

    def _lookup_in_domain(self, key: bytes, asker: Asker, token: Any) -> None:
        cache_key = self._cache_key(key)
        if cache_key is None:
            asker.answered(None, token)
            return
        if self._backup is not None:
            self._under_way += 1
            asker, token = self._before_backup, (key, cache_key, asker, token)
        if len(cache_key) <= KEY_LIMIT:
            self._cache.get_for(cache_key, self._limits, asker, token)
        else:
            asker.failed(Failure(self._long_key(cache_key)), token)

    def _ask_cache_first(self, key: bytes) -> Deferred[_Unsure | bytes | None]:
        cache_key = self._cache_key(key)
        if cache_key is None:
            return succeed(None)
        answer: Deferred[Any] = self._ask_cache(cache_key)
        if self._backup is not None:
            unsure = _Unsure(key, cache_key)
            answer.addCallbacks(
                lambda value: unsure if value is None else value,
                lambda failure: unsure if failure.check(TemporaryError) else failure,
            )
        return answer

    def _ask_backup_second(self, cached: list[tuple[bool, Any]]) -> Deferred[tuple[int, bytes] | None]:
        answers: list[Deferred[bytes | None]] = []
        for succeeded, result in cached:
            if isinstance(result, _Unsure):
                answers.append(self._ask_backup(result.key, result.cache_key))
                continue
            answers.append(succeed(result) if succeeded else fail(result))
            if result is not None:
                break
        return DeferredList(answers, consumeErrors=True).addCallback(first_of)

    def _ask_cache(self, cache_key: bytes) -> Deferred[bytes | None]:
        if len(cache_key) > KEY_LIMIT:
            return fail(self._long_key(cache_key))
        answer: Deferred[bytes | None] = self._cache.get(cache_key, self._limits)
        return answer

    def _long_key(self, cache_key: bytes) -> TemporaryError:
        # memcached would refuse it. Postfix asks all the same, and hears so some seconds later.
        return TemporaryError(f"{self.name}: the cache key has {len(cache_key)} bytes; memcached takes {KEY_LIMIT}")

    def _ask_backup(self, key: bytes, cache_key: bytes) -> Deferred[bytes | None]:
        return self._queries.run(key, self._query_backup, key, cache_key)

    def _query_backup(self, key: bytes, cache_key: bytes) -> Deferred[bytes | None]:
        assert self._backup is not None
        answer: Deferred[bytes | None] = self._backup.lookup(key)
        return answer.addCallback(self._refill, key, cache_key, self._queries.current(key))

    def _refill(self, value: bytes | None, key: bytes, cache_key: bytes, query: Waiters | None) -> bytes | None:
        """Put into the cache what the backup has. The look-up does not wait for it, nor fail with it."""
        # With an update of the key meanwhile, the value may be the one before.
        if value is not None and key not in self._changing and self._queries.current(key) is query:
            # Once: a second try, some time later, could undo an update made meanwhile.
            self._set(cache_key, value, self._settings.ttl, self._once).addErrback(_ignore_failure)
        return value

    # Updates, deletes, sequence.

    def update(self, key: bytes, value: bytes, ttl: int | None = None) -> Deferred[bool]:
        """Store a value; see :class:`ITable`.

        :param ttl: the cache keeps the value no longer than that, and no longer than the ``ttl`` of the file, if there
            is a backup.
        :return: fires with ``False`` for a key that look-ups skip, after a warning in the log; and where there is no
            backup, for a value above ``data_size_limit`` or a key that is too long for memcached.
        """
        answer: Deferred[bool] = Deferred()
        self.update_for(key, value, ttl, FIRING, answer)
        return answer

    def update_for(self, key: bytes, value: bytes, ttl: int | None, asker: Asker, token: Any) -> None:
        """Store a value; see :class:`IAskedTable`."""
        try:
            folded = writable_key(self.name, key, self._fold_keys)
            check_value(self.name, value)
            check_ttl(self.name, ttl)
        except TableError:
            asker.failed(Failure(), token)
            return
        if self._backup is not None or self._domain is not None:
            changed = self._change("update", folded, lambda cache_key: self._update(folded, cache_key, value, ttl))
            tell(changed, asker, token)
            return
        # There is nothing to keep in step with.
        cache_key = self._cache_key(folded)
        if cache_key is None:
            tell(self._skip("update", folded), asker, token)
        else:
            self._set_for(cache_key, value, self._cache_ttl(ttl), self._limits, asker, token)

    def delete(self, key: bytes) -> Deferred[bool]:
        """Delete an entry; see :class:`ITable`."""
        folded = normalize(key, self._settings.fold_keys)
        if not folded:
            return succeed(False)
        return self._change("delete", folded, lambda cache_key: self._delete(folded, cache_key))

    def cursor(self) -> ICursor:
        """Walk through the backup; see :class:`ITable`. A cache alone cannot be walked through."""
        if self._backup is None:
            return RefusingCursor(NoBackupError(f"database {self.name}: first/next support requires backup database"))
        return self._backup.cursor()

    def refusal(self, operation: str) -> ReadOnlyError | None:
        """Say what the backup says; see :class:`IRefusing`."""
        return None if self._backup is None else refusal_of(self._backup, operation)

    def _change(self, operation: str, key: bytes, change: Callable[[bytes], Deferred[bool]]) -> Deferred[bool]:
        refusal = self.refusal(operation)
        if refusal is not None:
            # Postfix would change the cache, and then die.
            return fail(refusal)

        def change_in_domain(key: bytes) -> Deferred[bool]:
            cache_key = self._cache_key(key)
            return self._skip(operation, key) if cache_key is None else change(cache_key)

        self._changing[key] = self._changing.get(key, 0) + 1
        self._queries.detach(key)
        self._under_way += 1
        changed: Deferred[Any] = maybeDeferred(self._if_in_domain, key, change_in_domain, None)
        changed.addCallback(lambda done: self._skip(operation, key) if done is None else done)
        return changed.addBoth(self._changed, key).addBoth(self._done)

    def _update(self, key: bytes, cache_key: bytes, value: bytes, ttl: int | None) -> Deferred[bool]:
        stored = self._set(cache_key, value, self._cache_ttl(ttl), self._limits)
        backup = self._backup
        if backup is None:
            return stored
        stored.addErrback(_ignore_failure)
        return stored.addCallback(lambda _: backup.update(key, value, ttl))

    def _delete(self, key: bytes, cache_key: bytes) -> Deferred[bool]:
        if len(cache_key) > KEY_LIMIT:
            deleted: Deferred[bool] = fail(self._long_key(cache_key))
        else:
            deleted = self._cache.delete(cache_key, self._limits)
        backup = self._backup
        if backup is None:
            return deleted
        deleted.addErrback(_ignore_failure)
        return deleted.addCallback(lambda _: backup.delete(key))

    def _changed(self, result: Any, key: bytes) -> Any:
        # A look-up that began meanwhile may have read the backup before it was changed.
        self._queries.detach(key)
        self._changing[key] -= 1
        if not self._changing[key]:
            del self._changing[key]
        return result

    def _skip(self, operation: str, key: bytes) -> Deferred[bool]:
        if operation == "update":
            self._log.warn("{table}: skipping update for key {key!r}", table=self.name, key=key[:100])
        return succeed(False)

    def _set(self, cache_key: bytes, value: bytes, ttl: int, limits: Limits) -> Deferred[bool]:
        """Put a value into the cache; fires with whether it is there."""
        answer: Deferred[bool] = Deferred()
        self._set_for(cache_key, value, ttl, limits, FIRING, answer)
        return answer

    def _set_for(self, cache_key: bytes, value: bytes, ttl: int, limits: Limits, asker: Asker, token: Any) -> None:
        if len(value) > limits.data_size_limit:
            self._log_too_long(len(value), limits.data_size_limit)
            asker.answered(False, token)
        elif len(cache_key) > KEY_LIMIT:
            asker.failed(Failure(self._long_key(cache_key)), token)
        else:
            self._cache.set_for(cache_key, value, self._settings.flags, ttl, limits, asker, token)

    def _log_too_long(self, size: int, limit: int) -> None:
        if not self._too_long_logged:
            self._too_long_logged = True
            self._log.warn(
                "{table}: a value of {size} bytes is not cached (data_size_limit is {limit}); logged once",
                table=self.name,
                size=size,
                limit=limit,
            )

    def _cache_ttl(self, ttl: int | None) -> int:
        """Give the cache's ttl for an entry that is to live this long: memcached's rules."""
        default = self._settings.ttl
        if ttl is None:
            return default
        now = self._clock()
        if self._backup is not None and default and (default if default <= MONTH else default - now) <= ttl:
            return default
        return ttl if ttl <= MONTH else int(now + ttl)

    # What all operations share.

    def _if_in_domain(self, key: bytes, action: Callable[[bytes], Deferred[Any]], skipped: object) -> Deferred[Any]:
        domain = self._settings.domain
        match = domain is None or domain.match_address(key)
        if isinstance(match, Deferred):
            self._under_way += 1
            return match.addCallback(lambda yes: action(key) if yes else skipped).addBoth(self._done)
        return action(key) if match else succeed(skipped)

    def _cache_key(self, key: bytes) -> bytes | None:
        """Make the key that the cache is asked for, or ``None`` for one that is skipped."""
        if self._plain is not None:
            before, after = self._plain
            cache_key = before + key + after
            return None if has_forbidden(cache_key) else cache_key
        expanded = self._settings.key_format.expand(key)
        if expanded is not None and self._settings.key_digest:
            return hashlib.new(self._settings.key_digest, expanded, usedforsecurity=False).hexdigest().encode()
        return None if expanded is None or has_forbidden(expanded) else expanded

    def _are_cache_keys(self, keys: list[bytes | None]) -> bool:
        """Say whether the cache is asked for just these keys; no where some of them need a closer look."""
        present = [key for key in keys if key]
        return self._plain == (b"", b"") and len(present) == len(keys) and not has_forbidden(b"".join(present))

    # The end.

    def close(self) -> None:
        """Let go of everything; see :class:`ITable`."""
        self._closed = True
        if not self._under_way:
            self._let_go()

    def _done(self, result: Any) -> Any:
        self._under_way -= 1
        if self._closed and not self._under_way:
            self._let_go()
        return result

    def _let_go(self) -> None:
        pool, self._pool = self._pool, None
        if pool is None:
            return
        pool.release(self._cache)
        if self._backup is not None:
            self._backup.close()
        if self._settings.domain is not None:
            self._settings.domain.close()


def _fill_in(found: list[Answer], answers: list[Answer], places: Iterable[int]) -> list[Answer]:
    for place, answer in zip(places, found, strict=True):
        answers[place] = answer
    return answers


@attrs.frozen
class _BeforeBackup:
    """Hears what the cache has to say of a key, and lets the backup speak where that is not the last word."""

    _ask_backup: Callable[[bytes, bytes], Deferred[bytes | None]]
    _done: Callable[[Any], Any]

    def answered(self, value: bytes | None, token: tuple[bytes, bytes, Asker, Any]) -> None:
        key, cache_key, asker, asker_token = token
        if value is not None:
            self._done(value)
            asker.answered(value, asker_token)
        else:
            tell(self._ask_backup(key, cache_key).addBoth(self._done), asker, asker_token)

    def failed(self, failure: Failure, token: tuple[bytes, bytes, Asker, Any]) -> None:
        key, cache_key, asker, asker_token = token
        if failure.check(TemporaryError) is None:
            self._done(failure)
            asker.failed(failure, asker_token)
        else:
            tell(self._ask_backup(key, cache_key).addBoth(self._done), asker, asker_token)


@attrs.frozen
class _Unsure:
    """The cache does not have a key; whether it exists is for the backup to say."""

    key: bytes
    cache_key: bytes


def _ignore_failure(failure: Failure) -> None:
    # The client has logged it.
    failure.trap(TemporaryError)
