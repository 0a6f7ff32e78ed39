"""Leases: of all hosts that miss a key at the same time, one asks the backup.

The first to ask memcached for a key that it does not have wins the lease: a mark takes the place of the value, until
the winner puts in what the backup says. It does so only if the mark is still there, so that what anybody has updated or
deleted meanwhile stays so. The others wait for the value, but not longer than ``lease_timeout``, and no longer than the
mark is that of the winner they began to wait for.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from socketmap_memcache.errors import TableError, TemporaryError
from socketmap_memcache.memcache.interface import ILeaseCache, Leased
from socketmap_memcache.tables.backup_queries import BackupQueries, ignore_failure
from socketmap_memcache.tables.cache_entries import MISSING, CacheEntries
from socketmap_memcache.tables.interface import ITable
from socketmap_memcache.tables.lease_support import LeaseSupport
from socketmap_memcache.tables.memcache_settings import Settings
from socketmap_memcache.tables.single_flight import SingleFlight, Waiters
from socketmap_memcache.under_way import UnderWay

#: Seconds before those who wait look for the value again, at first and at most; it doubles in between.
FIRST_PAUSE = 0.01
LAST_PAUSE = 0.08

#: How often it is found out whether a value is stale: as a share of ``stale_ttl``, and in seconds at most.
CHECK_SHARE = 0.125
LONGEST_CHECK = 10.0

#: Keys for which that is remembered.
_CHECKED_LIMIT = 10_000


class LeasedQueries(BackupQueries):
    """Asks the backup for the keys whose leases this process wins, and waits for others with the rest.

    Where there is an old value, which ``stale_ttl`` lets live on, nobody waits: all are given that.
    """

    _log = Logger()
    may_be_lease = True

    def __init__(
        self,
        table: str,
        settings: Settings,
        cache: ILeaseCache,
        entries: CacheEntries,
        backup: ITable,
        under_way: UnderWay,
        reactor: IReactorTime,
    ) -> None:
        """:param table: its name, for the log.

        :param under_way: counts the queries that nobody waits for.
        """
        super().__init__(settings, cache, entries, backup)
        self._leases = cache
        self._under_way = under_way
        self._reactor = reactor
        self._support = LeaseSupport(table, reactor.seconds)
        self._refreshes = SingleFlight()  # queries because of stale values
        self.may_be_stale = settings.leases.stale_ttl > 0
        self._interval = min(settings.leases.stale_ttl * CHECK_SHARE, LONGEST_CHECK)
        self._checked: set[bytes] = set()  # keys of which it was found out whether they are stale,
        self._forget_at = float("-inf")  # and when that is to be forgotten

    def was_cached(self, key: bytes, cache_key: bytes) -> None:
        """See to it that a stale value does not stay so, once in a while for each key; see :class:`BackupQueries`.

        A plain look-up does not tell what is stale, but takes a fifth of the time of one that may win a lease.
        """
        now = self._reactor.seconds()
        if not 0 < self._forget_at - now <= self._interval or len(self._checked) >= _CHECKED_LIMIT:
            self._checked.clear()
            self._forget_at = now + self._interval
        if key not in self._checked and self._support.expected():
            self._checked.add(key)
            self._behind_the_back(self.ask(key, cache_key))

    def change_begins(self, key: bytes) -> None:
        """Hear that a change begins; see :class:`BackupQueries`."""
        super().change_begins(key)
        self._refreshes.detach(key)

    def change_ends(self, key: bytes) -> None:
        """Hear that a change is done; see :class:`BackupQueries`."""
        super().change_ends(key)
        self._refreshes.detach(key)

    def _query(self, key: bytes, cache_key: bytes) -> Deferred[bytes | None]:
        if not self._support.expected():
            return self._query_backup(key, cache_key)
        wait = _Wait(self._reactor.seconds() + self._settings.leases.lease_timeout)
        return self._ask_lease(key, cache_key, wait, self._flights.current(key))

    def _ask_lease(self, key: bytes, cache_key: bytes, wait: _Wait, flight: Waiters | None) -> Deferred[bytes | None]:
        leases = self._settings.leases
        answer: Deferred[Any] = self._leases.get_leased(
            cache_key, self._entries.once, leases.lease_timeout, leases.stale_ttl
        )
        return answer.addCallbacks(
            self._leased, self._not_leased, callbackArgs=(key, cache_key, wait, flight), errbackArgs=(key, cache_key)
        )

    def _leased(
        self, leased: Leased, key: bytes, cache_key: bytes, wait: _Wait, flight: Waiters | None
    ) -> Deferred[bytes | None] | bytes | None:
        self._support.prove()
        if leased.value == MISSING:
            return None  # this is never stale: it is not kept longer than negative_ttl
        if leased.value is not None:
            if leased.won:
                self._refresh(key, cache_key, leased.cas)
            return leased.value
        if leased.won:
            return self._fill(key, cache_key, leased.cas, flight)
        pause = wait.next_pause(leased.cas, self._reactor.seconds())
        if pause is None:
            return self._backup.lookup(key)
        later: Deferred[Any] = deferLater(self._reactor, pause)
        return later.addCallback(lambda _: self._ask_lease(key, cache_key, wait, flight))

    def _not_leased(self, failure: Failure, key: bytes, cache_key: bytes) -> Deferred[bytes | None]:
        failure.trap(TemporaryError)
        self._support.doubt(failure.value)
        return self._query_backup(key, cache_key)

    # With a lease.

    def _fill(self, key: bytes, cache_key: bytes, cas: bytes, flight: Waiters | None) -> Deferred[bytes | None]:
        """Ask the backup, and put what it says in place of the mark."""
        answer: Deferred[Any] = self._backup.lookup(key)
        return answer.addCallbacks(
            self._filled,
            self._not_filled,
            callbackArgs=(key, cache_key, cas, flight, self._flights),
            errbackArgs=(cache_key, cas),
        )

    def _filled(
        self,
        value: bytes | None,
        key: bytes,
        cache_key: bytes,
        cas: bytes,
        flight: Waiters | None,
        flights: SingleFlight,
    ) -> bytes | None:
        entry = self._entries.from_backup(cache_key, value) if self._unchanged(key, flight, flights) else None
        if entry is None:
            self._give_up(cache_key, cas)
        else:
            data, ttl = entry
            stored = self._leases.refill(cache_key, data, self._settings.flags, ttl, cas, self._entries.once)
            stored.addErrback(ignore_failure)
        return value

    def _not_filled(self, failure: Failure, cache_key: bytes, cas: bytes) -> Failure:
        self._give_up(cache_key, cas)
        return failure

    def _give_up(self, cache_key: bytes, cas: bytes) -> None:
        """Take the mark or the stale value away, so that nobody waits for nothing, or is given what is no more."""
        self._leases.give_up(cache_key, cas, self._entries.once).addErrback(ignore_failure)

    def _refresh(self, key: bytes, cache_key: bytes, cas: bytes) -> None:
        """Ask the backup, for which nobody waits, and put what it says in place of the stale value.

        If it fails the stale value stays, as long as ``stale_ttl`` lets it.
        """
        self._behind_the_back(self._refreshes.run(key, self._query_refresh, key, cache_key, cas))

    def _query_refresh(self, key: bytes, cache_key: bytes, cas: bytes) -> Deferred[bytes | None]:
        answer: Deferred[bytes | None] = self._backup.lookup(key)
        return answer.addCallback(self._filled, key, cache_key, cas, self._refreshes.current(key), self._refreshes)

    def _behind_the_back(self, query: Deferred[bytes | None]) -> None:
        """Let a query go on for which no look-up waits."""
        self._under_way.count += 1
        query.addErrback(self._unheard).addBoth(self._under_way.done)

    def _unheard(self, failure: Failure) -> None:
        if failure.check(TableError) is None:
            self._log.failure("an unforeseen error of the backup", failure)


class _Wait:
    """One look-up's waiting for the winner of a lease."""

    def __init__(self, until: float) -> None:
        """:param until: when it is over, in reactor seconds."""
        self._until = until
        self._cas: bytes | None = None
        self._pause = FIRST_PAUSE

    def next_pause(self, cas: bytes, now: float) -> float | None:
        """Say how long to wait before looking again; ``None`` where there is nothing to wait for any more.

        :param cas: tells the winner. Another one than at first has waited in vain as well, so one need not wait for it.
        """
        if self._cas is None:
            self._cas = cas
        if cas != self._cas or now >= self._until:
            return None
        pause, self._pause = self._pause, min(self._pause * 2, LAST_PAUSE)
        return min(pause, self._until - now)
