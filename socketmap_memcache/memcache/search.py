"""A look-up that goes from server to server, until one has the key or it is known that none has."""

from __future__ import annotations

from typing import Any

from twisted.python.failure import Failure

from socketmap_memcache.asker import Asker
from socketmap_memcache.memcache.interface import Limits
from socketmap_memcache.memcache.members import Members


class Search:
    """Asks the usable servers in the order of the ring, as many as there are replicas, and then judges.

    Found at one of them is found. Where there is a backup, which is asked for what is missing, one that misses the key
    is enough; and it is that server's lease which spares the backup.

    Where there is none, a key that no server has is *missing* if all its homes say so, or one does that is whole (see
    :meth:`Members.is_whole`): a server that is down must not make every new key fail. Otherwise the homes that did not
    answer are asked once more, with all tries; and then it has *failed*: one of them may have it. If a home came back
    not long ago, others are asked as well that may have stood in for it, and one that is known to have done so counts
    as a home.

    An empty value may be the mark of a lease: it is the answer if no other server has a value.
    """

    __slots__ = (
        "_asker",
        "_empty",
        "_failure",
        "_insisted",
        "_key",
        "_limits",
        "_members",
        "_misses",
        "_once",
        "_token",
        "_tried",
    )

    def __init__(self, members: Members, key: bytes, limits: Limits, once: Limits, asker: Asker, token: Any) -> None:
        """:param once: the limits, with one try."""
        self._members = members
        self._key = key
        self._limits = limits
        self._once = once
        self._asker = asker
        self._token = token
        self._misses: set[int] = set()
        self._tried: set[int] = set()
        self._insisted: set[int] = set()
        self._failure: Failure | None = None
        self._empty: bytes | None = None

    def begin(self) -> None:
        """Ask the first server."""
        self._go_on()

    def answered(self, value: bytes | None, index: int) -> None:
        """Hear what a server has; see :class:`Asker`."""
        if value:
            self._asker.answered(value, self._token)
            return
        if value is not None:
            self._empty = value
        self._tried.add(index)
        self._misses.add(index)
        self._go_on()

    def failed(self, failure: Failure, index: int) -> None:
        """Hear that a server has failed; see :class:`Asker`."""
        self._tried.add(index)
        self._failure = failure
        self._go_on()

    def _go_on(self) -> None:
        members = self._members
        if len(self._misses) < self._enough():
            for index in members.reach(self._key):
                if index not in self._tried and members.clients[index].usable:
                    self._ask(index, self._once)
                    return
        missed_by = self._misses
        homes = members.homes(self._key)
        places = [*homes, *members.stand_ins(self._key)]
        if (
            self._empty is not None
            or (missed_by and self._limits.backed)
            or missed_by.issuperset(places)
            or any(index in missed_by and members.is_whole(index) for index in homes)
        ):
            self._asker.answered(self._empty, self._token)
            return
        for index in places:
            if index not in missed_by and index not in self._insisted:
                self._insisted.add(index)
                self._ask(index, self._limits)
                return
        assert self._failure is not None
        self._asker.failed(self._failure, self._token)

    def _enough(self) -> int:
        """Give how many servers have to miss the key before no other is asked."""
        members = self._members
        return members.rule.replicas + (0 if self._limits.backed else members.stand_in_places(self._key))

    def _ask(self, index: int, limits: Limits) -> None:
        self._members.clients[index].get_for(self._key, limits, self, index)
