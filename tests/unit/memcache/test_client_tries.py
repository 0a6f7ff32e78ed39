from __future__ import annotations

from twisted.internet.error import ConnectionLost
from twisted.logger import capturedLogs

from socketmap_memcache.errors import LookupTimeout
from socketmap_memcache.log_limit import LOG_INTERVAL
from socketmap_memcache.memcache.client import PATIENCE, MemcacheClient
from socketmap_memcache.memcache.interface import Limits
from tests.unit.logs import texts
from tests.unit.memcache.scripted import PROBE, gets, value

from .client_tests import ONE_TRY, ClientTests


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
            "memcached inet:mc:11211: unexpected reply b'ERROR'",
            "memcached inet:mc:11211: unexpected reply b'ERROR' (4 times more since this was last logged)",
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
