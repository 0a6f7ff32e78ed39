"""All clients behind one descriptor of the reactor's.

For each descriptor that is ready, Twisted makes some ten calls before the first of ours. With many clients that is a
third of the time of a look-up, so they get a poll of their own, and the reactor sees that only.
"""

from __future__ import annotations

import select
from contextlib import suppress
from typing import Any, Protocol

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableDescriptor, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from socketmap_memcache.busy_poll import BUSY_POLL
from socketmap_memcache.prompt_writer import WRITES_TOGETHER

#: Clients that are served before the reactor looks at all others; the rest come after them.
READY_LIMIT = 256

_UNFORESEEN = "a client's connection has failed in an unforeseen way"


class ClientTransport(Protocol):
    """What a transport of Twisted's provides."""

    def fileno(self) -> int:
        """Give the descriptor."""

    def doRead(self) -> Exception | None:
        """Read; give the reason where the connection is at its end."""

    def connectionLost(self, reason: Failure) -> None:
        """Hear that the connection is lost."""


@implementer(IReadDescriptor)
class ClientPoll:
    """Reads for the transports of clients, as the reactor would. For Linux: it takes epoll(7)."""

    _log = Logger()

    def __init__(self, reactor: Any) -> None:
        """Make a poll without clients; the reactor hears of it when there is one."""
        self._reactor = reactor
        self._epoll = select.epoll()
        self._transports: dict[int, ClientTransport] = {}
        self._descriptors: dict[ClientTransport, int] = {}

    def add(self, transport: ClientTransport) -> None:
        """Begin to read for a transport, unless that has begun."""
        if transport in self._descriptors:
            return
        descriptor = transport.fileno()
        self._epoll.register(descriptor, select.EPOLLIN)
        if not self._transports:
            self._reactor.addReader(self)
        self._transports[descriptor] = transport
        self._descriptors[transport] = descriptor

    def remove(self, transport: ClientTransport) -> None:
        """Read no more for a transport."""
        descriptor = self._descriptors.pop(transport, None)
        if descriptor is None:
            return
        del self._transports[descriptor]
        with suppress(OSError):  # a descriptor that has been closed is not in it any more
            self._epoll.unregister(descriptor)
        if not self._transports:
            self._reactor.removeReader(self)

    # The reactor's side.

    def fileno(self) -> int:
        """Give the descriptor that is ready when one of the clients is."""
        return self._epoll.fileno()

    def logPrefix(self) -> str:
        """Give a name for the log."""
        return "clients"

    def doRead(self) -> None:
        """Serve the clients that are ready; what they ask of others leaves together."""
        BUSY_POLL.heard = True
        with WRITES_TOGETHER:
            for descriptor, _ in self._epoll.poll(0, READY_LIMIT):
                self._serve(descriptor)

    def _serve(self, descriptor: int) -> None:
        transport = self._transports.get(descriptor)
        if transport is None:  # one before it has put an end to it
            return
        try:
            reason = transport.doRead()
        except Exception as error:  # noqa: BLE001 (as in the reactor: whatever happens ends one connection)
            self._log.failure(_UNFORESEEN)
            reason = error
        if reason is None:
            return
        try:
            self._end(transport, reason)
        except Exception:  # noqa: BLE001 (the reactor would read for none of the clients any more)
            self._log.failure(_UNFORESEEN)

    def connectionLost(self, reason: Failure) -> None:
        """Hear that the reactor ends; the clients' transports are ended by those who made them."""

    def _end(self, transport: ClientTransport, reason: Exception) -> None:
        self.remove(transport)
        if isinstance(reason, ConnectionDone) and IHalfCloseableDescriptor.providedBy(transport):
            transport.readConnectionLost(Failure(reason))
        else:
            self._reactor.removeWriter(transport)
            transport.connectionLost(Failure(reason))


_POLLS: dict[Any, ClientPoll] = {}  # a program has one reactor


def client_poll(reactor: Any) -> ClientPoll:
    """Give the poll of a reactor; there is one for each."""
    poll = _POLLS.get(reactor)
    if poll is None:
        poll = _POLLS[reactor] = ClientPoll(reactor)
    return poll
