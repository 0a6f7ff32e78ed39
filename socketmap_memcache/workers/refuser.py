"""Sends clients away while there is no worker that would serve them."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from twisted.internet.interfaces import IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer


class Refuser:
    """Closes each connection at once, so that Postfix, which waits 100 seconds for an answer, knows that none comes."""

    def __init__(self, reactor: Any) -> None:
        """Leave all connections to the workers."""
        self._reactor = reactor
        self._doors: list[_Door] = []

    def begin(self, sockets: Iterable[socket.socket]) -> bool:
        """Refuse who connects to these from now on, and who waits there; returns whether that is new."""
        if self._doors:
            return False
        self._doors = [_Door(listening) for listening in sockets]
        for door in self._doors:
            self._reactor.addReader(door)
        return True

    def end(self) -> None:
        """Leave connections to the workers again."""
        for door in self._doors:
            self._reactor.removeReader(door)
        self._doors = []


@implementer(IReadDescriptor)
class _Door:
    def __init__(self, listening: socket.socket) -> None:
        listening.setblocking(False)
        self._listening = listening

    def doRead(self) -> None:
        with suppress(OSError):  # who has come has left
            self._listening.accept()[0].close()

    def fileno(self) -> int:
        return self._listening.fileno()

    def connectionLost(self, reason: Failure) -> None:
        """Do nothing: the socket is the parent's."""

    def logPrefix(self) -> str:
        return "workers"
