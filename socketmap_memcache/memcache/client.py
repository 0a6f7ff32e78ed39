"""A client of one memcached: connects when needed, tries again as told, and knows when the server is down."""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum
from typing import Any
from typing import Protocol as Structure

from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.error import TimeoutError as ConnectTimeoutError
from twisted.internet.interfaces import IDelayedCall, IProtocolFactory, IReactorTime
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from socketmap_memcache.asker import FIRING, Asker
from socketmap_memcache.errors import LookupTimeout, TemporaryError
from socketmap_memcache.memcache.command import Command, Delete, Get, GetMany, Set
from socketmap_memcache.memcache.connection import MemcacheConnection
from socketmap_memcache.memcache.interface import IBatchCache, Limits

#: Seconds before the first probe of a server that is down, and between probes at most; it doubles in between.
#: A refused connection costs next to nothing, and mail waits for the first one that is accepted.
FIRST_PROBE = 0.1
LAST_PROBE = 5.0

#: Seconds after which a command has failed, whatever its limits say. Postfix gives up on a socketmap after 100.
PATIENCE = 90.0

#: Seconds between log lines about failed tries, so that a broken server does not fill the disk.
LOG_INTERVAL = 60.0


class Connect(Structure):
    """A way to the server."""

    def __call__(self, factory: IProtocolFactory, timeout: float) -> Deferred[MemcacheConnection]:
        """Connect; fails within about ``timeout`` seconds where it cannot. May be cancelled."""


class _State(Enum):
    IDLE = "no connection; the next command makes one"
    CONNECTING = "commands wait for the connection"
    CONNECTED = "commands are sent"
    DOWN = "the last attempt to connect failed: commands fail at once, and probes go out"
    CLOSED = "commands fail at once"


@implementer(IBatchCache)
class MemcacheClient:
    """All of a process' commands to one memcached.

    - A failed try is tried again after ``retry_pause``, up to ``max_try`` times; all other commands go on meanwhile.
    - A connection that cannot be made is not tried again (memcache_table(5)). The server is *down* then: commands fail
      at once, which sends look-ups to their backup, and a probe with back-off finds out when it is up.
    - Those who ask for the same key at the same time, with the same limits, share one command.
    - When one command spoils the connection (a timeout, a malformed reply), those behind it go out again on a new one
      within the time they have left: one bad key does not fail another.
    """

    _log = Logger()

    def __init__(self, name: str, connect: Connect, reactor: IReactorTime) -> None:
        """Make a client that does not connect before its first command.

        :param name: the server as Postfix writes it; for errors and the log.
        """
        self.name = name
        self._connect = connect
        self._reactor = reactor
        self._state = _State.IDLE
        self._connection: MemcacheConnection | None = None
        self._attempt: Deferred[MemcacheConnection] | None = None
        self._connect_timeout = 0.0
        self._gets: dict[bytes, Get] = {}  # those under way that may be shared
        self._waiting: list[Command] = []  # for the connection
        self._pausing: dict[Command, IDelayedCall] = {}  # before their next try
        self._watch: IDelayedCall | None = None
        self._watch_time = 0.0
        self._probe: IDelayedCall | None = None
        self._probe_pause = FIRST_PROBE
        self._down_reason = ""
        self._logged = float("-inf")
        self._not_logged = 0
        self._factory = Factory.forProtocol(self._build_connection)
        self._factory.noisy = False

    # What tables call.

    def get(self, key: bytes, limits: Limits) -> Deferred[bytes | None]:
        """Ask for a value; see :class:`ICache`."""
        answer: Deferred[bytes | None] = Deferred()
        self.get_for(key, limits, FIRING, answer)
        return answer

    def get_for(self, key: bytes, limits: Limits, asker: Asker, token: Any) -> None:
        """Ask for a value; see :class:`ICache`."""
        under_way = self._gets.get(key)
        if under_way is not None and under_way.limits is limits:
            under_way.share(asker, token)
            return
        command = Get(key, limits, self._gets, asker, token)
        connection = self._connection
        if connection is None:
            self._begin(command)
            return
        # As in _begin and _try, but not by them: this is done for each look-up.
        command.started = now = self._reactor.seconds()
        command.deadline = deadline = now + min(limits.timeout, PATIENCE)
        connection.send(command)
        if self._watch is None or deadline < self._watch_time:
            self._watch_until(deadline, now)

    def get_many(self, keys: Collection[bytes], limits: Limits) -> Deferred[dict[bytes, bytes | None]]:
        """Ask for several values; see :class:`IBatchCache`."""
        answer: Deferred[dict[bytes, bytes | None]] = Deferred()
        self._begin(GetMany(keys, limits, FIRING, answer))
        return answer

    def set(self, key: bytes, value: bytes, flags: int, ttl: int, limits: Limits) -> Deferred[bool]:
        """Store a value; see :class:`ICache`."""
        answer: Deferred[bool] = Deferred()
        self.set_for(key, value, flags, ttl, limits, FIRING, answer)
        return answer

    def set_for(self, key: bytes, value: bytes, flags: int, ttl: int, limits: Limits, asker: Asker, token: Any) -> None:
        """Store a value; see :class:`ICache`."""
        self._gets.pop(key, None)  # what it is about to say is out of date
        self._begin(Set(key, value, flags, ttl, limits, asker, token))

    def delete(self, key: bytes, limits: Limits) -> Deferred[bool]:
        """Delete a key; see :class:`ICache`."""
        self._gets.pop(key, None)
        answer: Deferred[bool] = Deferred()
        self._begin(Delete(key, limits, FIRING, answer))
        return answer

    def close(self) -> None:
        """Let go of the server as soon as nothing is under way; see :class:`ICache`."""
        under_way = [*self._waiting, *self._pausing]
        if self._connection is not None:
            under_way += self._connection.in_flight
        if under_way:
            # Their users may begin others, as a look-up that ends in a refill does.
            DeferredList([command.settled() for command in under_way]).addCallback(lambda _: self.close())
        else:
            self._shut()

    # A command's tries.

    def _begin(self, command: Command) -> None:
        command.started = self._reactor.seconds()
        self._try(command, command.started)

    def _try(self, command: Command, now: float) -> None:
        deadline = command.deadline = min(now + command.limits.timeout, command.started + PATIENCE)
        if self._connection is not None:
            self._connection.send(command)
        elif not self._wait(command):
            return
        if self._watch is None or deadline < self._watch_time:
            self._watch_until(deadline, now)

    def _wait(self, command: Command) -> bool:
        """Let a command wait for the connection; where none is to come it fails at once, and the result is false."""
        if self._state is _State.DOWN or self._state is _State.CLOSED:
            command.fail(TemporaryError(f"memcached {self.name} is down: {self._down_reason}"))
            return False
        self._waiting.append(command)
        if self._state is _State.IDLE:
            self._state = _State.CONNECTING
            self._open(min(command.limits.timeout, PATIENCE))
        return True

    def _failed(self, command: Command, error: TemporaryError) -> None:
        """One try has failed."""
        self._complain(error)
        limits, now = command.limits, self._reactor.seconds()
        command.tries += 1
        if command.tries >= limits.max_try or now + limits.retry_pause - command.started >= PATIENCE:
            command.fail(error)
        else:
            self._pausing[command] = self._reactor.callLater(limits.retry_pause, self._again, command)

    def _again(self, command: Command) -> None:
        del self._pausing[command]
        self._try(command, self._reactor.seconds())

    def _complain(self, error: TemporaryError) -> None:
        now = self._reactor.seconds()
        if 0 <= now - self._logged < LOG_INTERVAL:  # less where the clock has been set back
            self._not_logged += 1
            return
        self._log.warn("{error} (and {more} more since the last such line)", error=error, more=self._not_logged)
        self._logged, self._not_logged = now, 0

    # Deadlines: one timer, set for the earliest of them or before.

    def _watch_until(self, deadline: float, now: float) -> None:
        if self._watch is not None:
            self._watch.cancel()
        self._watch_time = deadline
        self._watch = self._reactor.callLater(max(deadline - now, 0), self._expire)

    def _expire(self) -> None:
        self._watch = None
        now = self._reactor.seconds()
        for command in [command for command in self._waiting if command.deadline <= now]:
            self._waiting.remove(command)
            command.fail(self._timed_out(command))
        if self._connection is not None:
            late = [command for command in self._connection.in_flight if command.deadline <= now]
            if late:
                self._connection.drop(self._timed_out(late[0]), late)
        left = self._unanswered()
        if left:
            self._watch_until(min(command.deadline for command in left), now)

    def _unanswered(self) -> list[Command]:
        return self._waiting if self._connection is None else [*self._waiting, *self._connection.in_flight]

    def _timed_out(self, command: Command) -> LookupTimeout:
        return LookupTimeout(f"memcached {self.name}: no answer within {command.limits.timeout:g} s")

    # The connection's life.

    def _open(self, timeout: float) -> None:
        self._connect_timeout = timeout
        self._attempt = self._connect(self._factory, timeout)
        self._attempt.addCallbacks(self._connected, self._unreachable)

    def _build_connection(self) -> MemcacheConnection:
        return MemcacheConnection(self.name, self._reactor, self._failed, self._lost)

    def _connected(self, connection: MemcacheConnection) -> None:
        self._attempt = None
        if self._state is _State.DOWN:
            self._log.info("memcached {name}: is back", name=self.name)
        self._state = _State.CONNECTED
        self._probe_pause = FIRST_PROBE
        self._connection = connection
        waiting, self._waiting = self._waiting, []
        for command in waiting:
            connection.send(command)

    def _lost(
        self, connection: MemcacheConnection, blamed: list[Command], others: list[Command], error: TemporaryError
    ) -> None:
        self._connection = None
        self._state = _State.IDLE
        for command in blamed:
            self._failed(command, error)
        for command in others:
            self._wait(command)

    def _unreachable(self, failure: Failure) -> None:
        self._attempt = None
        if self._state is _State.CLOSED:
            return
        timed_out = isinstance(failure.value, (ConnectTimeoutError, ConnectingCancelledError, CancelledError))
        reason = f"no connection within {self._connect_timeout:g} s" if timed_out else failure.getErrorMessage()
        self._down_reason = reason
        if self._state is not _State.DOWN:
            self._log.warn(
                "memcached {name} is down: {reason} Look-ups go to the backup, or fail, until it is back; "
                "trying every {seconds:g} s or sooner.",
                name=self.name,
                reason=reason,
                seconds=LAST_PROBE,
            )
        self._state = _State.DOWN
        # Before anybody hears of it, and may close the client.
        self._probe = self._reactor.callLater(self._probe_pause, self._send_probe)
        self._probe_pause = min(self._probe_pause * 2, LAST_PROBE)
        kind = LookupTimeout if timed_out else TemporaryError
        waiting, self._waiting = self._waiting, []
        for command in waiting:
            command.fail(kind(f"memcached {self.name} is down: {reason}"))

    def _send_probe(self) -> None:
        self._probe = None
        self._open(self._connect_timeout)

    def _shut(self) -> None:
        self._state = _State.CLOSED
        self._down_reason = "the client is closed"
        for timer in (self._watch, self._probe):
            if timer is not None:
                timer.cancel()
        self._watch = self._probe = None
        if self._attempt is not None:
            self._attempt.cancel()
        if self._connection is not None:
            self._connection.close()
            self._connection = None
