"""The servers of a cluster: which of them have a key, and what they may have missed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Protocol as Structure

import attrs

from socketmap_memcache.memcache.history import History
from socketmap_memcache.memcache.interface import IMember
from socketmap_memcache.memcache.memory import MONTH

#: Keys whose stand-ins are remembered; the oldest are forgotten first, and are gone from there after failover_ttl.
STAND_INS_LIMIT = 100_000


@attrs.frozen
class FailureRule:
    """What is done about a server that fails.

    :ivar stand_in: whether the next usable server of the ring takes its place (``memcache_failure = next``).
    :ivar failover_ttl: seconds for which a server has a key in place of another, at most; 1 to 30 days.
    :ivar replicas: how many servers have each key; at least 1.
    """

    stand_in: bool = False
    failover_ttl: int = 60
    replicas: int = 1


class Placement(Structure):
    """Where keys go: a :class:`~socketmap_memcache.memcache.ring.Ring`."""

    def index_of(self, key: bytes, /) -> int:
        """Give the number of a key's server."""

    def order(self, key: bytes, /) -> Sequence[int]:
        """Give the numbers of all servers, the key's own first."""


class Members:
    """The servers, numbered as on the ring.

    The *homes* of a key are the servers that have it when all are up: the first ``replicas`` of its order.

    :ivar clients: one for each server.
    :ivar rule: what is done about one that fails.
    """

    def __init__(
        self,
        clients: Sequence[IMember],
        ring: Placement,
        rule: FailureRule,
        ttl: int,
        history: History,
        clock: Callable[[], float],
        time_of_day: Callable[[], float],
    ) -> None:
        """:param ttl: for how long entries live, if nothing else is said when they are stored; memcached's rules.

        :param history: of these servers.
        :param clock: the seconds of the clients' reactor.
        :param time_of_day: gives UNIX time.
        """
        self.clients = clients
        self.rule = rule
        self.order = ring.order
        self._clock = clock
        self._time_of_day = time_of_day
        self._history = history
        self.note_ttl(ttl)

    def homes(self, key: bytes) -> Sequence[int]:
        """Give the servers that have a key when all are up."""
        return self.order(key)[: self.rule.replicas]

    def reach(self, key: bytes) -> Sequence[int]:
        """Give the servers that may have a key, those that are asked first at the beginning."""
        return self.order(key) if self.rule.stand_in else self.homes(key)

    # What a server may have missed.

    def note_ttl(self, ttl: int) -> None:
        """Note that an entry is to live for so long; memcached's rules."""
        life = float("inf") if ttl == 0 else self._seconds_left(ttl)
        self._history.longest_life = max(self._history.longest_life, life)

    def _seconds_left(self, ttl: int) -> float:
        return ttl - self._time_of_day() if ttl > MONTH else ttl

    def note_missed(self, index: int) -> None:
        """Note that a server has missed a change just now."""
        self._history.missed[index] = self._clock()

    def is_whole(self, index: int) -> bool:
        """Say whether a server has all that it should have, as far as this process can know.

        It has, if it has been up for longer than any entry lives, and has missed no change in that time. A server that
        was always up since this process first asked it counts as whole.
        """
        since = self._behind_since(index)
        return since == float("-inf") or self._clock() - since > self._history.longest_life

    def _behind_since(self, index: int) -> float:
        return max(self.clients[index].up_since, self._history.missed.get(index, float("-inf")))

    # Stand-ins.

    def may_have_stand_in(self, index: int) -> bool:
        """Say whether another server may still have what was stored in this one's place while it was away."""
        return self.rule.stand_in and self._clock() - self._behind_since(index) <= self.rule.failover_ttl

    def stand_in_places(self, key: bytes) -> int:
        """Say at how many servers, of those that follow the homes of a key, it may still be in place of these.

        It went to the first that was up: to one that was away itself not long ago it may not have gone.
        """
        places = 0
        if any(map(self.may_have_stand_in, self.homes(key))):
            for index in self.order(key)[self.rule.replicas :]:
                places += 1
                if not self.may_have_stand_in(index):
                    break
        return places

    def stand_ins(self, key: bytes) -> Collection[int]:
        """Give the servers that this process knows to have a key in place of another."""
        servers, end = self._history.stand_ins.get(key, ((), 0))
        return servers if self._clock() < end else ()

    def stand_in_ttl(self, ttl: int) -> int:
        """Give the ttl for an entry at a stand-in."""
        longest = self.rule.failover_ttl
        return longest if ttl == 0 or self._seconds_left(ttl) > longest else ttl

    def note_stand_in(self, key: bytes, index: int) -> None:
        """Note that a server now has a key in place of another."""
        stand_ins = self._history.stand_ins
        servers, _ = stand_ins.pop(key, (frozenset(), 0))
        now = self._clock()
        stand_ins[key] = (servers | {index}, now + self.rule.failover_ttl)
        while len(stand_ins) > STAND_INS_LIMIT or next(iter(stand_ins.values()))[1] < now:
            stand_ins.popitem(last=False)

    def take_stand_ins(self, key: bytes) -> Iterable[int]:
        """Forget who has a key in place of another, and give them."""
        return self._history.stand_ins.pop(key, ((), 0))[0]
