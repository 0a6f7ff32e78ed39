from __future__ import annotations

from typing import Any, cast

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from socketmap_memcache.asker import FIRING
from socketmap_memcache.errors import TemporaryError
from socketmap_memcache.memcache.command import Command, Get
from socketmap_memcache.memcache.connection import MemcacheConnection
from socketmap_memcache.memcache.interface import Limits
from tests.unit.memcache.scripted import ScriptedConnection, gets, value

Lost = tuple[MemcacheConnection, list[Command], list[Command], TemporaryError]


class ConnectionTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.failed: list[tuple[Command, TemporaryError]] = []
        self.lost: list[Lost] = []
        self.answers: dict[Command, Deferred[bytes | None]] = {}
        self.connection = MemcacheConnection(
            "inet:mc:1",
            self.clock,
            lambda command, error: self.failed.append((command, error)),
            lambda *lost: self.lost.append(cast(Any, lost)),
        )
        self.server = ScriptedConnection(self.connection, IPv4Address("TCP", "192.0.2.1", 1))

    def send(self, *keys: bytes) -> list[Get]:
        commands = []
        for key in keys:
            answer: Deferred[bytes | None] = Deferred()
            command = Get(key, Limits(), {}, FIRING, answer)
            self.answers[command] = answer
            self.connection.send(command)
            commands.append(command)
        return commands

    def assertLost(self, blamed: list[Get], others: list[Get], reason: str) -> None:
        ((connection, *commands, error),) = self.lost
        assert connection is self.connection
        assert commands == [blamed, others]
        self.assertIn(f"memcached inet:mc:1: {reason}", str(error))

    def test_writes(self) -> None:
        """The first command leaves at once, the rest of the turn in one write."""
        self.send(b"a", b"b", b"c")
        self.clock.advance(0)
        assert self.server.writes() == [gets([b"a"]), gets([b"b", b"c"])]

    def test_refused(self) -> None:
        """A command that is refused is told with the reason; the connection goes on."""
        a, b = self.send(b"a", b"b")
        self.clock.advance(0)
        self.server.send(b"ERROR\r\n" + value(b"b", b"1"))
        ((command, error),) = self.failed
        assert command is a
        assert str(error) == "memcached inet:mc:1: unexpected reply b'ERROR'"
        assert self.successResultOf(self.answers[b]) == b"1"
        assert self.lost == []

    def test_unforeseen(self) -> None:
        """An asker that fails harms neither the connection nor the others, also those who share its command."""

        class Broken:
            def answered(self, value: object, token: object) -> None:
                raise ValueError("oops")

            failed = answered

        command = Get(b"a", Limits(), {}, Broken(), None)
        sharing: Deferred[bytes | None] = Deferred()
        command.share(FIRING, sharing)
        self.connection.send(command)
        (b,) = self.send(b"b")
        self.clock.advance(0)
        self.server.send(value(b"a", b"1") + value(b"b", b"2"))
        assert [self.successResultOf(answer) for answer in (sharing, self.answers[b])] == [b"1", b"2"]
        assert len(self.flushLoggedErrors(ValueError)) == 1
        assert self.lost == []

    def test_malformed(self) -> None:
        """What is no reply ends the connection, and only the oldest command is blamed for it."""
        a, b, c = self.send(b"a", b"b", b"c")
        self.clock.advance(0)
        self.server.send(b"END\r\ngarbage\r\nEND\r\n")
        assert self.successResultOf(self.answers[a]) is None
        self.assertLost([b], [c], "unexpected reply b'garbage'")
        assert self.server.is_aborted()

    def test_end_is_told_once(self) -> None:
        """The end of a connection is told once, and what comes after it is nothing."""
        (a,) = self.send(b"a")
        self.server.send(b"garbage\r\n")
        self.server.send(b"END\r\n")
        self.connection.drop(TemporaryError("again"), [a])
        self.server.lose()
        self.clock.advance(0)
        self.assertLost([a], [], "unexpected reply")
        self.assertNoResult(self.answers[a])

    def test_unsent(self) -> None:
        """Commands that were not yet sent when the connection ended are not sent on it."""
        a, b = self.send(b"a", b"b")
        self.connection.drop(TemporaryError("memcached inet:mc:1: why"), [a])
        self.clock.advance(0)
        assert self.server.received() == gets([b"a"])
        self.assertLost([a], [b], "why")

    def test_lost_before_any_reply(self) -> None:
        """A connection that ends before it answered anything is blamed on all commands: none may go out for ever."""
        commands = self.send(b"a", b"b")
        self.server.lose()
        self.assertLost(commands, [], "connection lost")

    def test_lost_between_replies(self) -> None:
        """A connection that worked and ends between two replies is blamed on nobody."""
        _, b, c = self.send(b"a", b"b", b"c")
        self.clock.advance(0)
        self.server.send(b"END\r\n")
        self.server.lose()
        self.assertLost([], [b, c], "connection lost")

    def test_lost_within_a_reply(self) -> None:
        """A connection that ends within a reply is blamed on the command that the reply is for."""
        _, b, c = self.send(b"a", b"b", b"c")
        self.clock.advance(0)
        self.server.send(b"END\r\nVALUE b 0 5\r\n12")
        self.server.lose()
        self.assertLost([b], [c], "connection lost")

    def test_missing_end(self) -> None:
        """A value that is complete but for its END is the answer, told after the end of the connection."""
        a, b = self.send(b"a", b"b")
        self.server.send(value(b"a", b"1", b"E"))
        answer = self.answers[a].addCallback(lambda result: (result, len(self.lost)))
        self.server.lose()
        assert self.successResultOf(answer) == (b"1", 1)
        self.assertLost([], [b], "connection lost")

    def test_close(self) -> None:
        """A connection that is closed tells nothing more."""
        self.connection.close()
        assert self.server.is_closed()
        self.server.lose()
        assert self.lost == []
