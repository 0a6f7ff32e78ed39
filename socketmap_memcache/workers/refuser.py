"""Sends clients away while there is no worker that would serve them."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from socketmap_memcache.listeners.entrance import EXHAUSTED, RETRY_PAUSE


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
        self._doors = [_Door(listening, self._reactor) for listening in sockets]
        for door in self._doors:
            door.open()
        return True

    def end(self) -> None:
        """Leave connections to the workers again."""
        for door in self._doors:
            door.close()
        self._doors = []


@implementer(IReadDescriptor)
class _Door:
    def __init__(self, listening: socket.socket, reactor: Any) -> None:
        listening.setblocking(False)
        self._listening = listening
        self._reactor = reactor
        self._retry: IDelayedCall | None = None

    def open(self) -> None:
        self._retry = None
        self._reactor.addReader(self)

    def close(self) -> None:
        self._reactor.removeReader(self)
        if self._retry is not None:
            self._retry.cancel()

    def doRead(self) -> None:
        try:
            self._listening.accept()[0].close()
        except OSError as error:
            # Else who has come has left.
            if error.errno in EXHAUSTED:
                self._reactor.removeReader(self)
                self._retry = self._reactor.callLater(RETRY_PAUSE, self.open)

    def fileno(self) -> int:
        return self._listening.fileno()

    def connectionLost(self, reason: Failure) -> None:
        """Do nothing: the socket is the parent's."""

    def logPrefix(self) -> str:
        return "workers"
