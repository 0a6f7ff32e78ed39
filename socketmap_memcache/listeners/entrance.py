"""How many clients there may be, at all listeners together; others wait, and are not refused."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IListeningPort, IReactorTime
from twisted.internet.tcp import Port
from twisted.logger import Logger

from socketmap_memcache.listeners.client_counts import ClientCounts
from socketmap_memcache.log_limit import LogLimit

#: Seconds after which accepting is tried again when the system had no descriptor, or no memory, for one more client.
RETRY_PAUSE = 1.0

#: Seconds that another worker gets to accept a client, where this one has more than that one.
PRECEDENCE = 0.005

#: Errors of accept() for which the client is no reason, and which pass.
EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Entrance:
    """Stops accepting at all ports while there are as many clients as there may be, or while descriptors run out.

    Who connects meanwhile waits in the kernel's queue, and is served when another client leaves. Twisted's own ports
    take the clients that wait and close their connections when descriptors run out: look-ups of Postfix's would fail.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, limit: int, counts: ClientCounts | None = None) -> None:
        """Begin without ports and clients.

        :param limit: how many clients there may be.
        :param counts: those of all workers that accept at the same ports, where there are several.
        """
        self._clock = clock
        self._counts = counts
        self._limit = limit
        self._clients = 0
        self._ports: list[Port] = []
        self._retry: IDelayedCall | None = None
        self._has_waited = False
        self._on_empty: Callable[[], object] | None = None  # while it is shut
        self._full_lines = LogLimit(clock)
        self._exhausted_lines = LogLimit(clock)
        self.is_open = True

    @property
    def limit(self) -> int:
        """How many clients there may be; may be set at any time, and those that are there stay."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        self._limit = limit
        self._update()

    def watch(self, port: IListeningPort) -> IListeningPort:
        """Look after a port that listens, where it is of a kind that can be looked after; give it back."""
        if isinstance(port, Port):
            port.socket = _PatientSocket(port.socket, self)
            self._ports.append(port)
            self._tell()
            if not self.is_open:
                port.stopReading()
        return port

    def shut(self, on_empty: Callable[[], object]) -> None:
        """Accept nobody until :meth:`reopen`; who is there stays.

        :param on_empty: called whenever there is no client left, until then.
        """
        self._on_empty = on_empty
        self._stop_waiting()
        self._leave_to_others()
        self._update()
        self._tell()

    def reopen(self) -> None:
        """Accept clients again."""
        self._on_empty = None
        self._tell()
        self._update()

    def close(self) -> None:
        """Look after the ports no more: they are to be closed."""
        self._ports.clear()
        self._stop_waiting()
        self._leave_to_others()

    def came(self) -> None:
        """Hear that there is one client more."""
        self._clients += 1
        self._tell()
        self._update()

    def left(self) -> None:
        """Hear that there is one client less, and that its descriptor is free."""
        self._clients -= 1
        self._tell()
        self._stop_waiting()
        self._update()

    def may_accept(self) -> bool:
        """Say whether a client may be accepted now. If not, the ports are read again when one may be."""
        if not self.is_open:
            return False
        if self._counts is None or self._has_waited or not self._counts.others_have_fewer(self._clients):
            return True
        self._retry = self._clock.callLater(PRECEDENCE, self._take_turn)
        self._update()
        return False

    def exhausted(self, error: OSError) -> None:
        """Hear that a client cannot be accepted just now."""
        if self._exhausted_lines.due():
            self._log.error(
                "no more than {clients} clients can be accepted for now: {reason}; others wait{more}",
                clients=self._clients,
                reason=error.strerror,
                more=self._exhausted_lines.more(),
            )
        self._retry = self._clock.callLater(RETRY_PAUSE, self._try_again)
        self._update()

    def _try_again(self) -> None:
        self._retry = None
        self._update()

    def _take_turn(self) -> None:
        """Accept who has not been accepted by another worker meanwhile."""
        self._try_again()
        self._has_waited = True
        try:
            for port in self._ports:
                port.doRead()
        finally:
            self._has_waited = False

    def _tell(self) -> None:
        if self._on_empty is not None:
            if not self._clients:
                self._on_empty()
        elif self._counts is not None and self._ports:
            self._counts.tell(self._clients)

    def _leave_to_others(self) -> None:
        if self._counts is not None:
            self._counts.leave()

    def _stop_waiting(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def _update(self) -> None:
        full = self._clients >= self._limit
        may_open = not full and self._retry is None and self._on_empty is None
        if may_open == self.is_open:
            return
        self.is_open = may_open
        for port in self._ports:
            if may_open:
                port.startReading()
            else:
                port.stopReading()
        if full and self._full_lines.due():
            self._log.warn(
                "there are {clients} clients, as many as may be (client_limit); others wait until one leaves{more}",
                clients=self._clients,
                more=self._full_lines.more(),
            )


class _PatientSocket:
    """A listening socket that says that nobody is there, where a client cannot be accepted, and tells the entrance."""

    def __init__(self, listening: socket.socket, entrance: Entrance) -> None:
        self._listening = listening
        self._entrance = entrance

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a client.

        :raises BlockingIOError: there is none, or it has to wait; Twisted leaves it at that until the port is ready.
        """
        if not self._entrance.may_accept():
            raise _nobody()
        try:
            return self._listening.accept()
        except OSError as error:
            if error.errno not in EXHAUSTED:
                raise
            self._entrance.exhausted(error)
            raise _nobody() from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._listening, name)


def _nobody() -> BlockingIOError:
    return BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
