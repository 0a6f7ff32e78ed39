from __future__ import annotations

from twisted.logger import capturedLogs, formatEvent

from socketmap_memcache.errors import TemporaryError
from socketmap_memcache.memcache.interface import LeasesUnsupportedError
from socketmap_memcache.tables.lease_support import FIRST_REST, LAST_REST

from .lease_tests import Hosts


class TestTrouble(Hosts):
    def fails(self, error: Exception) -> list[str]:
        self.cache.lease_error = error
        asked = self.ask(self.one)
        self.wait(0.3)
        assert self.answers(asked) == [b"kept"]
        self.cache.entries.clear()
        return self.commands()

    def test_cache_fails(self) -> None:
        """When the cache fails the backup is asked at once."""
        self.cache.error = TemporaryError("down")
        asked = self.ask(self.one)
        self.wait(0.3)
        assert self.answers(asked) == [b"kept"]
        assert self.commands() == ["get", "set"]

    def test_unforeseen(self) -> None:
        """What is no failure of a cache does not pass for one."""
        self.cache.lease_error = ZeroDivisionError()
        self.failureResultOf(self.one.lookup(b"k"), ZeroDivisionError)

    def test_old_server(self) -> None:
        """With a server that has no leases look-ups go on without; that is logged once."""
        with capturedLogs() as logs:
            assert self.fails(LeasesUnsupportedError("no mg")) == ["get", "mg", "set"]
            assert self.fails(LeasesUnsupportedError("no mg")) == ["get", "set"]
            self.clock.advance(FIRST_REST)
            assert self.fails(LeasesUnsupportedError("no mg")) == ["get", "mg", "set"]
        (line,) = [formatEvent(event) for event in logs]
        assert line.startswith("memcache:/x.cf: look-ups go on without leases")
        assert line.endswith(": no mg")

    def test_rests(self) -> None:
        """Leases are tried again, each time after twice as long, within bounds."""
        rest = FIRST_REST
        while rest < LAST_REST * 4:
            assert self.fails(TemporaryError("connection lost")) == ["get", "mg", "set"]
            self.clock.advance(min(rest, LAST_REST) - 0.7)
            assert self.fails(TemporaryError("connection lost")) == ["get", "set"]
            self.clock.advance(0.5)
            rest *= 2

    def test_proven(self) -> None:
        """A server that has had leases is asked for them after a failure of another kind, too."""
        self.ask(self.one)
        self.wait(0.3)
        self.commands()
        self.cache.entries.clear()
        for _ in range(3):
            assert self.fails(TemporaryError("timeout")) == ["get", "mg", "set"]
        assert self.fails(LeasesUnsupportedError("older now")) == ["get", "mg", "set"]
        assert self.fails(LeasesUnsupportedError("older now")) == ["get", "set"]
