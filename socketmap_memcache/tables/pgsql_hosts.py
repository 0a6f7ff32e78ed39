"""The servers of a ``pgsql:`` table: which of them is asked, and what happens when it fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import TypeVar

import attrs

from socketmap_memcache.errors import LookupTimeout, TableError, TemporaryError
from socketmap_memcache.tables.pgsql_connection import Connection, ConnectionFailure

#: Seconds, at least, between attempts to find one that is up when all are down.
PROBE_PAUSE = 1.0

T = TypeVar("T")


@attrs.frozen
class Host:
    """A server.

    :ivar name: for people; there is no password in it.
    :ivar rank: those of a lower one are tried first.
    :ivar conninfo: for libpq; it may have a password.
    """

    name: str
    rank: int
    conninfo: bytes = attrs.field(repr=False)


@attrs.define
class _Down:
    reason: str
    until: float
    logged: float


class Hosts:
    """Keeps a connection to one of several servers.

    A server that fails is *down*, and is not tried again for ``retry_interval``. While all of them are down they are
    all tried again after a pause, which is as long as the last attempt took, so that at most half of the time is lost
    with them; in between everything fails at once. It is used in one thread.
    """

    def __init__(
        self,
        name: str,
        hosts: Sequence[Host],
        connect: Callable[[bytes, float], Connection],
        seconds: Callable[[], float],
        note: Callable[[str], None],
        retry_interval: float,
        random: Random | None,
    ) -> None:
        """Make it, without a connection.

        :param name: the table's, for errors.
        :param connect: makes a connection, or raises :class:`ConnectionFailure`; gets the conninfo and the deadline.
        :param seconds: the time.
        :param note: logs a change.
        :param random: makes the order, among those of one rank; ``None`` for the order in which they are given.
        """
        self._name = name
        self._hosts = list(hosts)
        self._connect = connect
        self._seconds = seconds
        self._note = note
        self._retry_interval = retry_interval
        self._random = random
        self._down: dict[Host, _Down] = {}
        self._probe_at = 0.0  # while all are down
        self._used: tuple[Host, Connection] | None = None

    def perform(self, work: Callable[[Connection, float], T], deadline: float) -> T:
        """Do something with a connection, and do it again with another when that fails.

        :param work: may be done more than once; gets the connection and its deadline; raises
            :class:`ConnectionFailure`.
        :raises TemporaryError: no server could do it, with all their reasons, or the time is over.
        :raises TableError: what ``work`` raises.
        """
        while True:
            fresh = self._used is None
            host, connection = self._used or self._find(deadline)
            try:
                result = work(connection, self._share(deadline))
            except ConnectionFailure as error:
                self.rest()
                # A connection that has been there may have ended since, with its server as well as ever.
                if fresh or error.hung:
                    self._set_down(host, str(error), self._seconds())
                continue
            except TableError:
                self._set_up(host)
                raise
            except Exception:
                # Unforeseen, and for the table to log. Answers that were not read would be taken for the next ones.
                self.rest()
                raise
            self._set_up(host)
            return result

    def rest(self) -> None:
        """Give the connection back until the next one is needed."""
        if self._used is not None:
            self._used[1].close()
            self._used = None

    def _find(self, deadline: float) -> tuple[Host, Connection]:
        began = self._seconds()
        candidates = self._up(began)
        if not candidates and began >= self._probe_at:
            candidates = list(self._hosts)
        if self._random is not None:
            self._random.shuffle(candidates)
        candidates.sort(key=lambda host: host.rank)
        for index, host in enumerate(candidates):
            now = self._seconds()
            if now >= deadline:  # which is no fault of this one
                raise LookupTimeout(f"{self._name}: no time is left to ask host {host.name}")
            try:
                connection = self._connect(host.conninfo, now + (deadline - now) / (len(candidates) - index))
            except ConnectionFailure as error:
                self._set_down(host, str(error), began)
                continue
            self._used = host, connection
            return self._used
        reasons = [f"host {host.name}: {down.reason}" for host, down in self._down.items()]
        raise TemporaryError(f"{self._name}: {'; '.join(reasons)}")

    def _up(self, now: float) -> list[Host]:
        return [host for host in self._hosts if host not in self._down or self._down[host].until <= now]

    def _share(self, deadline: float) -> float:
        """Return until when the server that is used now may take: where another is up, it gets half of the time."""
        now = self._seconds()
        return now + (deadline - now) / 2 if len(self._up(now)) > 1 else deadline

    def _set_up(self, host: Host) -> None:
        if host in self._down:
            del self._down[host]
            self._note(f"{self._name}: host {host.name} answers again")

    def _set_down(self, host: Host, reason: str, began: float) -> None:
        now = self._seconds()
        before = self._down.get(host)
        logged = now if before is None else before.logged
        if before is None or before.reason != reason or now - logged >= self._retry_interval:
            logged = now
            self._note(f"{self._name}: host {host.name}: {reason}")
        self._down[host] = _Down(reason, now + self._retry_interval, logged)
        if not self._up(now):
            self._probe_at = now + max(PROBE_PAUSE, now - began)
