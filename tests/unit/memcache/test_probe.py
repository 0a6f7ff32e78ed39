"""What a probe of a server that is down may meet."""

from __future__ import annotations

from socketmap_memcache.errors import TemporaryError
from socketmap_memcache.memcache.interface import Limits
from socketmap_memcache.memcache.link import FIRST_PROBE, LAST_PROBE
from socketmap_memcache.memcache.probe import PROBE_KEY

from .client_tests import ClientTests
from .scripted import PROBE_REPLY, ScriptedConnection, value

ONCE = Limits(timeout=2, max_try=1)


class TestProbe(ClientTests):
    def end_of(self, connection: ScriptedConnection, way: str) -> None:
        if way == "closed":
            connection.lose()
        elif way == "other line":
            connection.send(b"garbage\r\n")
        else:
            self.clock.advance(ONCE.timeout)

    def test_answered_twice(self) -> None:
        """A server that is out of step, and answers the next look-up as it did the probe, has not said "not found"."""
        done = self.get(limits=ONCE)
        self.server.refuse()
        self.assertFailed(done, "is down")
        self.clock.advance(FIRST_PROBE)
        connection = self.server.accept_probe()
        done = self.get(limits=ONCE)
        connection.send(PROBE_REPLY)
        self.failureResultOf(done, TemporaryError)

    def test_value_without_end(self) -> None:
        """A probe is unanswered as long as END is missing, even if there is a value: more probes follow."""
        for way in ("closed", "other line", "timeout"):
            self.setUp()
            done = self.get(limits=ONCE)
            self.server.refuse()
            self.assertFailed(done, "is down")
            self.clock.advance(FIRST_PROBE)
            connection = self.server.accept()
            connection.send(value(PROBE_KEY, b"v", b""))
            self.end_of(connection, way)
            self.failureResultOf(self.get(limits=ONCE), TemporaryError)
            self.clock.advance(LAST_PROBE)
            self.server.accept_probe()
            done = self.get(limits=ONCE)
            self.server.connections[-1].send(b"END\r\n")
            assert self.successResultOf(done) is None
