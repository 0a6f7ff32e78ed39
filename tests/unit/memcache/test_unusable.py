"""Servers that are there, but cannot be used as they are configured: down, with the reason, instead of tried again."""

from __future__ import annotations

import pytest
from twisted.internet.address import UNIXAddress
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from socketmap_memcache.errors import LookupTimeout, TableError, TemporaryError
from socketmap_memcache.memcache.client import MemcacheClient
from socketmap_memcache.memcache.command import unexpected
from socketmap_memcache.memcache.greeting import GreetingError, GreetingTimeout
from socketmap_memcache.memcache.interface import Limits
from socketmap_memcache.protocols.memcache import MemcacheError, Reply

from .scripted import ScriptedServer

ONCE = Limits(timeout=2, max_try=1, retry_pause=1)


class TestUnusable(SynchronousTestCase):
    def setUp(self) -> None:
        self.start("inet:mc:11211")

    def start(self, name: str) -> None:
        self.clock = Clock()
        self.server = ScriptedServer()
        self.client = MemcacheClient(name, self.server.connect, self.clock)

    def error(self, kind: type[TableError]) -> str:
        """Give the error of a look-up, which comes at once."""
        return str(self.failureResultOf(self.client.get(b"k", ONCE), kind).value)

    def test_greeting(self) -> None:
        """What a greeting has met is the reason why the server is down, and whether it is a timeout counts."""
        for error, kind in (
            (GreetingError("wrong password."), TemporaryError),
            (GreetingTimeout("late"), LookupTimeout),
        ):
            self.setUp()
            answer = self.client.get(b"k", ONCE)
            with capturedLogs() as logs:
                self.server.refuse(error)
            text = f"memcached inet:mc:11211 is down: {error}"
            assert str(self.failureResultOf(answer, kind).value) == text
            (line,) = map(formatEvent, logs)
            assert line.startswith(f"{text.removesuffix('.')}. Look-ups go to the backup")

    def test_wants_login(self) -> None:
        """A server that wants a login goes down with that as the reason, and stays so until it answers."""
        answer = self.client.get(b"k", ONCE)
        self.server.accept().send(b"CLIENT_ERROR unauthenticated\r\n")
        reason = "the server wants a username and a password (username, password_file)."
        assert str(self.failureResultOf(answer, TemporaryError).value) == f"memcached inet:mc:11211: {reason}"
        answer = self.client.get(b"k", ONCE)
        self.server.accept().send(b"CLIENT_ERROR unauthenticated\r\n")
        assert reason in str(self.failureResultOf(answer, TemporaryError).value)
        assert self.error(TemporaryError) == f"memcached inet:mc:11211 is down: {reason}"

    def test_never_answers(self) -> None:
        """A server that closes a connection without any answer may expect TLS, but not on a UNIX socket."""
        for name, hint in (("inet:mc:11211", True), ("unix:/run/mc", False), ("tls:mc:11211", False)):
            self.start(name)
            if name.startswith("unix:"):
                self.server.peer = UNIXAddress("/run/mc")
            answer = self.client.get(b"k", ONCE)
            self.server.accept().lose()
            text = str(self.failureResultOf(answer, TemporaryError).value)
            assert text.startswith(f"memcached {name}: connection lost: ")
            assert text.endswith("It never answered anything: does the server expect tls:?") is hint


@pytest.mark.parametrize("status", [b"CLIENT_ERROR unauthenticated", b"CLIENT_ERROR bad authentication data token"])
def test_unauthenticated(status: bytes) -> None:
    """Where each command would be refused, the connection is of no use: memcached's words for a get, and for a set."""
    assert isinstance(unexpected(Reply(status)), MemcacheError)
