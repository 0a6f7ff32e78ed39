"""Several memcached as one cache: each key has its servers on a ring."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred, DeferredList
from twisted.python.failure import Failure
from zope.interface import implementer

from socketmap_memcache.asker import FIRING, Asker, tell
from socketmap_memcache.clock import time_of_day
from socketmap_memcache.errors import TemporaryError
from socketmap_memcache.memcache.change import Change
from socketmap_memcache.memcache.interface import (
    IBatchCache,
    ILeaseCache,
    IMember,
    Leased,
    LeasesUnsupportedError,
    Limits,
)
from socketmap_memcache.memcache.members import FailureRule, Members, Placement
from socketmap_memcache.memcache.pool import ClientPool
from socketmap_memcache.memcache.search import Search
from socketmap_memcache.under_way import UnderWay


@implementer(IBatchCache, ILeaseCache)
class Cluster:
    """The cache of a table with several servers.

    With one copy of each key and no stand-ins (the default rule) all is left to the client of the key's server, and its
    failures are those of the cluster. With replicas or stand-ins each server is given one try, and the next is asked:
    see :class:`~socketmap_memcache.memcache.search.Search` and :class:`~socketmap_memcache.memcache.change.Change`.
    """

    def __init__(
        self,
        clients: Sequence[IMember],
        ring: Placement,
        rule: FailureRule,
        ttl: int,
        pool: ClientPool,
    ) -> None:
        """Make a cluster that will give its clients back to the pool.

        :param ring: gives the numbers of servers as they are in ``clients``.
        :param ttl: the ``ttl`` of the table.
        """
        self.name = ", ".join(client.name for client in clients)
        self._clients = clients
        self._index_of = ring.index_of
        history, reactor = pool.history(self.name), pool.reactor
        self._members = Members(clients, ring, rule, ttl, history, reactor.seconds, time_of_day(reactor))
        self._plain = rule.replicas == 1 and not rule.stand_in
        self._pool = pool
        self._tries = _SingleTries()
        self._under_way = UnderWay(self._let_go)
        self._last = _LastAnswer(self._under_way)
        self._first = _FirstAnswer(self._members, rule.replicas == 1, self._last)

    def get(self, key: bytes, limits: Limits) -> Deferred[bytes | None]:
        """Ask for a value; see :class:`ICache`."""
        answer: Deferred[bytes | None] = Deferred()
        self.get_for(key, limits, FIRING, answer)
        return answer

    def get_for(self, key: bytes, limits: Limits, asker: Asker, token: Any) -> None:
        """Ask for a value; see :class:`ICache`."""
        index = self._index_of(key)
        client = self._clients[index]
        if self._plain:
            client.get_for(key, limits, asker, token)
            return
        once = self._tries.single(limits)
        self._under_way.count += 1
        if client.usable:
            client.get_for(key, once, self._first, (key, index, limits, once, (asker, token)))
        else:
            Search(self._members, key, limits, once, self._last, (asker, token)).begin()

    def get_many(self, keys: Collection[bytes], limits: Limits) -> Deferred[dict[bytes, bytes | None]]:
        """Ask for several values; see :class:`IBatchCache`. It never fails: what a failed server has is ``None``."""
        parts: dict[int, list[bytes]] = {}
        for key in keys:
            parts.setdefault(self._index_of(key), []).append(key)
        tries = limits if self._plain else self._tries.single(limits)
        asked = [self._clients[index].get_many(part, tries) for index, part in parts.items()]
        gets = DeferredList(asked, consumeErrors=True)
        return gets.addCallback(self._join, parts, limits)

    def _join(
        self, results: list[tuple[bool, dict[bytes, bytes | None]]], parts: dict[int, list[bytes]], limits: Limits
    ) -> dict[bytes, bytes | None]:
        values: dict[bytes, bytes | None] = {}
        members = self._members
        replicated = members.rule.replicas > 1
        for (succeeded, found), (index, part) in zip(results, parts.items(), strict=True):
            if not succeeded or replicated or (members.may_have_stand_in(index) and not limits.backed):
                values.update(dict.fromkeys(part))
            if succeeded:
                # An empty value is for Search as well: it may be the mark of a lease.
                values.update({key: value for key, value in found.items() if value or not replicated})
        return values

    def set(self, key: bytes, value: bytes, flags: int, ttl: int, limits: Limits) -> Deferred[bool]:
        """Store a value; see :class:`ICache`."""
        answer: Deferred[bool] = Deferred()
        self.set_for(key, value, flags, ttl, limits, FIRING, answer)
        return answer

    def set_for(self, key: bytes, value: bytes, flags: int, ttl: int, limits: Limits, asker: Asker, token: Any) -> None:
        """Store a value; see :class:`ICache`."""
        if self._plain:
            self._clients[self._index_of(key)].set_for(key, value, flags, ttl, limits, asker, token)
            return
        members, once = self._members, self._tries.single(limits)

        def send(index: int, stand_in: bool, change: Asker) -> None:
            lasting = members.stand_in_ttl(ttl) if stand_in else ttl
            members.clients[index].set_for(key, value, flags, lasting, once, change, index)

        members.note_ttl(ttl)
        self._clear_stand_ins(key, once)
        self._under_way.count += 1
        Change(members, key, send, True, self._last, (asker, token)).begin()

    def delete(self, key: bytes, limits: Limits) -> Deferred[bool]:
        """Delete a key; see :class:`ICache`."""
        if self._plain:
            deleted: Deferred[bool] = self._clients[self._index_of(key)].delete(key, limits)
            return deleted
        members, once = self._members, self._tries.single(limits)

        def send(index: int, _: bool, change: Asker) -> None:
            tell(members.clients[index].delete(key, once), change, index)

        answer: Deferred[bool] = Deferred()
        self._clear_stand_ins(key, once)
        self._under_way.count += 1
        Change(members, key, send, False, self._last, (FIRING, answer)).begin()
        return answer

    def _clear_stand_ins(self, key: bytes, limits: Limits) -> None:
        """Let no stand-in of before serve what is out of date from now on."""
        for index in self._members.take_stand_ins(key):
            client = self._clients[index]
            client.delete(key, limits).addErrback(_owe, client, key)

    # Leases, of the server that is asked first.

    def get_leased(self, key: bytes, limits: Limits, lease_ttl: int, stale_ttl: int) -> Deferred[Leased]:
        """Ask for a value or the lease; see :class:`ILeaseCache`."""
        reach = self._members.reach(key)
        usable = [index for index in reach if self._clients[index].usable] or [reach[0]]
        tries = limits if len(usable) == 1 else self._tries.single(limits)

        def ask() -> Deferred[Leased]:
            index = usable.pop(0)
            leased: Deferred[Leased] = self._clients[index].get_leased(key, tries, lease_ttl, stale_ttl)
            return leased.addCallbacks(_note_server, ask_next, callbackArgs=(index,))

        def ask_next(failure: Failure) -> Failure | Deferred[Leased]:
            if not usable or failure.check(LeasesUnsupportedError):
                return failure
            return ask()

        return ask()

    def refill(self, key: bytes, value: bytes, flags: int, ttl: int, cas: bytes, limits: Limits) -> Deferred[bool]:
        """Store a value under a lease; see :class:`ILeaseCache`."""
        index, cas = _split_server(cas)
        if index not in self._members.homes(key):
            ttl = self._members.stand_in_ttl(ttl)
            self._members.note_stand_in(key, index)
        refilled: Deferred[bool] = self._clients[index].refill(key, value, flags, ttl, cas, limits)
        return refilled

    def give_up(self, key: bytes, cas: bytes, limits: Limits) -> Deferred[bool]:
        """Let another one win the lease; see :class:`ILeaseCache`."""
        index, cas = _split_server(cas)
        given_up: Deferred[bool] = self._clients[index].give_up(key, cas, limits)
        return given_up

    def close(self) -> None:
        """Give the clients back; see :class:`ICache`."""
        self._under_way.close()

    def _let_go(self) -> None:
        for client in self._clients:
            self._pool.release(client)


@attrs.frozen
class _LastAnswer:
    """Hears what has come of several servers' answers: then nothing else will be asked of them."""

    _under_way: UnderWay

    def answered(self, value: Any, token: tuple[Asker, Any]) -> None:
        asker, asker_token = token
        try:
            asker.answered(value, asker_token)
        finally:
            self._under_way.done(None)

    def failed(self, failure: Failure, token: tuple[Asker, Any]) -> None:
        asker, asker_token = token
        try:
            asker.failed(failure, asker_token)
        finally:
            self._under_way.done(None)


@attrs.frozen
class _FirstAnswer:
    """Hears what the first server has to say, which nearly always is the answer."""

    _members: Members
    _only_home: bool
    _last: _LastAnswer

    def answered(self, value: bytes | None, token: tuple[bytes, int, Limits, Limits, tuple[Asker, Any]]) -> None:
        key, index, limits, once, whom = token
        if value or (self._only_home and limits.backed):
            self._last.answered(value, whom)
        else:
            Search(self._members, key, limits, once, self._last, whom).answered(value, index)

    def failed(self, failure: Failure, token: tuple[bytes, int, Limits, Limits, tuple[Asker, Any]]) -> None:
        key, index, limits, once, whom = token
        Search(self._members, key, limits, once, self._last, whom).failed(failure, index)


class _SingleTries:
    """Makes the limits with one try: the same ones each time, so that those who use them share a get."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[Limits, Limits]] = {}

    def single(self, limits: Limits) -> Limits:
        made = self._made.get(id(limits))
        if made is None:
            if len(self._made) > 100:  # a table has two or three
                self._made.clear()
            # They are kept together, or the id might come to be that of others.
            made = self._made[id(limits)] = limits, attrs.evolve(limits, max_try=1)
        return made[1]


def _owe(failure: Failure, client: IMember, key: bytes) -> None:
    failure.trap(TemporaryError)
    client.owe(key)


def _note_server(leased: Leased, index: int) -> Leased:
    # A number that one server gives means nothing to another.
    return attrs.evolve(leased, cas=b"%d/%b" % (index, leased.cas))


def _split_server(cas: bytes) -> tuple[int, bytes]:
    index, _, own = cas.partition(b"/")
    return int(index), own
