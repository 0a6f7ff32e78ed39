"""One request for all who ask for the same at the same time."""

from __future__ import annotations

from socketmap_memcache.memcache.interface import Limits

from .client_tests import LIMITS, ClientTests

HIT = b"VALUE k 0 1\r\nv\r\nEND\r\n"


class TestSharing(ClientTests):
    def test_shared(self) -> None:
        """Look-ups of a key that are in flight together are one command, and all get its value."""
        connection = self.connect()
        waiting = [self.get() for _ in range(500)]
        self.flush()
        assert connection.received() == b"get k\r\n"
        connection.send(HIT)
        assert [self.successResultOf(done) for done in waiting] == [b"v"] * 500

    def test_once_answered(self) -> None:
        """A look-up that comes after the answer asks anew."""
        connection = self.connect()
        for _ in range(2):
            done = self.get()
            assert connection.received() == b"get k\r\n"
            connection.send(HIT)
            assert self.successResultOf(done) == b"v"

    def test_failure(self) -> None:
        """A failure is shared, too, and the next look-up asks anew."""
        limits = Limits(max_try=1)
        waiting = [self.get(limits=limits), self.get(limits=limits)]
        self.server.refuse()
        for done in waiting:
            self.assertFailed(done, "is down")
        self.clock.advance(0.1)
        connection = self.server.accept_probe()
        done = self.get(limits=limits)
        assert connection.received() == b"get k\r\n"
        connection.send(b"END\r\n")
        assert self.successResultOf(done) is None

    def test_other_limits(self) -> None:
        """Who has other limits has a command of their own."""
        connection = self.connect()
        ours, theirs = self.get(), self.get(limits=Limits(timeout=9))
        self.flush()
        assert connection.received() == b"get k\r\n" * 2
        connection.send(HIT * 2)
        assert self.successResultOf(ours) == self.successResultOf(theirs) == b"v"

    def test_changed_and_failed(self) -> None:
        """A look-up that fails after an update of its key leaves alone what was asked since."""
        connection = self.connect()
        limits = Limits(max_try=1)
        before = self.get(limits=limits)
        self.client.set(b"k", b"v", 0, 0, LIMITS)
        after = self.get(limits=limits)
        self.flush()
        connection.send(b"SERVER_ERROR\r\nSTORED\r\n")
        self.assertFailed(before, "SERVER_ERROR")
        shared = self.get(limits=limits)
        connection.send(HIT)
        assert self.successResultOf(after) == self.successResultOf(shared) == b"v"

    def test_changed(self) -> None:
        """A look-up that comes after an update or a delete does not share what was asked before."""
        connection = self.connect()
        before = self.get()
        stored = self.client.set(b"k", b"v", 0, 0, LIMITS)
        between = self.get()
        deleted = self.client.delete(b"k", LIMITS)
        after = self.get()
        self.flush()
        assert connection.received() == b"get k\r\nset k 0 0 1\r\nv\r\nget k\r\ndelete k\r\nget k\r\n"
        connection.send(b"END\r\nSTORED\r\n" + HIT + b"DELETED\r\nEND\r\n")
        assert [self.successResultOf(done) for done in (before, between, after)] == [None, b"v", None]
        assert self.successResultOf(stored) is True
        assert self.successResultOf(deleted) is True

    def test_owed(self) -> None:
        """A look-up that comes after an owed delete does not share what was asked before that."""
        connection = self.connect()
        before = self.get()
        self.client.owe(b"k")
        after = self.get()
        self.flush()
        assert connection.received() == b"get k\r\ndelete k\r\nget k\r\n"
        connection.send(HIT + b"DELETED\r\nEND\r\n")
        assert [self.successResultOf(done) for done in (before, after)] == [b"v", None]
