"""``memcache:``: a cache in front of a backup table, as memcache_table(5) describes it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any

import attrs
from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from socketmap_memcache.config.parameters import Parameters
from socketmap_memcache.config.syntax import parse, read_file
from socketmap_memcache.errors import ConfigurationError, Problem, TemporaryError
from socketmap_memcache.memcache.client import PATIENCE
from socketmap_memcache.memcache.interface import ICache, Limits
from socketmap_memcache.memcache.pool import ClientPool
from socketmap_memcache.memcache.server import Server
from socketmap_memcache.protocols.memcache import KEY_LIMIT, has_forbidden
from socketmap_memcache.tables.folding import normalize
from socketmap_memcache.tables.interface import ITable
from socketmap_memcache.tables.key_format import KeyFormat
from socketmap_memcache.tables.match_list import MatchList
from socketmap_memcache.tables.registry import TableContext


@attrs.frozen
class Settings:
    """What a ``.cf`` file sets, beside the cache and the backup.

    :ivar flags: sent with each update, as they are.
    :ivar ttl: sent with each update, as it is: memcached's rules.
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


@implementer(ITable)
class MemcacheTable:
    """Asks the cache first; on a miss or a failure there, the backup, whose answer then counts, and refills the cache.

    Without a backup a miss is a miss and a failure a failure. A key is *skipped*, which means missing without asking
    either, when it is empty, is not UTF-8, is not in ``domain``, has not what ``key_format`` needs, or makes a key for
    the cache that has white space or control characters.
    """

    _log = Logger()

    def __init__(self, name: str, settings: Settings, cache: ICache, backup: ITable | None, pool: ClientPool) -> None:
        """Make a table that will give the cache back to the pool, and close the backup and the domain list."""
        self.name = name
        self._settings = settings
        self._limits = settings.limits
        self._format = settings.key_format
        self._cache = cache
        self._backup = backup
        self._pool: ClientPool | None = pool
        self._under_way = 0  # look-ups that may still need the cache or the backup
        self._closed = False
        self._too_long_logged = False

    def lookup(self, key: bytes) -> Deferred[bytes | None]:
        """Look up a key; see :class:`ITable`."""
        folded = normalize(key, self._settings.fold_keys)
        if not folded:
            return succeed(None)
        if self._settings.domain is None:
            return self._lookup_in_domain(folded)
        match = self._settings.domain.match_address(folded)
        if isinstance(match, Deferred):
            self._under_way += 1
            return match.addCallback(lambda yes: self._lookup_in_domain(folded) if yes else None).addBoth(self._done)
        return self._lookup_in_domain(folded) if match else succeed(None)

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

    def _lookup_in_domain(self, key: bytes) -> Deferred[bytes | None]:
        cache_key = self._cache_key(key)
        if cache_key is None or has_forbidden(cache_key):
            return succeed(None)
        if len(cache_key) > KEY_LIMIT:
            # memcached would refuse it. Postfix asks all the same, and ends up here some seconds later.
            if self._backup is not None:
                return self._backup.lookup(key)
            size = len(cache_key)
            return fail(TemporaryError(f"{self.name}: the cache key has {size} bytes; memcached takes {KEY_LIMIT}"))
        answer: Deferred[bytes | None] = self._cache.get(cache_key, self._limits)
        if self._backup is not None:
            asked = (key, cache_key)
            self._under_way += 1
            answer.addCallbacks(self._cached, self._cache_failed, callbackArgs=asked, errbackArgs=asked)
        return answer

    def _cache_key(self, key: bytes) -> bytes | None:
        expanded = self._format.expand(key)
        if expanded is None or not self._settings.key_digest:
            return expanded
        return hashlib.new(self._settings.key_digest, expanded, usedforsecurity=False).hexdigest().encode()

    def _cached(self, value: bytes | None, key: bytes, cache_key: bytes) -> Any:
        return self._ask_backup(key, cache_key) if value is None else self._done(value)

    def _cache_failed(self, failure: Failure, key: bytes, cache_key: bytes) -> Any:
        if failure.check(TemporaryError) is None:
            return self._done(failure)
        return self._ask_backup(key, cache_key)

    def _ask_backup(self, key: bytes, cache_key: bytes) -> Deferred[bytes | None]:
        assert self._backup is not None
        answer: Deferred[bytes | None] = self._backup.lookup(key)
        return answer.addCallback(self._refill, cache_key).addBoth(self._done)

    def _refill(self, value: bytes | None, cache_key: bytes) -> bytes | None:
        """Put into the cache what the backup has. The look-up does not wait for it, nor fail with it."""
        limits = self._limits
        if value is None:
            return None
        if len(value) <= limits.data_size_limit:
            settings = self._settings
            stored = self._cache.set(cache_key, value, settings.flags, settings.ttl, limits)
            stored.addErrback(_ignore_failure)
        elif not self._too_long_logged:
            self._too_long_logged = True
            self._log.warn(
                "{table}: a value of {size} bytes is not cached (data_size_limit is {limit}); logged once",
                table=self.name,
                size=len(value),
                limit=limits.data_size_limit,
            )
        return value


def _ignore_failure(failure: Failure) -> None:
    # The client has logged it.
    failure.trap(TemporaryError)


def open_memcache(name: str, context: TableContext) -> ITable:
    """Open the table that a ``.cf`` file describes.

    Beside the parameters of memcache_table(5) the file may have ``fold_keys`` (default: yes), and with
    ``memcache = memory:`` there is ``memory_size_limit`` (default: 64 MiB).

    :param name: the file; as with Postfix, its name begins with ``/`` or ``.``.
    :raises ConfigurationError: for whatever Postfix would stop with or that can never work.
    """
    if not name.startswith(("/", ".")):
        text = (
            f"table 'memcache:{name}': write the name of a file that begins with / or ./ "
            "(Postfix would look for parameters in its own main.cf, which are not read here)"
        )
        raise ConfigurationError([Problem(text)])
    parameters = Parameters(parse(read_file(name), name))
    settings = _settings(parameters, context)
    open_cache = _cache(parameters, context.clients)
    backup = _backup(parameters, context)
    parameters.unknown(fatal=False)
    try:
        parameters.finish(context.warnings)
    except ConfigurationError:
        for opened in (settings.domain, backup):
            if opened is not None:
                opened.close()
        raise
    return MemcacheTable(f"memcache:{name}", settings, open_cache(), backup, context.clients)


def _settings(parameters: Parameters, context: TableContext) -> Settings:
    timeout = parameters.integer("timeout", 2, minimum=0)
    return Settings(
        flags=parameters.integer("flags", 0),
        ttl=parameters.integer("ttl", 3600),
        key_format=_key_format(parameters),
        key_digest=_key_digest(parameters),
        domain=_domain(parameters, context),
        fold_keys=parameters.boolean("fold_keys", True),
        limits=Limits(
            # 0 means "no limit"; but Postfix itself gives up on a socketmap after 100 seconds.
            timeout=timeout or PATIENCE,
            max_try=parameters.integer("max_try", 2, minimum=1),
            retry_pause=parameters.integer("retry_pause", 1, minimum=1),
            line_size_limit=parameters.integer("line_size_limit", 1024, minimum=1),
            data_size_limit=parameters.integer("data_size_limit", 10240, minimum=1),
        ),
    )


def _key_format(parameters: Parameters) -> KeyFormat:
    try:
        key_format = KeyFormat.parse(parameters.text("key_format", "%s"))
    except ValueError as error:
        parameters.error("key_format", str(error))
        return KeyFormat.parse("%s")
    if not key_format.template:
        parameters.warn("key_format", "an empty key_format disables all look-ups")
    elif any(byte in b" \t\r\n\v\f" for byte in key_format.template) and not parameters.text("key_digest", ""):
        parameters.warn("key_format", "a key_format with white space disables all look-ups")
    return key_format


def _key_digest(parameters: Parameters) -> str:
    name = parameters.text("key_digest", "").lower()
    try:
        if name:
            hashlib.new(name, usedforsecurity=False).hexdigest()
    except (ValueError, TypeError):  # TypeError: a digest without a length of its own
        parameters.error("key_digest", f"key digest {name} is not available (sha256 is, for example)")
        return ""
    return name


def _domain(parameters: Parameters, context: TableContext) -> MatchList | None:
    spec = parameters.text("domain", "")
    if not spec:
        return None
    try:
        return MatchList.parse(spec, context)
    except ConfigurationError as error:
        parameters.adopt("domain", error.problems)
        return None


def _cache(parameters: Parameters, pool: ClientPool) -> Callable[[], ICache]:
    """Give a function that opens the cache, to be called when the rest of the file has turned out to be good."""
    spec = parameters.text("memcache", "inet:localhost:11211")
    size_limit = parameters.integer("memory_size_limit", 64 * 1024 * 1024, minimum=1)
    if spec == "memory:":
        return partial(pool.memory, spec, size_limit)
    try:
        return partial(pool.memcached, Server.parse(spec))
    except ValueError as error:
        parameters.error("memcache", str(error))
        return partial(pool.memory, spec, size_limit)


def _backup(parameters: Parameters, context: TableContext) -> ITable | None:
    spec = parameters.text("backup", "")
    if not spec:
        return None
    try:
        return context.open_table(spec)
    except ConfigurationError as error:
        parameters.adopt("backup", error.problems)
        return None
