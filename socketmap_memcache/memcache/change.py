"""A change of a key that goes to several servers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.python.failure import Failure

from socketmap_memcache.asker import Asker
from socketmap_memcache.memcache.members import Members

#: Sends a change to a server, the token being its number; told whether it is a stand-in.
Send = Callable[[int, bool, Asker], None]


class Change:
    """A change of a key at all its homes, and, where all of them fail and the rule says so, at a stand-in.

    It is made when all have answered or failed, and one has made it. Each that has not is owed a delete: it must not
    serve what it has. Where all have failed nothing is owed, as what they have may be all that there is.
    """

    __slots__ = ("_asker", "_failed", "_failure", "_key", "_lasts", "_made", "_members", "_pending", "_send", "_token")

    def __init__(self, members: Members, key: bytes, send: Send, lasts: bool, asker: Asker, token: Any) -> None:
        """:param lasts: whether a stand-in alone can keep the change; not a delete, as the homes still have the key."""
        self._members = members
        self._key = key
        self._send = send
        self._lasts = lasts
        self._asker = asker
        self._token = token
        self._pending = 0
        self._made: bool | None = None  # what the servers say that have made it
        self._failed: list[int] = []
        self._failure: Failure | None = None

    def begin(self) -> None:
        """Send it to all homes."""
        homes = self._members.homes(self._key)
        self._pending = len(homes)
        for index in homes:
            self._send(index, False, self)

    def answered(self, result: bool, index: int) -> None:
        """Hear that a server has made it; see :class:`Asker`."""
        members = self._members
        self._pending -= 1
        stand_in = index not in members.homes(self._key)
        if stand_in and not self._lasts:
            assert self._failure is not None
            self._asker.failed(self._failure, self._token)
            return
        if stand_in:
            members.note_stand_in(self._key, index)
        self._made = self._made or result
        for each in self._failed:
            members.clients[each].owe(self._key)
        self._failed.clear()
        self._finish()

    def failed(self, failure: Failure, index: int) -> None:
        """Hear that a server has failed; see :class:`Asker`."""
        members = self._members
        self._pending -= 1
        self._failure = self._failure or failure
        members.note_missed(index)
        if self._made is None:
            self._failed.append(index)
        else:
            members.clients[index].owe(self._key)
        self._finish()

    def _finish(self) -> None:
        if self._pending:
            return
        if self._made is not None:
            self._asker.answered(self._made, self._token)
            return
        for index in self._members.reach(self._key):
            if index not in self._failed and self._members.clients[index].usable:
                self._pending = 1
                self._send(index, True, self)
                return
        assert self._failure is not None
        self._asker.failed(self._failure, self._token)
