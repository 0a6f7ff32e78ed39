"""What the tests of the client have in common: a client, its server, and a clock."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from socketmap_memcache.errors import TableError, TemporaryError
from socketmap_memcache.memcache.client import MemcacheClient
from socketmap_memcache.memcache.interface import Limits
from tests.unit.memcache.scripted import ScriptedConnection, ScriptedServer

LIMITS = Limits()
ONE_TRY = Limits(max_try=1)


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
