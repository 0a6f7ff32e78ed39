"""A client of one Redis, or of the one that is master: connects when needed, and knows when there is none."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from socketmap_memcache.errors import LookupTimeout, TemporaryError
from socketmap_memcache.log_limit import LogLimit
from socketmap_memcache.protocols.redis import ErrorReply
from socketmap_memcache.tables.redis_command import Command
from socketmap_memcache.tables.redis_connection import RedisConnection

#: Seconds before the first probe of a server that is down; it doubles up to ``retry_interval``.
FIRST_PROBE = 0.1

#: Tries of a command in all: the connection that is lost may have been at its end before the command.
TRIES = 2

#: Errors that say that this server, or this connection, is of no use now; another look may find a better one.
_UNFIT = frozenset([b"LOADING", b"NOAUTH"])
_UNFIT_AS_MASTER = _UNFIT | {b"READONLY", b"MASTERDOWN"}


class _State(Enum):
    IDLE = "no connection; the next command makes one"
    CONNECTING = "commands wait for the connection"
    CONNECTED = "commands are sent"
    DOWN = "the last attempt to connect failed: commands fail at once, and probes go out"
    CLOSED = "commands fail at once"


class RedisClient:
    """All commands of a table.

    Each is answered, or fails, within the time limit. One whose connection is lost is sent once more, on a new one,
    where that does no harm. While no server can be reached commands fail at once, and probes with back-off find out
    when that has changed.

    :ivar connections: how many connections there have been; what was learnt on one may not be true on the next.
    """

    _log = Logger()

    def __init__(
        self,
        name: str,
        connect: Callable[[float], Deferred[RedisConnection]],
        reactor: IReactorTime,
        timeout: float,
        retry_interval: float,
        masters_only: bool = False,
    ) -> None:
        """Make a client that does not connect before its first command.

        :param name: of the table, for errors and the log.
        :param connect: gives a connection on which commands may be sent; fails with :class:`TemporaryError` within so
            many seconds. May be cancelled.
        :param timeout: seconds that a command may take in all.
        :param retry_interval: seconds between probes of servers that are down, at most.
        :param masters_only: whether ``connect`` looks for the master, so that a server that is none any more is left.
        """
        self.name = name
        self.connections = 0
        self._connect = connect
        self._reactor = reactor
        self._timeout = timeout
        self._retry_interval = retry_interval
        self._unfit = _UNFIT_AS_MASTER if masters_only else _UNFIT
        self._state = _State.IDLE
        self._connection: RedisConnection | None = None
        self._attempt: Deferred[None] | None = None
        self._waiting: list[Command] = []  # for the connection
        self._watch: IDelayedCall | None = None
        self._probe: IDelayedCall | None = None
        self._probe_pause = 0.0
        self._down_reason = ""
        self._log_limit = LogLimit(reactor)

    def send(self, command: Command) -> None:
        """Have a command done; its asker hears of the result."""
        command.deadline = self._reactor.seconds() + self._timeout
        if self._connection is not None:
            self._connection.send(command)
        elif not self._wait(command):
            return
        if self._watch is None:
            self._watch = self._reactor.callLater(self._timeout, self._expire)

    def close(self) -> None:
        """Let go of the server as soon as nothing is under way. Idempotent."""
        under_way = self._unanswered()
        if under_way:
            DeferredList([command.settled() for command in under_way]).addCallback(lambda _: self.close())
        else:
            self._shut()

    # Time limits.

    def _expire(self) -> None:
        self._watch = None
        now = self._reactor.seconds()
        for command in [command for command in self._waiting if command.deadline <= now]:
            self._waiting.remove(command)
            command.fail(self._timed_out())
        connection = self._connection
        if connection is not None and any(command.deadline <= now for command in connection.in_flight):
            connection.drop(self._timed_out())
        left = self._unanswered()
        if left and self._watch is None:
            pause = min(command.deadline for command in left) - now
            self._watch = self._reactor.callLater(max(pause, 0), self._expire)

    def _timed_out(self) -> LookupTimeout:
        return LookupTimeout(f"{self.name}: no answer within {self._timeout:g} s")

    def _unanswered(self) -> list[Command]:
        return [*self._waiting, *(() if self._connection is None else self._connection.in_flight)]

    def _complain(self, error: TemporaryError) -> None:
        if self._log_limit.due():
            self._log.warn("{error}{more}", error=error, more=self._log_limit.more())

    # The connection's life.

    def _wait(self, command: Command) -> bool:
        """Let a command wait for the connection; where none is to come it fails at once, and the result is false."""
        if self._state is _State.DOWN or self._state is _State.CLOSED:
            command.fail(TemporaryError(f"{self.name}: {self._down_reason}"))
            return False
        self._waiting.append(command)
        if self._state is _State.IDLE:
            self._state = _State.CONNECTING
            self._open()
        return True

    def _open(self) -> None:
        self._attempt = self._connect(self._timeout).addCallbacks(self._connected, self._unreachable)

    def _connected(self, connection: RedisConnection) -> None:
        self._attempt = None
        if self._state is _State.DOWN:
            self._log.info("{name}: {server} can be used again", name=self.name, server=connection.server)
        self._state = _State.CONNECTED
        self._probe_pause = 0.0
        self.connections += 1
        self._connection = connection
        connection.on_refused = self._refused
        connection.on_lost = self._lost
        waiting, self._waiting = self._waiting, []
        for command in waiting:
            connection.send(command)

    def _refused(self, connection: RedisConnection, command: Command, reply: ErrorReply) -> None:
        command.tries += 1
        if reply.code not in self._unfit or command.tries >= TRIES or connection is not self._connection:
            command.answer(reply, connection.server)
            return
        self._connection = None
        self._state = _State.IDLE
        self._wait(command)  # it has not been done, so it may be sent again, and before those behind it
        error = TemporaryError(f"redis {connection.server}: {reply}")
        self._complain(error)
        connection.drop(error)

    def _lost(self, connection: RedisConnection, commands: list[Command], error: TemporaryError) -> None:
        if self._connection is connection:
            self._connection = None
            self._state = _State.IDLE
        if commands:
            self._complain(error)
        now = self._reactor.seconds()
        failed = []
        for command in commands:
            command.tries += 1
            if command.again and command.tries < TRIES and command.deadline > now:
                self._wait(command)
            else:
                failed.append(command)
        for command in failed:  # last: who hears of it may send another, which has to come after these, or close
            command.fail(error)

    def _unreachable(self, failure: Failure) -> None:
        self._attempt = None
        if self._state is _State.CLOSED:
            return
        reason = failure.getErrorMessage()
        if self._state is not _State.DOWN:
            self._log.warn(
                "{name} is down: {reason}. Operations fail at once until it is back; trying every {seconds} s or "
                "sooner.",
                name=self.name,
                reason=reason,
                seconds=f"{self._retry_interval:g}",
            )
        self._down_reason = f"down: {reason}"
        self._state = _State.DOWN
        # Before anybody hears of it, and may close the client.
        self._probe_pause = min(max(self._probe_pause * 2, FIRST_PROBE), self._retry_interval)
        self._probe = self._reactor.callLater(self._probe_pause, self._send_probe)
        waiting, self._waiting = self._waiting, []
        for command in waiting:
            command.fail(TemporaryError(f"{self.name}: {self._down_reason}"))

    def _send_probe(self) -> None:
        self._probe = None
        self._open()

    def _shut(self) -> None:
        self._state = _State.CLOSED
        self._down_reason = "the table is closed"
        for timer in (self._watch, self._probe):
            if timer is not None:
                timer.cancel()
        self._watch = self._probe = None
        if self._attempt is not None:
            self._attempt.cancel()
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.close()
