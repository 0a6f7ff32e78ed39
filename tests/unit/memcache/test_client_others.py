from __future__ import annotations

from socketmap_memcache.errors import LookupTimeout
from socketmap_memcache.memcache.interface import Limits
from tests.unit.memcache.scripted import gets, value

from .client_tests import ONE_TRY, ClientTests


class TestOthers(ClientTests):
    """What happens to one command is no matter of the others."""

    def test_pause(self) -> None:
        """While one look-up waits out its pause, all others go on."""
        connection = self.connect()
        done = self.get(limits=Limits(retry_pause=50))
        connection.send(b"ERROR\r\n")
        for _ in range(40):
            other = self.get(b"other")
            connection.send(b"END\r\n")
            assert self.successResultOf(other) is None
            self.clock.advance(1)
        self.assertNoResult(done)
        connection.received()
        self.clock.advance(10)
        assert connection.received() == gets([b"k"])
        connection.send(value(b"k", b"v"))
        assert self.successResultOf(done) == b"v"

    def test_behind_a_spoilt_one(self) -> None:
        """Commands behind one that spoils the connection go out again on a new one, and lose no try by that."""
        connection = self.connect()
        bad = self.get(b"bad", ONE_TRY)
        others = [self.get(key, ONE_TRY) for key in (b"a", b"b")]
        self.flush()
        connection.send(b"nonsense\r\n" + value(b"a", b"not to be believed"))
        self.assertFailed(bad, "nonsense")
        again = self.server.accept()
        self.flush()
        assert again.received() == gets([b"a", b"b"])
        again.send(value(b"a", b"1") + value(b"b", b"2"))
        assert [self.successResultOf(other) for other in others] == [b"1", b"2"]

    def test_deadline_of_others(self) -> None:
        """A command that goes out again keeps its deadline."""
        connection = self.connect()
        bad, other = self.get(b"bad", Limits(timeout=1.5, max_try=1)), self.get(b"other", ONE_TRY)
        self.clock.advance(1.5)
        self.assertFailed(bad, "no answer within 1.5 s", LookupTimeout)
        assert connection.is_aborted()
        self.assertNoResult(other)
        self.server.accept_probe()
        self.clock.advance(0.4)
        self.assertNoResult(other)
        self.clock.advance(0.1)
        self.assertFailed(other, "no answer within 2 s", LookupTimeout)

    def test_differing_timeouts(self) -> None:
        """Each command has its own time limit, whatever the order on the connection."""
        connection = self.connect()
        slow = self.get(b"slow", Limits(timeout=10, max_try=1))
        quick = self.get(b"quick", Limits(timeout=1, max_try=1))
        self.clock.advance(1)
        self.assertFailed(quick, "within 1 s", LookupTimeout)
        assert connection.is_aborted()
        second = self.server.accept_probe()
        assert second.received() == gets([b"slow"])
        self.clock.advance(8.5)
        self.assertNoResult(slow)
        self.clock.advance(0.5)
        self.assertFailed(slow, "within 10 s", LookupTimeout)

    def test_late_reply(self) -> None:
        """A reply that comes after its command was given up answers nothing."""
        connection = self.connect()
        late = self.get(b"late", ONE_TRY)
        self.clock.advance(2)
        self.assertFailed(late, "no answer", LookupTimeout)
        other = self.get(b"other", ONE_TRY)
        connection.send(value(b"late", b"1") + b"END\r\n")
        self.assertNoResult(other)
        connection.lose()
        self.server.accept_probe().send(value(b"other", b"2"))
        assert self.successResultOf(other) == b"2"

    def test_unsolicited(self) -> None:
        """Data that nobody asked for ends the connection: nobody knows what the next reply belongs to."""
        connection = self.connect()
        connection.send(b"END\r\n")
        assert connection.is_aborted()
        done = self.get()
        self.server.accept().send(b"END\r\n")
        assert self.successResultOf(done) is None

    def test_unsolicited_for_a_new_command(self) -> None:
        """A surplus reply does not answer a command that is sent upon the reply before: nobody had asked yet."""
        connection = self.connect()
        first, second = self.get(b"first"), []
        first.addCallback(lambda _: second.append(self.get(b"second")))
        connection.send(value(b"first", b"1") + b"END\r\n")
        self.successResultOf(first)
        self.assertNoResult(second[0])
        assert connection.is_aborted()
        again = self.server.accept()
        assert again.received() == gets([b"second"])
        again.send(value(b"second", b"2"))
        assert self.successResultOf(second[0]) == b"2"

    def test_unsolicited_for_an_unsent_command(self) -> None:
        """A surplus reply does not answer a command that still waits to be sent with the others of its turn."""
        connection = self.connect()
        sent, unsent = self.get(b"sent"), self.get(b"unsent")
        connection.send(b"END\r\nEND\r\n")
        assert self.successResultOf(sent) is None
        self.assertNoResult(unsent)
        self.flush()
        again = self.server.accept()
        again.send(value(b"unsent", b"1"))
        assert self.successResultOf(unsent) == b"1"

    def test_user_fails(self) -> None:
        """What a command's user raises does not touch the other commands."""
        connection = self.connect()
        first, second = self.get(b"a"), self.get(b"b")
        first.addCallback(lambda _: 1 / 0)
        self.flush()
        connection.send(b"END\r\nEND\r\n")
        self.failureResultOf(first, ZeroDivisionError)
        assert self.successResultOf(second) is None
