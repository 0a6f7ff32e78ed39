"""One pipelined connection to a memcached: commands in, replies matched with them in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

from socketmap_memcache.errors import TemporaryError
from socketmap_memcache.memcache.command import UNFINISHED, Command, CommandRefusedError
from socketmap_memcache.memcache.probe import FENCE
from socketmap_memcache.pipelined_connection import PipelinedConnection
from socketmap_memcache.prompt_writer import WRITES_TOGETHER
from socketmap_memcache.protocols.memcache import MemcacheError, ReplyReader


class MemcacheConnection(PipelinedConnection):
    """A connection that is used until the first thing goes wrong on it.

    :ivar in_flight: the commands that have no reply yet, the oldest first, with their fences.
    :ivar has_answered: whether there has been a whole reply.
    """

    def __init__(
        self,
        server: str,
        reactor: IReactorTime,
        on_failed: Callable[[Command, TemporaryError], None],
        on_lost: Callable[[MemcacheConnection, list[Command], list[Command], TemporaryError], None],
    ) -> None:
        """Make a connection that is not connected yet.

        :param server: its name, for errors.
        :param on_failed: called with a command whose try has failed, and why; the connection goes on.
        :param on_lost: called once, at the end of the connection, with the commands whose try has failed, those that
            only happened to be on the same connection, and the reason.
        """
        super().__init__(reactor, ReplyReader())
        self._server = server
        self._on_failed = on_failed
        self._on_lost = on_lost
        self.has_answered = False
        self.in_flight: deque[Command] = deque()
        self._unfenced = False  # whether a fence may have to follow what is unsent
        self._expects_misses = False  # whether it does: else it is sent after the first miss
        self._in_doubt: deque[tuple[Command, Any]] = deque()  # misses whose fence is the next one in flight
        self._refused = False  # whether the last fence left them so, for its reply was an error

    def unanswered(self) -> list[Command]:
        """Give the commands that somebody waits for, the oldest first."""
        in_doubt = [command for command, _ in self._in_doubt]
        return in_doubt + [command for command in self.in_flight if command is not FENCE]

    def send(self, command: Command) -> None:
        """Put a command on its way. What is sent in one reactor turn leaves in one write, but for the first of it."""
        follows, alone = bool(self._unsent), not self.in_flight
        self.in_flight.append(command)
        self._unsent.append(command.wire)
        if command.fenced:
            self._unfenced = True
            if command.uncertain:  # if the next one is what connections are lost with, this one is to be answered
                self._put_fence()
        if follows:
            return
        if WRITES_TOGETHER.held is not None:
            WRITES_TOGETHER.held.append((self._flush, b""))
        elif alone:
            self._flush()
        else:
            self._reactor.callLater(0, self._flush)

    def _flush(self, _: bytes = b"") -> None:
        if self._unfenced and self._expects_misses and self.usable:
            self._put_fence()
        self._unfenced = False
        super()._flush()

    def _put_fence(self) -> None:
        self._unfenced = False
        self.in_flight.append(FENCE)
        self._unsent.append(FENCE.wire)

    def _hand_over(self) -> None:
        reader, in_flight = self._reader, self.in_flight
        try:
            # What is sent from here on, by those who now get their answers, cannot be answered by this data.
            for _ in range(len(in_flight) - len(self._unsent)):
                command = in_flight[0]
                try:
                    result = command.take(reader)
                except CommandRefusedError as refusal:
                    self.has_answered = True
                    in_flight.popleft()
                    self._on_failed(command, self._error(str(refusal)))
                    continue
                if result is UNFINISHED:
                    return
                self.has_answered = True
                if command is FENCE:
                    self._heed(bool(result))
                    continue
                in_flight.popleft()
                if command.fenced and command.missed(result):
                    self._doubt(command, result)
                else:
                    command.succeed(result)
            if not reader.idle:
                self.drop(self._error("data that nobody asked for"), ())
        except MemcacheError as error:
            self.drop(self._error(str(error)), self._oldest())

    def _doubt(self, command: Command, result: Any) -> None:
        """Keep a miss until a fence behind it has been answered."""
        if not self._in_doubt and FENCE not in self.in_flight:
            self.send(FENCE)
        self._in_doubt.append((command, result))

    def _heed(self, accepted: bool) -> None:
        """Hand over the misses whose fence has been answered in its place.

        An error may be the reply to the look-up before it. It is taken for that to the fence, as of a proxy that has
        lost the server of the fence's key, when there is another one in place of that to the next fence.

        :raises MemcacheError: there is not.
        """
        if accepted and self._refused:
            raise MemcacheError("out of step: an error where the reply to another command should be")
        self.in_flight.popleft()
        self._expects_misses = bool(self._in_doubt)
        certain = accepted or self._refused
        self._refused = bool(self._in_doubt) and not certain
        if self._refused:
            self.send(FENCE)
            return
        while self._in_doubt:
            command, result = self._in_doubt.popleft()
            command.succeed(result)

    def _oldest(self) -> list[Command]:
        """Give the command, or with a fence the commands, that the next reply is for."""
        oldest = self.in_flight[0]
        return [command for command, _ in self._in_doubt] if oldest is FENCE else [oldest]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Hear that the connection is gone.

        In the middle of a reply that is put down to its command, and in place of that to a fence to those in doubt.
        Between other replies it is nobody's fault: Postfix, too, only connects again when a server has closed a
        connection that worked. But one that never answered anything counts against all that were on it, or they would
        be sent for ever.
        """
        blamed: Collection[Command] = ()
        text = f"connection lost: {reason.getErrorMessage()}"
        if self.in_flight and (not self._reader.idle or self.in_flight[0] is FENCE):
            blamed = self._oldest()
        elif not self.has_answered:
            blamed = tuple(self.in_flight)
            if self._server.startswith("inet:"):
                text += " It never answered anything: does the server expect tls:?"
        self._end(self._error(text), blamed)

    def drop(self, error: TemporaryError, blamed: Collection[Command]) -> None:
        """Close the connection at once, if it still is one.

        :param blamed: the commands that have used up a try; the others in flight may go on elsewhere.
        """
        if self.usable:
            self._transport.abortConnection()
            self._end(error, blamed)

    def close(self) -> None:
        """Close the connection, on which nobody waits for anything."""
        self.usable = False
        self._writer.close()

    def _error(self, text: str) -> TemporaryError:
        return TemporaryError(f"memcached {self._server}: {text}")

    def _end(self, error: TemporaryError, blamed: Collection[Command]) -> None:
        if not self.usable:
            return
        self.usable = False
        finished = self._finished()
        commands = self.unanswered()
        self.in_flight.clear()
        self._in_doubt.clear()
        guilty = frozenset(blamed)
        self._on_lost(self, [c for c in commands if c in guilty], [c for c in commands if c not in guilty], error)
        for command, result in finished:
            command.succeed(result)

    def _finished(self) -> list[tuple[Command, object]]:
        """Take the oldest command away if all of its value has come, without its END: a hit for Postfix."""
        reply = self._reader.unfinished()
        if reply is None or not self.in_flight:
            return []
        try:
            result = self.in_flight[0].result(reply)
        except MemcacheError:
            return []
        return [(self.in_flight.popleft(), result)]
