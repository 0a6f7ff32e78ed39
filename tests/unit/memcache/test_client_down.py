from __future__ import annotations

import pytest
from twisted.internet.address import UNIXAddress
from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.error import TimeoutError as ConnectTimeoutError
from twisted.logger import capturedLogs

from socketmap_memcache.errors import LookupTimeout
from socketmap_memcache.memcache.client import PATIENCE, MemcacheClient
from socketmap_memcache.memcache.interface import Limits
from socketmap_memcache.memcache.link import LAST_PROBE
from tests.unit.logs import texts
from tests.unit.memcache.scripted import PROBE, PROBE_REPLY, gets

from .client_tests import ClientTests


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
            connection.send(PROBE_REPLY)
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
