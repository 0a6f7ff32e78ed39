"""A cache in front of another one, in this process' memory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure
from zope.interface import alsoProvides, implementer

from socketmap_memcache.asker import FIRING, Asker
from socketmap_memcache.memcache.interface import IBatchCache, ICache, ILeaseCache, Leased, Limits
from socketmap_memcache.memcache.memory import MemoryCache
from socketmap_memcache.memcache.pool import ClientPool


@implementer(ICache)
class LocalCache:
    """Keeps values that were found for a short time. What others change in the cache behind is seen after that.

    What is changed through this cache is seen at once: nothing is kept that was asked for before the change was done.
    A miss or a failure is never kept, nor is a value that stands for one: empty, or with a NUL at its beginning, which
    no table's value has.

    It provides :class:`IBatchCache` and :class:`ILeaseCache` where the cache behind does.

    :ivar name: of the cache behind.
    """

    def __init__(self, cache: ICache, ttl: int, size_limit: int, pool: ClientPool) -> None:
        """Begin with nothing kept.

        :param cache: the one behind; it goes back to the pool in the end.
        :param ttl: seconds for which a value is kept; 1 to :data:`~socketmap_memcache.memcache.memory.MONTH`.
        :param size_limit: bytes that all values with their keys may take, about.
        """
        self.name = cache.name
        self._cache: Any = cache
        self._ttl = ttl
        self._pool = pool
        self._kept = MemoryCache(cache.name, size_limit, pool.reactor)
        self._asked: dict[bytes, object] = {}  # for each key, the last question whose answer may be kept
        self._keeping = _Keeping(self._keep)
        self._forgetting = _Forgetting(self._forget)
        for interface in (IBatchCache, ILeaseCache):
            if interface.providedBy(cache):
                alsoProvides(self, interface)

    # Questions.

    def get(self, key: bytes, limits: Limits) -> Deferred[bytes | None]:
        """Ask for a value; see :class:`ICache`."""
        answer: Deferred[bytes | None] = Deferred()
        self.get_for(key, limits, FIRING, answer)
        return answer

    def get_for(self, key: bytes, limits: Limits, asker: Asker, token: Any) -> None:
        """Ask for a value; see :class:`ICache`."""
        value = self._kept.use(key)
        if value is not None:
            asker.answered(value, token)
            return
        question = self._asked[key] = (key, asker, token)
        self._cache.get_for(key, limits, self._keeping, question)

    def get_many(self, keys: Collection[bytes], limits: Limits) -> Deferred[dict[bytes, bytes | None]]:
        """Ask for several values; see :class:`IBatchCache`."""
        kept = {key: self._kept.use(key) for key in keys}
        missing = [key for key, value in kept.items() if value is None]
        for key in missing:
            del kept[key]
        if not missing:
            return succeed(kept)
        question = object()
        self._asked.update(dict.fromkeys(missing, question))
        answer: Deferred[dict[bytes, bytes | None]] = self._cache.get_many(missing, limits)
        answer.addCallbacks(
            self._keep_many, self._failed, callbackArgs=(missing, question), errbackArgs=(missing, question)
        )
        return answer.addCallback(lambda found: {**kept, **found})

    def get_leased(self, key: bytes, limits: Limits, lease_ttl: int, stale_ttl: int) -> Deferred[Leased]:
        """Ask for a value or a lease; see :class:`ILeaseCache`. A stale value is not kept.

        Whatever is kept, the cache behind is asked: only that one knows whether the value has become stale.
        """
        question = self._asked[key] = object()
        answer: Deferred[Leased] = self._cache.get_leased(key, limits, lease_ttl, stale_ttl)
        return answer.addCallbacks(
            self._keep_leased, self._failed, callbackArgs=(key, question), errbackArgs=((key,), question)
        )

    # Changes.

    def set(self, key: bytes, value: bytes, flags: int, ttl: int, limits: Limits) -> Deferred[bool]:
        """Store a value; see :class:`ICache`."""
        answer: Deferred[bool] = Deferred()
        self.set_for(key, value, flags, ttl, limits, FIRING, answer)
        return answer

    def set_for(self, key: bytes, value: bytes, flags: int, ttl: int, limits: Limits, asker: Asker, token: Any) -> None:
        """Store a value; see :class:`ICache`."""
        self._forget(key)
        self._cache.set_for(key, value, flags, ttl, limits, self._forgetting, (key, asker, token))

    def delete(self, key: bytes, limits: Limits) -> Deferred[bool]:
        """Delete a key; see :class:`ICache`."""
        return self._changing(key, self._cache.delete, limits)

    def refill(self, key: bytes, value: bytes, flags: int, ttl: int, cas: bytes, limits: Limits) -> Deferred[bool]:
        """Use a lease; see :class:`ILeaseCache`."""
        return self._changing(key, self._cache.refill, value, flags, ttl, cas, limits)

    def give_up(self, key: bytes, cas: bytes, limits: Limits) -> Deferred[bool]:
        """Do not use a lease; see :class:`ILeaseCache`."""
        return self._changing(key, self._cache.give_up, cas, limits)

    def close(self) -> None:
        """Forget everything, and give the cache behind back; see :class:`ICache`."""
        self._kept.close()
        self._asked.clear()
        self._pool.release(self._cache)

    # What is kept.

    def _keep(self, key: bytes, question: object, value: bytes | None) -> None:
        """Keep the answer to a question, unless the key has been changed since, or the same was asked again."""
        if self._asked.get(key) is question:
            del self._asked[key]
            if value and not value.startswith(b"\0"):
                self._kept.put(key, value, self._ttl)

    def _keep_many(
        self, found: dict[bytes, bytes | None], keys: Iterable[bytes], question: object
    ) -> dict[bytes, bytes | None]:
        for key in keys:
            self._keep(key, question, found.get(key))
        return found

    def _keep_leased(self, leased: Leased, key: bytes, question: object) -> Leased:
        self._keep(key, question, leased.value if leased.fresh else None)
        return leased

    def _failed(self, failure: Failure, keys: Iterable[bytes], question: object) -> Failure:
        for key in keys:
            self._keep(key, question, None)
        return failure

    def _changing(self, key: bytes, change: Callable[..., Deferred[bool]], *arguments: object) -> Deferred[bool]:
        self._forget(key)

        def forget(result: Any) -> Any:
            self._forget(key)
            return result

        return change(key, *arguments).addBoth(forget)

    def _forget(self, key: bytes) -> None:
        """Forget a key: before a change, and after it, for it may take several tries, with questions in between."""
        self._kept.remove(key)
        self._asked.pop(key, None)


class _Keeping:
    """Hears an answer, and lets it be kept."""

    __slots__ = ("_keep",)

    def __init__(self, keep: Callable[[bytes, object, bytes | None], None]) -> None:
        self._keep = keep

    def answered(self, value: bytes | None, question: tuple[bytes, Asker, Any]) -> None:
        key, asker, token = question
        self._keep(key, question, value)
        asker.answered(value, token)

    def failed(self, failure: Failure, question: tuple[bytes, Asker, Any]) -> None:
        key, asker, token = question
        self._keep(key, question, None)
        asker.failed(failure, token)


class _Forgetting:
    """Hears that a change is done, and lets the key be forgotten."""

    __slots__ = ("_forget",)

    def __init__(self, forget: Callable[[bytes], None]) -> None:
        self._forget = forget

    def answered(self, value: bool, token: tuple[bytes, Asker, Any]) -> None:
        key, asker, asker_token = token
        self._forget(key)
        asker.answered(value, asker_token)

    def failed(self, failure: Failure, token: tuple[bytes, Asker, Any]) -> None:
        key, asker, asker_token = token
        self._forget(key)
        asker.failed(failure, asker_token)
