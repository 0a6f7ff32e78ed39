from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from socketmap_memcache.errors import TemporaryError
from socketmap_memcache.memcache.client import MemcacheClient
from socketmap_memcache.memcache.interface import Limits

from .scripted import ScriptedServer, value

ONCE = Limits(max_try=1)
TWICE = Limits(max_try=2, retry_pause=1)


class TestGetMany(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.server = ScriptedServer()
        self.client = MemcacheClient("inet:memcached:11211", self.server.connect, self.clock)
        self.asked = self.client.get_many([b"a", b"b"], ONCE)
        self.connection = self.server.accept()
        assert self.connection.received() == b"get a b\r\n"

    def test_values(self) -> None:
        """Many keys are asked for in one command, and the values of those that exist come back."""
        self.connection.send_slowly(value(b"b", b"2"))
        assert self.successResultOf(self.asked) == {b"b": b"2"}

    def test_refused(self) -> None:
        """A server that refuses the command has failed it; the connection goes on."""
        self.connection.send(b"SERVER_ERROR busy\r\n")
        assert "SERVER_ERROR busy" in str(self.failureResultOf(self.asked, TemporaryError).value)
        assert not self.connection.is_aborted()

    def test_other_key(self) -> None:
        """A value that nobody asked for spoils the connection."""
        self.connection.send(value(b"c", b"3"))
        self.failureResultOf(self.asked, TemporaryError)
        assert self.connection.is_aborted()

    def test_other_keys_without_end(self) -> None:
        """A server that goes on and on with values that nobody asked for is cut off before they fill the memory."""
        for number in range(3):
            self.assertNoResult(self.asked)
            self.connection.send(value(b"x%d" % number, b"3", b""))
        failure = self.failureResultOf(self.asked, TemporaryError)
        assert "a value for another key" in str(failure.value)
        assert self.connection.is_aborted()

    def test_second_try(self) -> None:
        """What came with a try that has failed does not count in the next one."""
        asked = self.client.get_many([b"c", b"d"], TWICE)
        self.clock.advance(0)
        self.connection.send(b"END\r\n" + value(b"x", b"1"))
        assert self.connection.is_aborted()
        self.clock.advance(1)
        again = self.server.accept()
        assert again.received() == b"get c d\r\n"
        again.send(value(b"d", b"4"))
        assert self.successResultOf(asked) == {b"d": b"4"}
