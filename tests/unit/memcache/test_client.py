from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import UNIXAddress
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectingCancelledError, ConnectionLost
from twisted.internet.error import TimeoutError as ConnectTimeoutError
from twisted.internet.task import Clock
from twisted.logger import LogEvent, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from socketmap_memcache.errors import LookupTimeout, TableError, TemporaryError
from socketmap_memcache.memcache.client import LOG_INTERVAL, PATIENCE, MemcacheClient
from socketmap_memcache.memcache.interface import ICache, Limits
from socketmap_memcache.memcache.link import LAST_PROBE
from socketmap_memcache.prompt_writer import WRITES_TOGETHER
from tests.unit.memcache.scripted import PROBE, ScriptedConnection, ScriptedServer, gets, value

LIMITS = Limits()
ONE_TRY = Limits(max_try=1)


def texts(events: Iterable[LogEvent]) -> list[str]:
    return [formatEvent(event) for event in events]


class ClientTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.server = ScriptedServer()
        self.client = MemcacheClient("inet:mc:11211", self.server.connect, self.clock)

    def connect(self) -> ScriptedConnection:
        """Give a connection that has answered once."""
        done = self.client.get(b"first", LIMITS)
        connection = self.server.accept()
        assert connection.received() == b"get first\r\n"
        connection.send(b"END\r\n")
        assert self.successResultOf(done) is None
        return connection

    def get(self, key: bytes = b"k", limits: Limits = LIMITS) -> Deferred[bytes | None]:
        return self.client.get(key, limits)

    def flush(self) -> None:
        """Let the reactor turn."""
        self.clock.advance(0)

    def timers(self) -> list[float]:
        return sorted(call.getTime() - self.clock.seconds() for call in self.clock.getDelayedCalls())

    def assertFailed(self, done: Deferred[Any], reason: str, kind: type[TableError] = TemporaryError) -> None:
        failure = self.failureResultOf(done, TemporaryError)
        assert type(failure.value) is kind
        self.assertIn(reason, str(failure.value))
        self.assertIn("inet:mc:11211", str(failure.value))


class TestCommands(ClientTests):
    def test_interface(self) -> None:
        """The client is a cache, and has the name of its server."""
        verifyObject(ICache, self.client)
        assert self.client.name == "inet:mc:11211"

    def test_connects_when_needed(self) -> None:
        """No connection is made before the first command; then one, within that command's time limit."""
        assert not self.server.attempts
        self.get(limits=Limits(timeout=7))
        self.get(b"other")
        (attempt,) = self.server.attempts
        assert attempt.timeout == 7
        assert self.server.accept().received() == gets([b"k"])
        self.flush()
        assert self.server.connections[0].received() == gets([b"other"])

    def test_together(self) -> None:
        """Commands that are sent in one context of writing together leave in one write at its end."""
        connection = self.connect()
        with WRITES_TOGETHER:
            for key in (b"a", b"b"):
                self.get(key)
            assert not connection.writes()
        assert connection.writes() == [b"get a\r\nget b\r\n"]

    def test_hit_and_miss(self) -> None:
        """A value is an answer, an empty value is one too, and END alone is a miss."""
        connection = self.connect()
        hit, empty, miss = self.get(b"a"), self.get(b"b"), self.get(b"c")
        self.flush()
        connection.send(value(b"a", b"1\r\n2") + value(b"b", b"") + b"END\r\n")
        assert self.successResultOf(hit) == b"1\r\n2"
        assert self.successResultOf(empty) == b""
        assert self.successResultOf(miss) is None

    def test_set(self) -> None:
        """A value is stored with flags and ttl as they are."""
        connection = self.connect()
        done = self.client.set(b"k", b"v", -1, 3600, LIMITS)
        assert connection.received() == b"set k -1 3600 1\r\nv\r\n"
        self.assertNoResult(done)
        connection.send(b"STORED\r\n")
        assert self.successResultOf(done) is True

    def test_delete(self) -> None:
        """A deletion says whether the key was there."""
        connection = self.connect()
        there, missing = self.client.delete(b"a", LIMITS), self.client.delete(b"b", LIMITS)
        self.flush()
        assert connection.received() == b"delete a\r\ndelete b\r\n"
        connection.send(b"DELETED\r\nNOT_FOUND\r\n")
        assert self.successResultOf(there) is True
        assert self.successResultOf(missing) is False

    def test_one_write(self) -> None:
        """The first command of an idle connection is sent at once; all others of the turn leave in one write."""
        connection = self.connect()
        keys = [b"k%d" % number for number in range(100)]
        for key in keys:
            self.get(key)
        assert connection.writes() == [gets(keys[:1])]
        self.flush()
        assert connection.writes() == [gets(keys[1:])]
        self.get(b"later")
        assert connection.writes() == []
        self.flush()
        assert connection.writes() == [gets([b"later"])]

    def test_one_timer(self) -> None:
        """However many commands wait for their answers, one timer watches over all of them."""
        connection = self.connect()
        for number in range(1000):
            self.get(b"k%d" % number)
            self.clock.advance(0.001)
        assert len(self.clock.getDelayedCalls()) == 1
        connection.send(b"END\r\n" * 1000)
        assert len(self.clock.getDelayedCalls()) <= 1
        self.clock.advance(LIMITS.timeout)
        assert self.clock.getDelayedCalls() == []
        assert not connection.is_aborted()

    def test_slow_server(self) -> None:
        """Replies that come byte by byte are answers all the same."""
        connection = self.connect()
        a, b = self.get(b"a"), self.get(b"b")
        self.flush()
        connection.send_slowly(value(b"a", b"x" * 100) + b"END\r\n")
        assert self.successResultOf(a) == b"x" * 100
        assert self.successResultOf(b) is None

    def test_options(self) -> None:
        """A TCP connection is set to send at once and to notice a dead peer; a UNIX socket has no such options."""
        assert self.connect().transport.options == ["nodelay", "keepalive"]
        self.server.peer = UNIXAddress("/mc")
        self.client = MemcacheClient("inet:mc:11211", self.server.connect, self.clock)
        assert self.connect().transport.options == []


class TestTries(ClientTests):
    def test_hang(self) -> None:
        """A server that hangs is given up after the timeout; if a new connection does not answer a probe in half of
        that time either, it is down, and the look-up has failed without waiting for its other tries.
        """
        done = self.get(limits=Limits(timeout=3, retry_pause=1, max_try=3))
        first = self.server.accept()
        assert first.received() == gets([b"k"])
        self.clock.advance(2.9)
        assert not first.is_aborted()
        self.clock.advance(0.2)
        assert first.is_aborted()
        second = self.server.accept()
        assert second.received() == PROBE
        self.clock.advance(1.4)
        self.assertNoResult(done)
        assert second.received() == b""
        self.clock.advance(0.2)
        self.assertFailed(done, "is down: no answer within 1.5 s", LookupTimeout)
        assert second.is_aborted()

    def test_slow_key(self) -> None:
        """A server that answers the probe is asked again after the pause, max_try times in all; then the look-up has
        timed out.
        """
        done = self.get(limits=Limits(timeout=3, retry_pause=5, max_try=3))
        connection = self.server.accept()
        for _ in range(3):
            assert connection.received() == gets([b"k"])
            self.clock.advance(2.9)
            assert not connection.is_aborted()
            self.assertNoResult(done)
            self.clock.advance(0.2)
            assert connection.is_aborted()
            connection = self.server.accept_probe()
            self.clock.advance(4.8)
            assert connection.received() == b""
            self.clock.advance(0.2)
        self.assertFailed(done, "no answer within 3 s", LookupTimeout)
        assert self.timers() == []

    def test_one_try(self) -> None:
        """With max_try = 1 the first failure is the result."""
        connection = self.connect()
        done = self.get(limits=ONE_TRY)
        self.clock.advance(2)
        self.assertFailed(done, "no answer within 2 s", LookupTimeout)
        assert connection.is_aborted()
        self.server.accept_probe()
        assert self.timers() == []

    def test_second_try_succeeds(self) -> None:
        """The answer of a later try is the answer."""
        connection = self.connect()
        done = self.get()
        connection.send(b"nonsense\r\n")
        self.clock.advance(1)
        second = self.server.accept()
        second.send(value(b"k", b"v"))
        assert self.successResultOf(done) == b"v"

    def assertRetried(self, reply: bytes, same_connection: bool, reason: str, key: bytes = b"k") -> None:
        """Check what a reply to a get does: a try is lost, and a second such reply fails the look-up with a reason."""
        connection = self.connect()
        done = self.get(key)
        connection.received()
        connection.send(reply)
        self.assertNoResult(done)
        assert connection.is_aborted() != same_connection
        self.clock.advance(0.9)
        assert not connection.received()
        assert not self.server.attempts
        self.clock.advance(0.1)
        if not same_connection:
            connection.lose()
            connection = self.server.accept()
        assert connection.received() == gets([key])
        connection.send(reply)
        self.assertFailed(done, reason)

    def test_close_mid_value(self) -> None:
        """A connection that is closed in the middle of a value is a lost try."""
        connection = self.connect()
        done = self.get(limits=ONE_TRY)
        connection.send(b"VALUE k 0 10\r\n12345")
        connection.lose(ConnectionLost)
        self.assertFailed(done, "connection lost: Connection to the other side was lost")

    def test_close_mid_line(self) -> None:
        """A connection that is closed in the middle of END is a lost try, and not a miss."""
        connection = self.connect()
        done = self.get(limits=ONE_TRY)
        connection.send(b"END")
        connection.lose()
        self.assertFailed(done, "connection lost")

    def test_close_at_once(self) -> None:
        """A server that closes each connection without an answer is down after the second."""
        done = self.get()
        self.server.accept().lose()
        self.assertNoResult(done)
        other = self.get(b"other")
        self.server.accept().lose()
        self.assertFailed(other, "is down: connection lost")
        self.clock.advance(0.1)
        self.server.refuse()
        self.clock.advance(0.9)
        self.assertFailed(done, "is down")

    def test_close_between_replies(self) -> None:
        """A connection that worked and is closed between two replies costs nobody a try: the commands go out again."""
        connection = self.connect()
        a, b = self.get(b"a", ONE_TRY), self.get(b"b", ONE_TRY)
        connection.lose()
        again = self.server.accept()
        self.flush()
        assert again.received() == gets([b"a", b"b"])
        again.send(b"END\r\nEND\r\n")
        assert self.successResultOf(a) is None
        assert self.successResultOf(b) is None

    def test_close_without_commands(self) -> None:
        """An idle connection that is closed is made again by the next command only, without a log line."""
        with capturedLogs() as logs:
            self.connect().lose()
        assert logs == []
        assert not self.server.attempts
        done = self.get()
        self.server.accept().send(b"END\r\n")
        assert self.successResultOf(done) is None

    def test_wrong_key(self) -> None:
        """A value for another key than the one asked for is a lost try, on a connection that is not used any more."""
        self.assertRetried(value(b"other", b"v"), False, "a value for another key, b'other'")

    def test_garbage(self) -> None:
        """What is no reply to a get is a lost try, on a connection that is not used any more."""
        self.assertRetried(b"\x80\x81\r\n", False, r"unexpected reply b'\x80\x81'")

    def test_stored_for_get(self) -> None:
        """The reply to another kind of command is a lost try, and so is END with a trailing blank."""
        self.assertRetried(b"STORED\r\n", False, "unexpected reply b'STORED'")

    def test_not_quite_end(self) -> None:
        """END with a trailing blank, or in lower case, is not a miss."""
        self.assertRetried(b"END \r\n", False, "unexpected reply b'END '")

    def test_long_line(self) -> None:
        """A line above line_size_limit is a lost try, on a connection that is not used any more."""
        self.assertRetried(b"x" * 1025, False, "reply line of more than 1024 bytes (line_size_limit)")

    def test_long_value(self) -> None:
        """A value above data_size_limit is a lost try, and the connection goes on."""
        self.assertRetried(value(b"k", b"x" * 10241), True, "value of 10241 bytes (data_size_limit is 10240)")

    def test_error(self) -> None:
        """The server's ERROR is a lost try, and the connection goes on."""
        self.assertRetried(b"ERROR\r\n", True, "unexpected reply b'ERROR'")

    def test_server_error(self) -> None:
        """The server's SERVER_ERROR is a lost try with the first 30 bytes as the reason; the connection goes on."""
        reply = b"SERVER_ERROR out of memory writing get response\r\n"
        self.assertRetried(reply, True, "unexpected reply b'SERVER_ERROR out of memory wri'")

    def test_client_error(self) -> None:
        """The server's CLIENT_ERROR is a lost try, and the connection goes on."""
        self.assertRetried(b"CLIENT_ERROR bad\r\n", True, "CLIENT_ERROR bad")

    def test_bad_value_end(self) -> None:
        """A value that is not followed by CR LF is a lost try."""
        self.assertRetried(b"VALUE k 0 1\r\nvv\r\nEND\r\n", False, "value is not followed by a line end")

    def test_out_of_order(self) -> None:
        """Values in another order than they were asked for in answer nothing."""
        connection = self.connect()
        a, b = self.get(b"a", ONE_TRY), self.get(b"b", ONE_TRY)
        connection.send(value(b"b", b"2") + value(b"a", b"1"))
        self.assertFailed(a, "another key")
        self.assertNoResult(b)
        again = self.server.accept()
        assert again.received() == gets([b"b"])
        again.send(value(b"b", b"2"))
        assert self.successResultOf(b) == b"2"

    def test_missing_end(self) -> None:
        """A complete value is the answer even if END is another line; Postfix, too, only gives up the connection."""
        connection = self.connect()
        a, b = self.get(b"a", ONE_TRY), self.get(b"b", ONE_TRY)
        connection.send(value(b"a", b"1", b"ERROR\r\n"))
        assert self.successResultOf(a) == b"1"
        assert connection.is_aborted()
        self.server.accept().send(value(b"b", b"2"))
        assert self.successResultOf(b) == b"2"

    def test_missing_end_times_out(self) -> None:
        """A complete value is the answer when END does not come within the timeout, or the connection is closed."""
        for end in ("timeout", "close"):
            connection = self.connect()
            done = self.get()
            connection.send(value(b"k", b"v", b"EN"))
            self.assertNoResult(done)
            if end == "close":
                connection.lose()
            else:
                self.clock.advance(2)
            assert self.successResultOf(done) == b"v"

    def test_missing_end_of_wrong_key(self) -> None:
        """A value for another key is no answer without its END either."""
        connection = self.connect()
        done = self.get(limits=ONE_TRY)
        connection.send(value(b"other", b"v", b"ERROR\r\n"))
        self.assertFailed(done, "where END should be")

    def test_missing_end_of_set(self) -> None:
        """A value in reply to a set is a lost try."""
        connection = self.connect()
        done = self.client.set(b"k", b"v", 0, 0, ONE_TRY)
        connection.send(value(b"k", b"v", b"EN"))
        connection.lose()
        self.assertFailed(done, "connection lost")

    def test_set_refused(self) -> None:
        """Any reply to a set but STORED is a lost try, on a connection that is not used any more: the server may take
        the data for a command.
        """
        for reply in (b"NOT_STORED", b"EXISTS", b"SERVER_ERROR object too large for cache", b"CLIENT_ERROR", b"END"):
            connection = self.connect()
            done = self.client.set(b"k", b"v", 0, 0, ONE_TRY)
            connection.send(reply + b"\r\n")
            self.assertFailed(done, f"unexpected reply {reply[:30]!r}")
            assert connection.is_aborted()

    def test_delete_refused(self) -> None:
        """An error in reply to a deletion is a lost try, and so is anything else but DELETED or NOT_FOUND."""
        connection = self.connect()
        done = self.client.delete(b"k", ONE_TRY)
        connection.send(b"SERVER_ERROR\r\n")
        self.assertFailed(done, "SERVER_ERROR")
        done = self.client.delete(b"k", ONE_TRY)
        connection.send(value(b"k", b"v"))
        self.assertFailed(done, "another key")
        assert connection.is_aborted()

    def test_patience(self) -> None:
        """Whatever the limits say, a look-up has failed before Postfix gives up on the service."""
        for limits in (
            Limits(timeout=1000),
            Limits(timeout=60, max_try=5),
            Limits(timeout=1, retry_pause=1000),
            Limits(timeout=1, retry_pause=30, max_try=1000),
        ):
            connection = self.connect()
            started = self.clock.seconds()
            done = self.get(limits=limits)
            while not done.called:
                self.clock.advance(0.5)
                if self.server.attempts:
                    self.server.accept_probe() if connection.is_aborted() else self.server.accept()
                assert self.clock.seconds() - started <= PATIENCE + 0.5
            self.assertFailed(done, "no answer", LookupTimeout)
            assert connection.is_aborted()
            self.client = MemcacheClient("inet:mc:11211", self.server.connect, self.clock)

    def test_log_lines(self) -> None:
        """Failed tries are logged once a minute, with the number of those in between."""
        connection = self.connect()
        with capturedLogs() as logs:
            for _ in range(5):
                self.get(limits=ONE_TRY).addErrback(lambda _: None)
                connection.send(b"ERROR\r\n")
            self.clock.advance(LOG_INTERVAL)
            self.get(limits=ONE_TRY).addErrback(lambda _: None)
            connection.send(b"ERROR\r\n")
        assert texts(logs) == [
            "memcached inet:mc:11211: unexpected reply b'ERROR' (and 0 more since the last such line)",
            "memcached inet:mc:11211: unexpected reply b'ERROR' (and 4 more since the last such line)",
        ]

    def test_log_lines_clock_set_back(self) -> None:
        """When the clock is set back, that is not a long time without a line."""
        connection = self.connect()
        self.clock.advance(2 * LOG_INTERVAL)
        with capturedLogs() as logs:
            for _ in range(2):
                self.get(limits=ONE_TRY).addErrback(lambda _: None)
                connection.send(b"ERROR\r\n")
                self.clock.rightNow -= LOG_INTERVAL
        assert len(logs) == 2


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


class TestDown(ClientTests):
    def test_refused(self) -> None:
        """A refused connection is not tried again: all that wait for it fail at once."""
        waiting = [self.get(b"a"), self.get(b"b")]
        self.server.refuse()
        for done in waiting:
            self.assertFailed(done, "is down: Connection was refused by other side")

    def test_fails_at_once(self) -> None:
        """While the server is down commands fail at once, without a connection and without a timer."""
        done = self.get()
        self.server.refuse()
        self.assertFailed(done, "refused")
        self.clock.advance(2)
        self.server.refuse()
        before = self.timers()
        for _ in range(10):
            self.assertFailed(self.get(), "is down: Connection was refused")
        assert not self.server.attempts
        assert self.timers() == before

    def test_probes(self) -> None:
        """A server that is down is probed, with pauses that double from 0.1 to 1 second, one attempt at a time."""
        done = self.get()
        self.server.refuse()
        self.assertFailed(done, "refused")
        for pause in (0.1, 0.2, 0.4, 0.8, 1, 1, 1):
            self.clock.advance(pause - 0.01)
            assert not self.server.attempts
            self.clock.advance(0.01001)
            assert len(self.server.attempts) == 1
            self.clock.advance(20)
            self.server.refuse()
        assert LAST_PROBE == 1

    def test_back(self) -> None:
        """When a probe succeeds commands are sent again; the state and its end are logged once each."""
        with capturedLogs() as logs:
            self.get().addErrback(lambda _: None)
            self.server.refuse()
            self.clock.advance(0.1)
            self.server.refuse()
            self.clock.advance(0.2)
            connection = self.server.accept()
            self.assertFailed(self.get(), "is down")
            assert connection.received() == PROBE
            connection.send(b"END\r\n")
            done = self.get()
            assert connection.received() == gets([b"k"])
            connection.send(b"END\r\n")
            assert self.successResultOf(done) is None
        assert [text[:58] for text in texts(logs)] == [
            "memcached inet:mc:11211 is down: Connection was refused by",
            "memcached inet:mc:11211: is back",
        ]
        connection.lose()
        self.get().addErrback(lambda _: None)
        self.server.refuse()
        assert self.timers()[0] == pytest.approx(0.1)

    def test_command_during_a_probe(self) -> None:
        """A command fails at once even while a probe is under way."""
        self.get().addErrback(lambda _: None)
        self.server.refuse()
        self.clock.advance(0.1)
        assert len(self.server.attempts) == 1
        self.assertFailed(self.get(), "is down")

    def test_connect_times_out(self) -> None:
        """An attempt that is given up in time is a time-out for those that wait, and the server is down."""
        for error in (ConnectTimeoutError(), CancelledError(), ConnectingCancelledError(UNIXAddress("/mc"))):
            self.client = MemcacheClient("inet:mc:11211", self.server.connect, self.clock)
            done = self.get(limits=Limits(timeout=3))
            self.server.refuse(error)
            self.assertFailed(done, "is down: no connection within 3 s", LookupTimeout)
            self.assertFailed(self.get(), "is down: no connection within 3 s", LookupTimeout)

    def test_connect_never_completes(self) -> None:
        """Commands that wait for a connection time out each in its own time, without another try."""
        first, second = self.get(limits=Limits(timeout=2)), self.get(b"other", Limits(timeout=3))
        self.clock.advance(2)
        self.assertFailed(first, "no answer within 2 s", LookupTimeout)
        self.assertNoResult(second)
        self.clock.advance(1)
        self.assertFailed(second, "no answer within 3 s", LookupTimeout)
        assert len(self.server.attempts) == 1
        assert self.timers() == []

    def test_down_at_the_second_try(self) -> None:
        """A command that finds the server down at its second try fails, and the others behind it as well."""
        connection = self.connect()
        bad, other = self.get(b"bad"), self.get(b"other")
        connection.send(b"nonsense\r\n")
        self.server.refuse()
        self.assertFailed(other, "is down")
        self.assertNoResult(bad)
        self.clock.advance(0.1)
        self.server.refuse()
        self.clock.advance(0.9)
        self.assertFailed(bad, "is down")

    def test_timeout_of_a_connect_has_a_bound(self) -> None:
        """An attempt to connect is never given longer than a look-up can wait."""
        self.get(limits=Limits(timeout=100_000))
        assert self.server.attempts[0].timeout == PATIENCE


class TestClose(ClientTests):
    def test_idle(self) -> None:
        """A client with nothing under way closes its connection, and leaves no timer."""
        connection = self.connect()
        self.client.close()
        assert connection.is_closed()
        assert self.timers() == []
        connection.lose()
        self.assertFailed(self.get(), "the client is closed")
        assert self.timers() == []
        assert not self.server.attempts

    def test_unused(self) -> None:
        """A client that was never used can be closed, also twice."""
        self.client.close()
        self.client.close()
        assert self.timers() == []

    def test_in_flight(self) -> None:
        """What is in flight, waits for its next try, or for the connection, is still answered; then all is let go."""
        connection = self.connect()
        pausing, flying = self.get(b"pausing"), self.get(b"flying")
        self.flush()
        connection.send(b"ERROR\r\n")
        self.client.close()
        connection.send(value(b"flying", b"1"))
        assert self.successResultOf(flying) == b"1"
        assert not connection.is_closed()
        self.clock.advance(1)
        connection.send(value(b"pausing", b"2"))
        assert self.successResultOf(pausing) == b"2"
        assert connection.is_closed()
        assert self.timers() == []

    def test_waiting(self) -> None:
        """A command that waits for the connection is still answered."""
        done = self.get()
        self.client.close()
        connection = self.server.accept()
        connection.send(value(b"k", b"v"))
        assert self.successResultOf(done) == b"v"
        assert connection.is_closed()

    def test_hang(self) -> None:
        """A server that hangs keeps a client that closes no longer than its commands may take."""
        self.connect()
        done = self.get()
        self.client.close()
        self.clock.advance(2)
        self.assertNoResult(done)
        self.clock.advance(1)
        self.server.accept()
        self.clock.advance(2)
        self.assertFailed(done, "no answer", LookupTimeout)
        assert self.timers() == []

    def test_command_of_a_last_answer(self) -> None:
        """A command that the last answer brings about, as a refill, is sent and answered before the end."""
        connection = self.connect()
        stored: list[Deferred[bool]] = []
        done = self.get()
        done.addCallback(lambda _: stored.append(self.client.set(b"k", b"v", 0, 0, LIMITS)))
        self.client.close()
        connection.received()
        connection.send(b"END\r\n")
        assert connection.received() == b"set k 0 0 1\r\nv\r\n"
        assert not connection.is_closed()
        connection.send(b"STORED\r\n")
        assert self.successResultOf(stored[0]) is True
        assert connection.is_closed()

    def test_down(self) -> None:
        """Closing ends the probes."""
        self.get(limits=ONE_TRY).addErrback(lambda _: None)
        self.server.refuse()
        self.clock.advance(10)
        self.server.refuse()
        self.client.close()
        assert self.timers() == []

    def test_probe_under_way(self) -> None:
        """Closing gives up an attempt to connect."""
        self.get().addErrback(lambda _: None)
        self.server.refuse()
        self.clock.advance(2.1)
        (attempt,) = self.server.attempts
        self.client.close()
        assert attempt.cancelled
        assert self.timers() == []

    def test_closes_upon_a_refusal(self) -> None:
        """A client that is closed when its last command hears that the server is down does not probe it."""
        self.get().addErrback(lambda _: self.client.close())
        self.server.refuse()
        assert self.timers() == []

    def test_closes_upon_a_timeout(self) -> None:
        """A client that is closed when its last command times out leaves neither a connection nor a timer."""
        connection = self.connect()
        self.get(limits=ONE_TRY).addErrback(lambda _: self.client.close())
        self.clock.advance(2)
        assert connection.is_aborted()
        assert self.timers() == []
        self.client = MemcacheClient("inet:mc:11211", self.server.connect, self.clock)
        self.get(limits=ONE_TRY).addErrback(lambda _: self.client.close())
        self.clock.advance(2)
        assert self.server.attempts[0].cancelled
        assert self.timers() == []

    def test_closes_from_within(self) -> None:
        """A user may close the client upon an answer."""
        connection = self.connect()
        done = self.get()
        done.addCallback(lambda _: self.client.close())
        connection.send(b"END\r\nsurplus")
        self.successResultOf(done)
        assert connection.is_closed()
        assert self.timers() == []


class Script:
    """What a server does with what it is sent, one item for each turn."""

    @staticmethod
    def turns() -> st.SearchStrategy[list[str]]:
        return st.lists(
            st.sampled_from(
                [
                    "get",
                    "get",
                    "get",
                    "set",
                    "answer",
                    "answer",
                    "miss",
                    "error",
                    "garbage",
                    "half",
                    "wrong",
                    "close",
                    "wait",
                    "wait",
                    "refuse",
                ]
            ),
            max_size=40,
        )


@given(Script.turns())
def test_any_server(turns: list[str]) -> None:
    """Whatever a server does, each command ends once, in time, and only the server's own answer is one: no failure
    becomes a miss, and no value comes for another key.
    """
    clock, server, told = Clock(), ScriptedServer(), set()
    client = MemcacheClient("inet:mc:11211", server.connect, clock)
    results: list[tuple[bytes, list[object]]] = []
    missing: set[bytes] = set()
    connection: ScriptedConnection | None = None
    requests: list[bytes] = []

    def pump() -> None:
        clock.advance(0)
        if connection is not None:
            requests.extend(line for line in connection.received().split(b"\r\n") if line[:4] in {b"get ", b"set "})

    for number, turn in enumerate(turns):
        key = b"k%d" % number
        if server.attempts and turn != "refuse":
            requests.clear()
            connection = server.accept()
        pump()
        if turn in {"get", "set"}:
            limits = Limits(timeout=1 + number % 3, max_try=1 + number % 2)
            result: list[object] = []
            done: Deferred[Any] = client.get(key, limits) if turn == "get" else client.set(key, b"v", 0, 0, limits)
            done.addBoth(result.append)
            results.append((key, result))
        elif turn == "wait":
            clock.advance(1)
        elif turn == "refuse":
            if server.attempts:
                server.refuse()
        elif connection is not None and not connection.is_aborted() and requests:
            command, asked = requests[0].split(b" ")[:2]
            if turn in {"answer", "miss", "error", "wrong"}:
                requests.pop(0)
            if turn == "close":
                connection.lose()
                connection = None
            elif turn == "half":
                connection.send(b"VALUE %b 0 5\r\nab" % asked)
                connection = None  # nothing comes any more
            elif turn == "garbage":
                connection.send(b"END of it\r\n")
            elif turn == "error":
                connection.send(b"SERVER_ERROR\r\n")
            elif turn == "wrong":
                connection.send(value(b"wrong", b"wrong"))
            elif command == b"set":
                connection.send(b"STORED\r\n")
                told.add(asked)
            elif turn == "miss":
                missing.add(asked)
                connection.send(b"END\r\n")
            else:
                told.add(asked)
                connection.send(value(asked, b"value of " + asked))
    for _ in range(60):
        clock.advance(0.5)
        if server.attempts:
            server.refuse()
    client.close()
    assert clock.getDelayedCalls() == []
    for key, result in results:
        (answer,) = result
        if answer is None:
            assert key in missing
        elif answer is True:
            assert key in told
        elif isinstance(answer, bytes):
            assert answer == b"value of " + key
        else:
            assert isinstance(answer.value, TemporaryError)  # type: ignore[attr-defined]
