"""A cache that answers when a test says so, and a pool that takes caches back."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from zope.interface import implementer

from socketmap_memcache.asker import Asker, tell
from socketmap_memcache.memcache.interface import IBatchCache, ICache, ILeaseCache, Leased, Limits


@implementer(IBatchCache, ILeaseCache)
class HeldCache:
    """Remembers its questions, as the method's name with the arguments, and the Deferreds that are its answers."""

    name = "inet:held:1"

    def __init__(self) -> None:
        self.questions: list[tuple[Any, ...]] = []
        self.answers: list[Deferred[Any]] = []

    def take(self) -> tuple[Any, ...]:
        """Give the oldest question that has not been taken, limits left out."""
        return tuple(part for part in self.questions.pop(0) if not isinstance(part, Limits))

    def answer(self, result: Any) -> None:
        """Answer the oldest question that has no answer."""
        self.answers.pop(0).callback(result)

    def fail(self, error: Exception) -> None:
        self.answers.pop(0).errback(error)

    def _ask(self, *question: Any) -> Deferred[Any]:
        self.questions.append(question)
        self.answers.append(Deferred())
        return self.answers[-1]

    def get(self, key: bytes, limits: Limits) -> Deferred[bytes | None]:
        return self._ask("get", key, limits)

    def get_for(self, key: bytes, limits: Limits, asker: Asker, token: Any) -> None:
        tell(self.get(key, limits), asker, token)

    def get_many(self, keys: Collection[bytes], limits: Limits) -> Deferred[dict[bytes, bytes | None]]:
        return self._ask("get_many", list(keys), limits)

    def set(self, key: bytes, value: bytes, flags: int, ttl: int, limits: Limits) -> Deferred[bool]:
        return self._ask("set", key, value, flags, ttl, limits)

    def set_for(self, key: bytes, value: bytes, flags: int, ttl: int, limits: Limits, asker: Asker, token: Any) -> None:
        tell(self.set(key, value, flags, ttl, limits), asker, token)

    def delete(self, key: bytes, limits: Limits) -> Deferred[bool]:
        return self._ask("delete", key, limits)

    def get_leased(self, key: bytes, limits: Limits, lease_ttl: int, stale_ttl: int) -> Deferred[Leased]:
        return self._ask("get_leased", key, lease_ttl, stale_ttl, limits)

    def refill(self, key: bytes, value: bytes, flags: int, ttl: int, cas: bytes, limits: Limits) -> Deferred[bool]:
        return self._ask("refill", key, value, flags, ttl, cas, limits)

    def give_up(self, key: bytes, cas: bytes, limits: Limits) -> Deferred[bool]:
        return self._ask("give_up", key, cas, limits)

    def close(self) -> None:
        self.questions.append(("close",))


class HeldPool:
    """Has a clock for its reactor."""

    def __init__(self, now: float) -> None:
        self.reactor = Clock()
        self.reactor.advance(now)

    def release(self, cache: ICache) -> None:
        cache.close()
