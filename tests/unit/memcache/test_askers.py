"""Askers that raise errors, which they must not: no other one may have to wait for ever."""

from __future__ import annotations

from typing import Any

from socketmap_memcache.memcache.interface import Limits

from .client_tests import ClientTests

ONCE = Limits(timeout=2, max_try=1)


class Broken:
    """Raises an error whatever it hears."""

    def answered(self, value: object, token: object) -> None:
        raise ValueError("oops")

    failed = answered


class TestBrokenAskers(ClientTests):
    def ask(self, key: bytes = b"k") -> list[Any]:
        """Ask with two broken askers, and with one before and one behind them."""
        first, last = self.get(key, ONCE), None
        for _ in range(2):
            self.client.get_for(key, ONCE, Broken(), None)
        last = self.get(key, ONCE)
        return [first, last]

    def test_refused(self) -> None:
        """Where there is no connection all others hear of it, of whatever command."""
        waiting = [*self.ask(b"a"), *self.ask(b"b"), self.client.set(b"c", b"v", 0, 0, ONCE)]
        self.client.set_for(b"d", b"v", 0, 0, ONCE, Broken(), None)
        waiting.append(self.client.delete(b"e", ONCE))
        self.server.refuse()
        for done in waiting:
            self.assertFailed(done, "is down")
        assert len(self.flushLoggedErrors(ValueError)) == 5

    def test_lost(self) -> None:
        """When a connection is lost those behind are tried again."""
        connection = self.connect()
        self.client.get_for(b"a", ONCE, Broken(), None)
        behind = self.get(b"b", ONCE)
        self.flush()
        connection.send(b"garbage\r\n")
        assert len(self.flushLoggedErrors(ValueError)) == 1
        self.server.accept().send(b"END\r\n")
        assert self.successResultOf(behind) is None

    def test_answered(self) -> None:
        """All who share a command get its answer."""
        connection = self.connect()
        waiting = self.ask()
        connection.send(b"END\r\n")
        assert [self.successResultOf(done) for done in waiting] == [None, None]
        assert len(self.flushLoggedErrors(ValueError)) == 2
        assert not connection.is_aborted()

    def test_answered_without_end(self) -> None:
        """A value whose END is missing harms nobody either."""
        connection = self.connect()
        self.client.get_for(b"k", ONCE, Broken(), None)
        connection.send(b"VALUE k 0 1\r\nv\r\n")
        connection.lose()
        assert len(self.flushLoggedErrors(ValueError)) == 1
        done = self.get(limits=ONCE)
        self.server.accept().send(b"END\r\n")
        assert self.successResultOf(done) is None

    def test_closing(self) -> None:
        """A client that waits for the last answers to close logs such an error, too, and closes."""
        for answer in (b"END\r\n", b"garbage\r\n"):
            self.setUp()
            connection = self.connect()
            self.client.get_for(b"a", ONCE, Broken(), None)
            self.client.close()
            connection.send(answer)
            assert len(self.flushLoggedErrors(ValueError)) == 1
            self.assertFailed(self.get(), "is closed")
