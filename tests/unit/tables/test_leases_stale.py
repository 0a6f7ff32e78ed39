from __future__ import annotations

from typing import cast

from socketmap_memcache.errors import TemporaryError
from socketmap_memcache.memcache.interface import LeasesUnsupportedError
from socketmap_memcache.memcache.local import LocalCache
from socketmap_memcache.memcache.pool import ClientPool
from socketmap_memcache.tables.cache_entries import MISSING

from .lease_fakes import Pool, host
from .lease_tests import Hosts


class TestStale(Hosts):
    stale_ttl = 10

    def lapse(self) -> None:
        """Let the ttl of a value in the cache run out."""
        asked = self.ask(self.one)
        self.wait(0.3)
        assert self.answers(asked) == [b"kept"]
        assert self.cache.trace[-1] == "ms b'k' b'kept' 70"
        self.clock.advance(61)
        self.backup.known = b"new"
        self.backup.asked = 0

    def test_stale(self) -> None:
        """After its ttl a value is served at once, while one process of all asks the backup for a new one."""
        self.lapse()
        assert self.answers(self.ask(self.one, self.two, self.two, self.one)) == [b"kept"] * 4
        self.wait(0.3)
        assert self.backup.asked == 1
        assert self.answers(self.ask(self.one, self.two)) == [b"new", b"new"]
        assert self.backup.asked == 1

    def test_kept_in_the_process(self) -> None:
        """A stale value that a process keeps for a while is renewed as any other is."""
        local = LocalCache(self.cache, 5, 1000, cast(ClientPool, Pool(self.clock)))
        table = host(self.clock, local, self.backup, stale_ttl=self.stale_ttl)
        self.lapse()
        assert self.answers(self.ask(table)) == [b"kept"]
        self.wait(0.3)
        assert self.backup.asked == 1
        assert self.answers(self.ask(table)) == [b"new"]

    def test_over(self) -> None:
        """After ``stale_ttl`` it is not served any more."""
        self.lapse()
        self.clock.advance(10)
        asked = self.ask(self.one, self.two)
        self.wait(0.5)
        assert self.answers(asked) == [b"new", b"new"]
        assert self.backup.asked == 1

    def test_updated(self) -> None:
        """What is updated is cached for as long as what comes from the backup."""
        self.successResultOf(self.one.update(b"k", b"v"))
        self.successResultOf(self.one.update(b"k", b"v", 3600))
        self.successResultOf(self.one.update(b"k", b"v", 30))
        assert self.cache.trace == ["set b'k' b'v' 70", "set b'k' b'v' 70", "set b'k' b'v' 30"]

    def test_backup_fails(self) -> None:
        """When the backup fails the stale value stays until its time is over."""
        self.lapse()
        self.backup.known = TemporaryError("down")
        assert self.answers(self.ask(self.one)) == [b"kept"]
        self.wait(0.4)
        assert self.answers(self.ask(self.one, self.two)) == [b"kept", b"kept"]
        self.clock.advance(10)
        asked = self.one.lookup(b"k")
        self.wait(0.4)
        self.failureResultOf(asked, TemporaryError)

    def test_backup_breaks(self) -> None:
        """An unforeseen error of the backup is logged."""
        self.lapse()
        self.backup.known = ZeroDivisionError()
        assert self.answers(self.ask(self.one)) == [b"kept"]
        self.wait(0.4)
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 1

    def test_gone(self) -> None:
        """A stale value whose key the backup does not have any more is not served again."""
        self.lapse()
        self.backup.known = None
        assert self.answers(self.ask(self.one)) == [b"kept"]
        self.wait(0.3)
        assert self.cache.value(b"k") is None

    def test_changed_meanwhile(self) -> None:
        """What the backup said before a change does not undo it."""
        self.lapse()
        assert self.answers(self.ask(self.one)) == [b"kept"]
        self.wait(0.1)
        self.cache.error = TemporaryError("down")
        self.successResultOf(self.one.update(b"k", b"newer"))
        self.cache.error = None
        self.wait(0.3)
        assert self.cache.value(b"k") is None

    def test_without_leases(self) -> None:
        """With a server that has no leases values of the cache are answers as ever."""
        self.cache.put(b"k", b"cached", 60)
        self.cache.lease_error = LeasesUnsupportedError("no mg")
        assert self.answers(self.ask(self.one, self.one)) == [b"cached"] * 2
        self.clock.advance(2)
        self.answers(self.ask(self.one))
        assert self.commands().count("mg") == 1

    def test_checks(self) -> None:
        """Whether a value is stale is found out once in a while for each key, and not for each look-up."""
        self.cache.put(b"k", b"K", 60)
        self.cache.put(b"l", b"L", 60)
        self.ask(self.one, self.one)
        self.ask(self.one, key=b"l")
        assert self.commands() == ["get", "mg", "get", "get", "mg"]
        self.wait(1)
        self.ask(self.one)
        assert self.commands() == ["get"]
        self.wait(0.5)
        self.ask(self.one, self.one)
        assert self.commands() == ["get", "mg", "get"]

    def test_many_keys(self) -> None:
        """The memory that this takes is bounded."""
        keys = [b"%d" % number for number in range(10_001)]
        for key in [*keys, keys[0]]:
            self.cache.put(key, b"v", 60)
            self.ask(self.one, key=key)
        assert self.commands().count("mg") == 10_002

    def test_missing(self) -> None:
        """A mark of a missing key is never stale."""
        self.cache.put(b"k", MISSING, 5)
        assert self.answers(self.ask(self.one)) == [None]
        assert self.commands() == ["get"]

    def test_closed(self) -> None:
        """A table that is closed lets go of the cache when the new value is there."""
        self.lapse()
        assert self.answers(self.ask(self.one)) == [b"kept"]
        self.one.close()
        assert "close cache" not in self.cache.trace
        self.wait(0.3)
        assert self.cache.trace[-2:] == ["ms b'k' b'new' 70", "close cache"]
