from __future__ import annotations

from twisted.internet.defer import Deferred
from zope.interface.verify import verifyObject

from socketmap_memcache.errors import PermanentError, TemporaryError
from socketmap_memcache.memcache.interface import ILeaseCache
from socketmap_memcache.tables.cache_entries import MISSING
from tests.unit.tables.lease_fakes import host

from .lease_tests import Hosts


class TestLeases(Hosts):
    def test_interface(self) -> None:
        """The cache of these tests is one with leases."""
        verifyObject(ILeaseCache, self.cache)

    def test_cold(self) -> None:
        """Of all who miss a key on all hosts one asks the backup, and the others get the value when it has come."""
        asked = self.ask(self.one, self.two, self.one, self.two)
        self.wait(0.5)
        assert self.answers(asked) == [b"kept"] * 4
        assert self.backup.asked == 1
        assert self.cache.value(b"k") == b"kept"
        assert self.cache.entries[b"k"].end > self.clock.seconds() + 59

    def test_cached(self) -> None:
        """What is cached is the answer, with one plain command."""
        self.cache.put(b"k", b"cached", 60)
        assert self.answers(self.ask(self.one)) == [b"cached"]
        assert self.cache.trace == ["get b'k'"]

    def test_cached_empty(self) -> None:
        """An empty value is no mark; it is an answer."""
        self.cache.put(b"k", b"", 60)
        self.cache.entries[b"k"].value = b""
        assert self.answers(self.ask(self.one)) == [b""]
        assert self.backup.asked == 0

    def test_pauses(self) -> None:
        """Those who wait look for the value again after pauses that become longer."""
        self.ask(self.one, self.two)
        assert self.commands() == ["get", "mg", "get", "mg"]
        self.wait(0.29)
        assert self.commands() == ["mg"] * 5  # after 0.01, 0.03, 0.07, 0.15, 0.23 seconds
        self.wait(0.3)
        assert self.commands() == ["ms", "mg"]

    def test_missing(self) -> None:
        """What the backup does not have is missing; the lease is given up, and those who waited ask it themselves."""
        self.backup.known = None
        asked = self.ask(self.one, self.two)
        self.wait(0.35)
        assert self.answers(asked[:1]) == [None]
        self.wait(0.5)
        assert self.answers(asked) == [None, None]
        assert self.backup.asked == 2
        assert self.cache.value(b"k") is None

    def test_missing_on_many_hosts(self) -> None:
        """They do not wait for each other in turn."""
        self.backup.known = None
        asked = self.ask(*[self.open() for _ in range(10)])
        self.wait(0.8)
        assert self.answers(asked) == [None] * 10

    def test_backup_fails(self) -> None:
        """A failure of the backup is the answer; those who waited ask themselves."""
        self.backup.known = PermanentError("broken")
        one, two = self.ask(self.one, self.two)
        self.wait(0.31)
        self.failureResultOf(one, PermanentError)
        self.backup.known = b"repaired"
        self.wait(0.5)
        assert self.successResultOf(two) == b"repaired"
        assert self.cache.value(b"k") == b"repaired"

    def test_winner_dies(self) -> None:
        """When the winner never comes back the others wait as long as may be, and ask the backup then."""
        self.cache.put(b"k", None, 3)
        asked = self.ask(self.one, self.two)
        self.wait(2.9)
        assert self.backup.asked == 0
        self.wait(0.5)
        assert self.answers(asked) == [b"kept", b"kept"]

    def test_mark_outlives_the_wait(self) -> None:
        """A host that has waited long enough asks the backup, but leaves the key to the holder of the lease."""
        self.cache.put(b"k", None, 100)
        asked = self.ask(self.one)
        self.wait(3.4)
        assert self.answers(asked) == [b"kept"]
        assert self.backup.asked == 1
        assert self.cache.value(b"k") == b""

    def test_updated_meanwhile(self) -> None:
        """What another host has updated, while the winner asked the backup, stays in the cache."""
        asked = self.ask(self.one)
        self.wait(0.1)
        self.backup.known = b"new"
        self.two.update(b"k", b"new")
        self.wait(0.3)
        assert self.answers(asked) == [b"kept"]
        assert self.cache.value(b"k") == b"new"

    def test_deleted_meanwhile(self) -> None:
        """What another host has deleted, while the winner asked the backup, stays deleted."""
        asked = self.ask(self.one)
        self.wait(0.1)
        assert self.successResultOf(self.two.delete(b"k")) is True
        self.wait(0.3)
        assert self.answers(asked) == [b"kept"]
        assert self.cache.value(b"k") is None

    def test_found_before_it_is_deleted(self) -> None:
        """A value that was found between a delete in the cache and that in the backup does not stay."""
        deleting: Deferred[bool] = Deferred()
        self.backup.changed = deleting
        deleted = self.two.delete(b"k")
        asked = self.ask(self.one)
        self.wait(0.3)
        assert self.answers(asked) == [b"kept"]
        assert self.cache.value(b"k") == b"kept"
        deleting.callback(True)
        assert self.successResultOf(deleted) is True
        assert self.cache.value(b"k") is None

    def test_delete_with_a_dead_cache(self) -> None:
        """That the cache cannot delete is no matter of the delete."""
        self.cache.error = TemporaryError("down")
        assert self.successResultOf(self.one.delete(b"k")) is True

    def test_changed_meanwhile_here(self) -> None:
        """What was found while this process changed the key is not cached, though the cache missed the change."""
        asked = self.ask(self.one)
        self.wait(0.1)
        self.cache.error = TemporaryError("down")
        self.successResultOf(self.one.update(b"k", b"new"))
        self.cache.error = None
        self.wait(0.3)
        assert self.answers(asked) == [b"kept"]
        assert self.cache.value(b"k") is None

    def test_asked_after_a_change(self) -> None:
        """Who asks after a change is not given what was asked for before."""
        asked = self.ask(self.one)
        self.backup.known = b"new"
        self.successResultOf(self.one.update(b"k", b"new"))
        asked += self.ask(self.one)
        self.wait(0.3)
        assert self.answers(asked) == [b"kept", b"new"]

    def test_value_too_long(self) -> None:
        """A value that cannot be cached is the answer, and the lease is given up."""
        self.backup.known = b"x" * 101
        asked = self.ask(self.one)
        self.wait(0.3)
        assert self.answers(asked) == [b"x" * 101]
        assert self.cache.value(b"k") is None

    def test_key_too_long(self) -> None:
        """For a key that memcached would refuse no lease is asked for."""
        asked = self.ask(self.one, key=b"x" * 251)
        self.wait(0.3)
        assert self.answers(asked) == [b"kept"]
        assert self.commands() == []

    def test_refill_fails(self) -> None:
        """That a lease cannot be used, or given up, is no matter of the look-up."""
        for known in (b"kept", None):
            self.backup.known = known
            asked = self.ask(self.one)
            self.cache.lease_error = TemporaryError("down")
            self.wait(0.3)
            assert self.answers(asked) == [known]
            self.cache.lease_error = None
            self.cache.entries.clear()

    def test_closed(self) -> None:
        """A table that is closed lets go of the cache when those who wait have their answers."""
        asked = self.ask(self.one, self.two)
        self.two.close()
        self.wait(0.2)
        assert "close cache" not in self.cache.trace
        self.wait(0.3)
        assert self.answers(asked) == [b"kept", b"kept"]
        assert self.cache.trace[-1] == "close cache"

    def test_no_backup(self) -> None:
        """Without a backup there are no leases."""
        table = host(self.clock, self.cache, None)
        assert self.answers(self.ask(table)) == [None]
        assert self.commands() == ["get"]


class TestMissing(Hosts):
    stale_ttl = 10
    negative_ttl = 5

    def test_marked(self) -> None:
        """That a key is missing comes to the others from the cache, and stays there for ``negative_ttl``."""
        self.backup.known = None
        asked = self.ask(self.one, self.two)
        self.wait(0.5)
        assert self.answers(asked) == [None, None]
        assert self.backup.asked == 1
        assert self.cache.value(b"k") == MISSING
        assert self.answers(self.ask(self.one, self.two)) == [None, None]
        self.clock.advance(4.5)
        assert self.answers(self.ask(self.one, self.two)) == [None, None]
        assert self.backup.asked == 1
        self.clock.advance(0.5)
        self.backup.known = b"new"
        asked = self.ask(self.one, self.two)
        self.wait(0.5)
        assert self.answers(asked) == [b"new", b"new"]

    def test_same_value(self) -> None:
        """A value that looks like the mark is the answer, and not cached."""
        self.backup.known = MISSING
        asked = self.ask(self.one)
        self.wait(0.5)
        assert self.answers(asked) == [MISSING]
        assert self.cache.value(b"k") is None

    def test_updated(self) -> None:
        """An update takes the place of the mark, or takes it away where the value is too long for the cache."""
        self.backup.known = None
        self.ask(self.one)
        self.wait(0.5)
        self.successResultOf(self.two.update(b"k", b"long" * 100))
        assert self.cache.value(b"k") is None
        self.ask(self.one)
        self.wait(0.5)
        self.successResultOf(self.two.update(b"k", b"new"))
        assert self.answers(self.ask(self.one)) == [b"new"]
