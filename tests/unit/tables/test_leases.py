from __future__ import annotations

from collections.abc import Collection

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from socketmap_memcache.errors import PermanentError, TemporaryError
from socketmap_memcache.memcache.interface import IBatchCache, ILeaseCache, LeasesUnsupportedError, Limits
from socketmap_memcache.tables.cache_entries import MISSING
from socketmap_memcache.tables.lease_support import FIRST_REST, LAST_REST
from socketmap_memcache.tables.memcache import MemcacheTable
from tests.unit.tables.lease_fakes import LeaseCache, SlowTable, host


class Hosts(SynchronousTestCase):
    """Two hosts with one cache and one backup that takes 0.3 seconds."""

    stale_ttl = 0
    negative_ttl = 0

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_000_000_000)
        self.cache = LeaseCache(self.clock)
        self.backup = SlowTable(self.clock, b"kept")
        self.one, self.two = self.open(), self.open()

    def open(self, **settings: int) -> MemcacheTable:
        options = {"stale_ttl": self.stale_ttl, "negative_ttl": self.negative_ttl, "lease_timeout": 3}
        return host(self.clock, self.cache, self.backup, **{**options, **settings})

    def wait(self, seconds: float) -> None:
        self.clock.pump([0.01] * (round(seconds * 100) + 1))

    def ask(self, *tables: MemcacheTable, key: bytes = b"k") -> list[Deferred[bytes | None]]:
        return [table.lookup(key) for table in tables]

    def answers(self, asked: list[Deferred[bytes | None]]) -> list[bytes | None]:
        return [self.successResultOf(answer) for answer in asked]

    def commands(self) -> list[str]:
        commands = [line.split(" ")[0] for line in self.cache.trace]
        self.cache.trace.clear()
        return commands


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
        """An update takes the place of the mark."""
        self.backup.known = None
        self.ask(self.one)
        self.wait(0.5)
        self.successResultOf(self.two.update(b"k", b"new"))
        assert self.answers(self.ask(self.one)) == [b"new"]


class TestSeveral(Hosts):
    stale_ttl = 10

    def first(self, table: MemcacheTable, *keys: bytes) -> Deferred[tuple[int, bytes] | None]:
        return table.lookup_first(keys)

    def test_marks(self) -> None:
        """Marks are no values: the backup is asked for such keys."""
        self.cache.put(b"a", None, 3)
        found = self.first(self.one, b"a", b"b")
        self.wait(3.5)
        assert self.successResultOf(found) == (0, b"kept")

    def test_missing(self) -> None:
        """Marks of missing keys are heeded."""
        self.cache.put(b"a", MISSING, 60)
        self.cache.put(b"b", b"B", 60)
        assert self.successResultOf(self.first(self.one, b"a", b"b")) == (1, b"B")
        assert self.successResultOf(self.first(self.one, b"a")) is None
        assert self.backup.asked == 0

    def test_stale(self) -> None:
        """A stale value that counts is served, and a new one fetched; one that does not count is left alone."""
        self.cache.put(b"a", b"A", 5)
        self.cache.put(b"b", b"B", 5)
        assert self.successResultOf(self.first(self.one, b"a", b"b")) == (0, b"A")
        self.wait(0.4)
        assert self.cache.value(b"a") == b"kept"
        assert self.cache.value(b"b") == b"B"

    def test_not_stale(self) -> None:
        """Without ``stale_ttl`` nothing is asked behind a value's back."""
        table = self.open(stale_ttl=0)
        self.cache.put(b"a", b"A", 5)
        assert self.successResultOf(self.first(table, b"a")) == (0, b"A")
        assert self.commands() == ["get"]

    def test_long_key(self) -> None:
        """A key that memcached would refuse is asked for in the backup, without a lease."""
        found = self.first(self.one, b"x" * 251)
        self.wait(0.3)
        assert self.successResultOf(found) == (0, b"kept")
        assert self.commands() == []

    def test_failure(self) -> None:
        """A failure of the cache leads to the backup, without a lease."""
        self.cache.error = TemporaryError("down")
        found = self.first(self.one, b"k")
        self.wait(0.3)
        assert self.successResultOf(found) == (0, b"kept")
        assert "mg" not in self.commands()


@implementer(IBatchCache)
class BatchLeaseCache(LeaseCache):
    """Can be asked for many keys."""

    def get_many(self, keys: Collection[bytes], limits: Limits) -> Deferred[dict[bytes, bytes | None]]:
        found = {key: self.value(key) for key in keys}
        return self._did("gets", {key: value for key, value in found.items() if value is not None})


class TestMany(Hosts):
    def test_all(self) -> None:
        """Of many keys, those that the cache knows are answered from there, and the rest is leased."""
        self.cache = BatchLeaseCache(self.clock)
        self.cache.put(b"a", b"A", 60)
        self.cache.put(b"gone", MISSING, 60)
        self.cache.put(b"leased", None, 1)
        found = self.open().lookup_all([b"a", b"gone", b"leased", b"cold"])
        self.wait(2)
        assert self.successResultOf(found) == [b"A", None, b"kept", b"kept"]
        assert self.backup.asked == 2

    def test_empty(self) -> None:
        """Without leases an empty value is a value."""
        self.cache = BatchLeaseCache(self.clock)
        self.cache.put(b"a", b"", 60)
        table = host(self.clock, self.cache, self.backup, lease=False)
        assert self.successResultOf(table.lookup_all([b"a"])) == [b""]
        assert self.successResultOf(host(self.clock, self.cache, None).lookup_all([b"a", b"b"])) == [b"", None]
