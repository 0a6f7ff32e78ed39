"""One pipelined connection to a Redis: commands in, replies matched with them in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from socketmap_memcache.asker import FIRING
from socketmap_memcache.errors import TemporaryError
from socketmap_memcache.pipelined_connection import PipelinedConnection
from socketmap_memcache.protocols import redis
from socketmap_memcache.protocols.redis import ErrorReply, RedisProtocolError, Reply, ReplyReader, Unfinished
from socketmap_memcache.tables.redis_command import VALUE_LIMIT, Command


class RedisConnection(PipelinedConnection):
    """A connection that is used until the first thing goes wrong on it.

    :ivar server: its name, for errors.
    :ivar in_flight: the commands that have no reply yet, the oldest first.
    :ivar has_answered: whether it has answered when it was greeted; for those who greet.
    :ivar on_refused: called with a command that the server answered with an error, instead of failing it.
    :ivar on_lost: called once, at the end of the connection, with the commands in flight, instead of failing them.
    """

    _log = Logger()

    def __init__(self, server: str, reactor: IReactorTime) -> None:
        """Make a connection that is not connected yet."""
        super().__init__(reactor, ReplyReader(VALUE_LIMIT))
        self.server = server
        self.has_answered = False
        self.in_flight: deque[Command] = deque()
        self.on_refused: Callable[[RedisConnection, Command, ErrorReply], None] = _fail
        self.on_lost: Callable[[RedisConnection, list[Command], TemporaryError], None] = _fail_all

    def ask(self, *words: bytes) -> Deferred[Reply]:
        """Send a command; fires with the reply, or fails with :class:`TableError`, also where the reply is an error."""
        answer: Deferred[Any] = Deferred()
        self.send(Command(redis.command(*words), _itself, FIRING, answer))
        return answer

    def send(self, command: Command) -> None:
        """Put a command on its way. What is sent in one reactor turn leaves in one write, but for the first of it."""
        if not self.usable:
            self.on_lost(self, [command], self._error("connection lost"))
            return
        if not self.in_flight:
            self.in_flight.append(command)
            self._writer.write(command.wire)
            return
        self.in_flight.append(command)
        self._unsent.append(command.wire)
        if len(self._unsent) == 1:
            self._reactor.callLater(0, self._flush)

    def _hand_over(self) -> None:
        reader, in_flight = self._reader, self.in_flight
        try:
            # What is sent from here on, by those who now get their answers, cannot be answered by this data.
            for _ in range(len(in_flight) - len(self._unsent)):
                reply = reader.next_reply()
                if isinstance(reply, Unfinished):
                    return
                command = in_flight.popleft()
                try:
                    if type(reply) is ErrorReply:
                        self.on_refused(self, command, reply)
                    else:
                        command.answer(reply, self.server)
                except Exception:  # noqa: BLE001 (whoever asked, the server and all others have nothing to do with it)
                    self._log.failure("an answer of Redis led to an unforeseen error")
                if not self.usable:
                    return
            if not reader.idle:
                self.drop(self._error("data that nobody asked for"))
        except RedisProtocolError as error:
            self.drop(self._error(str(error)))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Hear that the connection is gone."""
        self._end(self._error(self.reason(reason)))

    def reason(self, reason: Failure) -> str:
        """Say why the connection is gone."""
        return f"connection lost: {reason.getErrorMessage()}"

    def drop(self, error: TemporaryError) -> None:
        """Close the connection at once, if it still is one."""
        if self.usable:
            self._transport.abortConnection()
            self._end(error)

    def close(self) -> None:
        """Close the connection, on which nothing is in flight, if it still is one."""
        if self.usable:
            self.usable = False
            self._writer.close()

    def _error(self, text: str) -> TemporaryError:
        return TemporaryError(f"redis {self.server}: {text}")

    def _end(self, error: TemporaryError) -> None:
        if self.usable:
            self.usable = False
            commands = list(self.in_flight)
            self.in_flight.clear()
            self.on_lost(self, commands, error)


def _itself(reply: Reply) -> Reply:
    return reply


def _fail(connection: RedisConnection, command: Command, reply: ErrorReply) -> None:
    command.answer(reply, connection.server)


def _fail_all(_connection: RedisConnection, commands: list[Command], error: TemporaryError) -> None:
    for command in commands:
        command.fail(error)
