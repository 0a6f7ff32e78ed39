"""A memcached with leases in memory, for several tables: each is what another host would have."""

from __future__ import annotations

from typing import Any, cast

import attrs
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock, deferLater
from zope.interface import implementer

from socketmap_memcache.asker import Asker, tell
from socketmap_memcache.memcache.interface import ICache, ILeaseCache, Leased, Limits
from socketmap_memcache.memcache.pool import ClientPool
from socketmap_memcache.tables.interface import ITable
from socketmap_memcache.tables.key_format import KeyFormat
from socketmap_memcache.tables.memcache import MemcacheTable
from socketmap_memcache.tables.memcache_settings import LeaseSettings, Settings
from tests.unit.tables.fakes import Answer, FakeTable, answer


@attrs.define
class Entry:
    """What the cache has of a key; a mark has no value."""

    value: bytes | None
    end: float
    cas: int
    won: bool = False


@implementer(ILeaseCache)
class LeaseCache:
    """Does at once what memcached 1.6.18 does.

    :ivar error: what it fails with, as long as it is set.
    :ivar lease_error: what only the commands for leases fail with.
    """

    name = "inet:fake:1"

    def __init__(self, clock: Clock) -> None:
        self.entries: dict[bytes, Entry] = {}
        self.trace: list[str] = []
        self.error: Exception | None = None
        self.lease_error: Exception | None = None
        self._clock = clock
        self._cas = 0

    def value(self, key: bytes) -> bytes | None:
        """Give what ``get`` says: to it, a mark is an empty value."""
        entry = self._entry(key)
        return None if entry is None else entry.value or b""

    def put(self, key: bytes, value: bytes | None, ttl: float) -> Entry:
        self._cas += 1
        entry = self.entries[key] = Entry(value, self._clock.seconds() + ttl, self._cas)
        return entry

    def _entry(self, key: bytes) -> Entry | None:
        entry = self.entries.get(key)
        return None if entry is None or entry.end <= self._clock.seconds() else entry

    def _did(self, command: str, result: Any, error: Exception | None = None) -> Deferred[Any]:
        self.trace.append(command)
        error = self.error or error
        return fail(error) if error else succeed(result)

    def get(self, key: bytes, limits: Limits) -> Deferred[bytes | None]:
        return self._did(f"get {key!r}", self.value(key))

    def get_for(self, key: bytes, limits: Limits, asker: Asker, token: Any) -> None:
        tell(self.get(key, limits), asker, token)

    def set(self, key: bytes, value: bytes, flags: int, ttl: int, limits: Limits) -> Deferred[bool]:
        if not self.error:
            self.put(key, value, ttl)
        return self._did(f"set {key!r} {value!r} {ttl}", True)

    def set_for(self, key: bytes, value: bytes, flags: int, ttl: int, limits: Limits, asker: Asker, token: Any) -> None:
        tell(self.set(key, value, flags, ttl, limits), asker, token)

    def delete(self, key: bytes, limits: Limits) -> Deferred[bool]:
        return self._did(f"delete {key!r}", not self.error and self.entries.pop(key, None) is not None)

    def get_leased(self, key: bytes, limits: Limits, lease_ttl: int, stale_ttl: int) -> Deferred[Leased]:
        assert limits.max_try == 1
        if self.error or self.lease_error:
            return self._did(f"mg {key!r}", None, self.lease_error)
        entry = self._entry(key)
        if entry is None:
            entry = self.put(key, None, lease_ttl)
            won, fresh = True, False
        else:
            fresh = entry.value is not None and entry.end - self._clock.seconds() >= stale_ttl
            won = not fresh and entry.value is not None and not entry.won
        entry.won = entry.won or won
        return self._did(f"mg {key!r}", Leased(entry.value, won, fresh, b"%d" % entry.cas))

    def refill(self, key: bytes, value: bytes, flags: int, ttl: int, cas: bytes, limits: Limits) -> Deferred[bool]:
        entry = self._entry(key)
        good = entry is not None and entry.cas == int(cas)
        if good:
            self.put(key, value, ttl)
        return self._did(f"ms {key!r} {value!r} {ttl}", good, self.lease_error)

    def give_up(self, key: bytes, cas: bytes, limits: Limits) -> Deferred[bool]:
        entry = self._entry(key)
        good = entry is not None and entry.cas == int(cas)
        if good:
            del self.entries[key]
        return self._did(f"md {key!r}", good, self.lease_error)

    def close(self) -> None:
        self.trace.append("close cache")


class SlowTable(FakeTable):
    """A backup that takes its time.

    :ivar asked: how many look-ups it has been asked for.
    """

    def __init__(self, clock: Clock, known: Answer = None, seconds: float = 0.3) -> None:
        super().__init__([], known)
        self.asked = 0
        self.seconds = seconds
        self._clock = clock

    def lookup(self, key: bytes) -> Deferred[bytes | None]:
        self.asked += 1
        known = self.known  # as it is now
        if not self.seconds:
            return answer(known)
        return deferLater(self._clock, self.seconds).addCallback(lambda _: answer(known))


@attrs.frozen
class Pool:
    reactor: Clock

    def release(self, cache: ICache) -> None:
        cache.close()


def host(clock: Clock, cache: ICache, backup: ITable | None, **settings: Any) -> MemcacheTable:
    """Give the table that one host has; ``ttl`` is 60."""
    leases = attrs.evolve(LeaseSettings(lease=True), **settings)
    made = Settings(0, 60, KeyFormat.parse("%s"), "", None, True, Limits(data_size_limit=100), leases)
    return MemcacheTable("memcache:/x.cf", made, cache, backup, cast(ClientPool, Pool(clock)))
