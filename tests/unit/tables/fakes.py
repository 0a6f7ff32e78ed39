"""A cache, a backup and a domain list that answer as told, and remember what they were asked."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from socketmap_memcache.asker import Asker, tell
from socketmap_memcache.memcache.interface import IBatchCache, ICache, Limits
from socketmap_memcache.memcache.pool import ClientPool
from socketmap_memcache.tables.interface import ICursor, ITable
from socketmap_memcache.tables.key_format import KeyFormat
from socketmap_memcache.tables.match_list import MatchList
from socketmap_memcache.tables.memcache import MemcacheTable
from socketmap_memcache.tables.memcache_settings import LeaseSettings, Settings
from socketmap_memcache.tables.read_only import ItemsCursor

Answer = bytes | Exception | None


def answer(known: Answer | bool | Deferred[Any]) -> Deferred[Any]:
    if isinstance(known, Deferred):
        return known
    return fail(known) if isinstance(known, Exception) else succeed(known)


@implementer(ICache)
class FakeCache:
    """Answers as told, and remembers what it was asked."""

    name = "inet:fake:1"

    def __init__(
        self, trace: list[str], get: Answer | Deferred[Any] = None, stored: Answer | Deferred[Any] = None
    ) -> None:
        self.trace = trace
        self.get_answer = get
        self.set_answer = stored
        self.delete_answer: bool | Exception | Deferred[Any] = True
        self.limits: Limits | None = None
        self.set_limits: Limits | None = None

    def get(self, key: bytes, limits: Limits) -> Deferred[bytes | None]:
        self.trace.append(f"get {key!r}")
        self.limits = limits
        return answer(self.get_answer)

    def get_for(self, key: bytes, limits: Limits, asker: Asker, token: Any) -> None:
        tell(self.get(key, limits), asker, token)

    def set(self, key: bytes, value: bytes, flags: int, ttl: int, limits: Limits) -> Deferred[bool]:
        self.trace.append(f"set {key!r} {value!r} {flags} {ttl}")
        self.set_limits = limits
        return answer(self.set_answer).addCallback(lambda _: True)

    def set_for(self, key: bytes, value: bytes, flags: int, ttl: int, limits: Limits, asker: Asker, token: Any) -> None:
        tell(self.set(key, value, flags, ttl, limits), asker, token)

    def delete(self, key: bytes, limits: Limits) -> Deferred[bool]:
        self.trace.append(f"delete {key!r}")
        return answer(self.delete_answer)

    def close(self) -> None:
        self.trace.append("close cache")


@implementer(ITable)
class FakeTable:
    """Answers as told, and remembers what it was asked."""

    def __init__(self, trace: list[str], known: Answer | Deferred[Any] = None, name: str = "backup") -> None:
        self.trace = trace
        self.known = known
        self.changed: bool | Exception | Deferred[Any] = True
        self.name = name

    def lookup(self, key: bytes) -> Deferred[bytes | None]:
        self.trace.append(f"{self.name} {key!r}")
        return answer(self.known)

    def update(self, key: bytes, value: bytes, ttl: int | None = None) -> Deferred[bool]:
        self.trace.append(f"{self.name} update {key!r} {value!r} {ttl}")
        return answer(self.changed)

    def delete(self, key: bytes) -> Deferred[bool]:
        self.trace.append(f"{self.name} delete {key!r}")
        return answer(self.changed)

    def cursor(self) -> ICursor:
        return ItemsCursor([(b"k", b"kept")])

    def close(self) -> None:
        self.trace.append(f"close {self.name}")


class FakePool:
    def __init__(self) -> None:
        self.reactor = Clock()

    def release(self, cache: ICache) -> None:
        cache.close()


class Domains(MatchList):
    """A domain list that answers as told."""

    def __init__(self, trace: list[str], matches: bool | Deferred[bool]) -> None:
        super().__init__([])
        self.trace = trace
        self.matches = matches

    def match_address(self, key: bytes) -> bool | Deferred[bool]:
        self.trace.append(f"domain of {key!r}")
        return self.matches

    def close(self) -> None:
        self.trace.append("close domain")


@implementer(IBatchCache)
class BatchCache(FakeCache):
    """Can be asked for many keys at once, and has what the test puts into it."""

    def __init__(self, trace: list[str]) -> None:
        super().__init__(trace)
        self.values: dict[bytes, bytes | None] = {}
        self.error: Exception | None = None
        self.tries = 0

    def get_many(self, keys: Collection[bytes], limits: Limits) -> Deferred[dict[bytes, bytes | None]]:
        self.trace.append(f"get {b' '.join(keys)!r}")
        self.tries = limits.max_try
        if self.error is not None:
            return fail(self.error)
        return succeed({key: self.values[key] for key in keys if key in self.values})


def open_table(
    cache: ICache, backup: ITable | None = None, domain: MatchList | None = None, **parameters: Any
) -> MemcacheTable:
    settings = Settings(
        flags=parameters.get("flags", 0),
        ttl=parameters.get("ttl", 3600),
        key_format=KeyFormat.parse(parameters.get("key_format", "%s")),
        key_digest=parameters.get("key_digest", ""),
        domain=domain,
        fold_keys=parameters.get("fold_keys", True),
        limits=Limits(data_size_limit=parameters.get("data_size_limit", 10240)),
        leases=parameters.get("leases", LeaseSettings()),
    )
    return MemcacheTable("memcache:/x.cf", settings, cache, backup, cast(ClientPool, FakePool()))


class MemcacheTableTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.trace: list[str] = []
        self.cache = FakeCache(self.trace, b"cached")
        self.backup = FakeTable(self.trace, b"kept")

    def lookup(self, table: MemcacheTable, key: bytes = b"k") -> bytes | None:
        return self.successResultOf(table.lookup(key))

    def assertTrace(self, *expected: str) -> None:
        assert self.trace == list(expected)
        self.trace.clear()
