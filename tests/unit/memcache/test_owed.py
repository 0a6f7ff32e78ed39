from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs

from socketmap_memcache.memcache import owed
from socketmap_memcache.memcache.interface import Limits
from socketmap_memcache.memcache.owed import REFUSED_PAUSE
from tests.unit.logs import texts
from tests.unit.memcache.scripted import PROBE, ScriptedConnection, gets, value

from .client_tests import ONE_TRY, ClientTests

BACKED = Limits(backed=True, max_try=1)
REFILL = Limits(backed=True, max_try=1, refills=True)


class OwedTests(ClientTests):
    def ignore(self, done: Deferred[bool]) -> None:
        done.addErrback(lambda _: None)

    def go_down(self) -> None:
        """Leave the client with a server that is down."""
        self.get(b"any").addErrback(lambda _: None)
        self.server.refuse()

    def back(self) -> ScriptedConnection:
        """Let the server come back."""
        self.clock.advance(5)
        return self.server.accept_probe()

    def assertNothingOwed(self) -> None:
        """Check that nothing is sent on a new connection."""
        self.server.connections[-1].lose()
        done = self.get(b"other")
        connection = self.server.accept()
        assert connection.received() == gets([b"other"])
        connection.send(b"END\r\n")
        self.successResultOf(done)


class TestOwed(OwedTests):
    def test_first_on_a_new_connection(self) -> None:
        """What is owed is deleted before anything else is sent, and once."""
        connection = self.connect()
        connection.lose()
        self.client.owe(b"a")
        self.client.owe(b"b")
        done = self.get(b"a")
        connection = self.server.accept()
        assert connection.received() == b"delete a\r\ndelete b\r\n" + gets([b"a"])
        connection.send(b"DELETED\r\nNOT_FOUND\r\nEND\r\n")
        assert self.successResultOf(done) is None
        self.assertNothingOwed()

    def test_at_once(self) -> None:
        """With a connection the delete is sent at once."""
        connection = self.connect()
        self.client.owe(b"a")
        assert connection.received() == b"delete a\r\n"
        connection.send_slowly(b"DELETED\r\n")
        self.assertNothingOwed()

    def test_unanswered(self) -> None:
        """A key whose delete is not answered is owed on the next connection, too."""
        connection = self.connect()
        self.client.owe(b"a")
        connection.send(b"DEL")
        connection.lose()
        self.get(b"a")
        connection = self.server.accept()
        assert connection.received() == b"delete a\r\n" + gets([b"a"])
        connection.lose()
        assert self.server.accept_probe().received() == b"delete a\r\n"

    def test_owed_again(self) -> None:
        """A key that comes to be owed while its delete is under way needs another one."""
        connection = self.connect()
        self.client.owe(b"a")
        self.client.owe(b"a")
        self.flush()
        assert connection.received() == b"delete a\r\n" * 2
        connection.send(b"DELETED\r\n")
        connection.lose()
        self.get(b"b")
        assert self.server.accept().received() == b"delete a\r\n" + gets([b"b"])

    def test_refused(self) -> None:
        """A delete that is refused, as by a proxy whose server is down, is sent again after a while."""
        connection = self.connect()
        self.client.owe(b"a")
        connection.received()
        connection.send(b"SERVER_ERROR Connection refused\r\n")
        self.clock.advance(REFUSED_PAUSE - 0.1)
        assert connection.received() == b""
        self.clock.advance(0.1)
        assert connection.received() == b"delete a\r\n"
        connection.send(b"DELETED\r\n")
        self.assertNothingOwed()
        assert [timer for timer in self.timers() if timer > 2] == []

    def test_garbage(self) -> None:
        """A reply that is none spoils the connection, and the key stays owed."""
        connection = self.connect()
        self.client.owe(b"a")
        connection.send(b"STORED\r\n")
        assert connection.is_aborted()
        self.get()
        assert self.server.accept().received() == b"delete a\r\n" + gets([b"k"])

    def test_value(self) -> None:
        """A value in place of the reply, be it without END, spoils the connection, too; whoever waits is answered."""
        for end in (b"", b"garbage\r\n", b"END\r\n"):
            self.setUp()
            connection = self.connect()
            self.client.owe(b"a")
            done = self.get()
            connection.send(value(b"k", b"v", end))
            connection.lose()
            connection = self.server.accept()
            assert connection.received() == b"delete a\r\n" + gets([b"k"])
            connection.send(b"DELETED\r\nEND\r\n")
            assert self.successResultOf(done) is None

    def test_closed(self) -> None:
        """A client that is closed tries nothing again."""
        connection = self.connect()
        self.client.owe(b"a")
        connection.send(b"ERROR\r\n")
        self.client.close()
        assert self.timers() == []
        self.client.owe(b"b")
        assert self.server.attempts == []

    def test_too_many(self) -> None:
        """Above a bound the server is emptied when it is back, which is logged."""
        self.client._owed = owed.OwedDeletes("inet:mc:11211", self.clock, self.client._send_owed, limit=2)
        connection = self.connect()
        connection.lose()
        with capturedLogs() as logs:
            for key in (b"a", b"b", b"b", b"c", b"d"):
                self.client.owe(key)
        assert texts(logs) == [
            "memcached inet:mc:11211 has missed more than 2 changes: it will be emptied when it is back"
        ]
        self.get()
        connection = self.server.accept()
        assert connection.received() == b"flush_all\r\n" + gets([b"k"])
        connection.send_slowly(b"OK\r\n")
        connection.send(b"END\r\n")
        self.assertNothingOwed()

    def test_not_emptied(self) -> None:
        """Where that is refused three times, as by a proxy, the keys that are known are deleted."""
        self.client._owed = owed.OwedDeletes("inet:mc:11211", self.clock, self.client._send_owed, limit=2)
        connection = self.connect()
        connection.lose()
        for key in (b"a", b"b", b"c"):
            self.client.owe(key)
        done = self.get()
        connection = self.server.accept()
        with capturedLogs() as logs:
            for _ in range(3):
                self.flush()
                assert connection.received().startswith(b"flush_all\r\n")
                connection.send(b"ERROR\r\n")
                if not done.called:
                    connection.send(b"END\r\n")
                self.clock.advance(REFUSED_PAUSE)
        assert connection.received() == b"delete a\r\ndelete b\r\n"
        assert any(
            "could not be emptied (memcached inet:mc:11211: unexpected reply b'ERROR')" in t for t in texts(logs)
        )


class TestWhatIsOwed(OwedTests):
    def test_change_of_a_server_that_is_down(self) -> None:
        """An update or delete that a server missed is made good by a delete, if there is another store."""
        self.go_down()
        self.ignore(self.client.set(b"a", b"1", 0, 0, BACKED))
        self.ignore(self.client.delete(b"b", BACKED))
        self.ignore(self.client.set(b"refill", b"1", 0, 0, REFILL))
        self.ignore(self.client.set(b"alone", b"1", 0, 0, ONE_TRY))
        assert self.back().received() == b"delete a\r\ndelete b\r\n"

    def test_uncertain(self) -> None:
        """So is a refill that the server may yet make: it was sent, and not answered."""
        connection = self.connect()
        refilled = self.client.set(b"a", b"1", 0, 0, REFILL)
        self.clock.advance(2)
        self.failureResultOf(refilled)
        assert connection.is_aborted()
        assert self.server.accept_probe().received() == b"delete a\r\n"

    def test_waiting(self) -> None:
        """So is an update that timed out before there was a connection."""
        updated = self.client.set(b"a", b"1", 0, 0, BACKED)
        self.clock.advance(2)
        self.failureResultOf(updated)
        assert self.server.accept().received() == b"delete a\r\n"

    def test_made(self) -> None:
        """What the server made is not owed, though another try of it had failed."""
        connection = self.connect()
        updated = self.client.set(b"a", b"1", 0, 0, Limits(backed=True))
        connection.received()
        connection.send(b"SERVER_ERROR\r\n")
        self.clock.advance(1)
        connection = self.server.accept()
        assert connection.received() == b"set a 0 0 1\r\n1\r\n"
        connection.send(b"STORED\r\n")
        assert self.successResultOf(updated) is True
        self.assertNothingOwed()


class TestSuspect(OwedTests):
    def test_backed(self) -> None:
        """While a server is suspect nothing new waits for it where there is another store."""
        self.connect()
        self.get(b"slow", Limits(max_try=1)).addErrback(lambda _: None)
        usable = [self.client.usable]
        self.clock.advance(2)
        usable.append(self.client.usable)
        self.assertFailed(self.get(b"new", BACKED), "did not answer another command in time")
        waiting = self.get(b"waiting")
        connection = self.server.accept_probe()
        usable.append(self.client.usable)
        assert usable == [True, False, True]
        assert connection.received() == gets([b"waiting"])
        connection.send(value(b"waiting", b"1"))
        assert self.successResultOf(waiting) == b"1"

    def test_probe_refused(self) -> None:
        """An error is an answer to a probe, too: a proxy is up though one of its servers is not."""
        self.go_down()
        self.clock.advance(0.1)
        connection = self.server.accept()
        assert connection.received() == PROBE
        connection.send(b"SERVER_ERROR Connection refused\r\n")
        assert self.client.usable

    def test_probe_closed(self) -> None:
        """A client that closes lets go of the connection on which a probe is under way."""
        self.go_down()
        self.clock.advance(0.1)
        connection = self.server.accept()
        self.client.close()
        assert connection.is_closed()
        connection.send(b"END\r\n")
        connection.lose()
        assert self.timers() == []

    def test_up_since(self) -> None:
        """A server counts as up since it was found to be up again; since ever, if it was never lost."""
        connection = self.connect()
        assert self.client.up_since == float("-inf")
        self.clock.advance(10)
        connection.lose()
        self.get()
        self.server.accept()
        assert self.client.up_since == 10
        assert self.client.usable

    def test_one_probe(self) -> None:
        """However many commands wait for a suspect server, there is one probe."""
        self.connect()
        slow = [self.get(b"%d" % number, Limits(max_try=1)) for number in range(3)]
        self.clock.advance(1)
        others = [self.get(b"other %d" % number) for number in range(3)]
        self.clock.advance(1)
        for done in slow:
            self.failureResultOf(done)
        assert len(self.server.attempts) == 1
        self.server.accept_probe()
        for done in others:
            self.assertNoResult(done)
