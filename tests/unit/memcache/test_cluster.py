from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from socketmap_memcache.asker import FIRING
from socketmap_memcache.errors import TemporaryError
from socketmap_memcache.memcache import members
from socketmap_memcache.memcache.client import MemcacheClient
from socketmap_memcache.memcache.cluster import Cluster
from socketmap_memcache.memcache.history import History
from socketmap_memcache.memcache.interface import IBatchCache, ILeaseCache, Leased, LeasesUnsupportedError, Limits
from socketmap_memcache.memcache.members import FailureRule, Members
from socketmap_memcache.memcache.memory import MONTH
from socketmap_memcache.memcache.pool import ClientPool

LIMITS = Limits(max_try=2, retry_pause=1)
NOW = 1_790_000_000


class Ring:
    """Every key begins at the server that its first byte names: ``0...``, ``1...``, ``2...``."""

    def index_of(self, key: bytes) -> int:
        return int(key[:1])

    def order(self, key: bytes) -> Sequence[int]:
        return [(int(key[:1]) + offset) % 3 for offset in range(3)]


class Client:
    """A client whose server the test plays.

    :ivar asked: what has been asked of it and is not yet answered: the command, its arguments, and who asked.
    """

    def __init__(self, number: int) -> None:
        self.name = f"inet:mc{number}:11211"
        self.usable = True
        self.up_since = float("-inf")
        self.asked: list[tuple[Any, ...]] = []
        self.owed: list[bytes] = []
        self.limits: list[Limits] = []

    def get_for(self, key: bytes, limits: Limits, asker: Any, token: Any) -> None:
        self._ask(("get", key), limits, asker, token)

    def set_for(self, key: bytes, value: bytes, flags: int, ttl: int, limits: Limits, asker: Any, token: Any) -> None:
        self._ask(("set", key, value, ttl), limits, asker, token)

    def delete(self, key: bytes, limits: Limits) -> Deferred[bool]:
        return self._defer(("delete", key), limits)

    def get_many(self, keys: list[bytes], limits: Limits) -> Deferred[dict[bytes, bytes | None]]:
        return self._defer(("get_many", keys), limits)

    def get_leased(self, key: bytes, limits: Limits, lease_ttl: int, stale_ttl: int) -> Deferred[Leased]:
        return self._defer(("lease", key, lease_ttl, stale_ttl), limits)

    def refill(self, key: bytes, value: bytes, flags: int, ttl: int, cas: bytes, limits: Limits) -> Deferred[bool]:
        return self._defer(("refill", key, value, ttl, cas), limits)

    def give_up(self, key: bytes, cas: bytes, limits: Limits) -> Deferred[bool]:
        return self._defer(("give up", key, cas), limits)

    def owe(self, key: bytes) -> None:
        self.owed.append(key)

    def close(self) -> None:
        self.asked.append(("close", None, None))

    def _defer(self, command: tuple[Any, ...], limits: Limits) -> Deferred[Any]:
        answer: Deferred[Any] = Deferred()
        self._ask(command, limits, FIRING, answer)
        return answer

    def _ask(self, command: tuple[Any, ...], limits: Limits, asker: Any, token: Any) -> None:
        self.limits.append(limits)
        self.asked.append((command, asker, token))

    def answer(self, *command: Any, result: Any) -> None:
        """Check that this is what has been asked, and nothing else, and answer it."""
        ((asked, asker, token),) = self.asked
        assert asked == command
        self.asked.clear()
        if isinstance(result, Exception):
            asker.failed(Failure(result), token)
        else:
            asker.answered(result, token)

    def fail(self, *command: Any) -> None:
        self.answer(*command, result=TemporaryError(f"{self.name} has failed"))


class ClusterTests(SynchronousTestCase):
    rule = FailureRule()

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(NOW)
        self.clients = [Client(number) for number in range(3)]
        self.pool = ClientPool(self.clock)
        self.cluster = self.open()

    def open(self) -> Cluster:
        return Cluster(cast("list[MemcacheClient]", self.clients), Ring(), self.rule, 3600, self.pool)

    def get(self, key: bytes = b"0") -> Deferred[bytes | None]:
        return self.cluster.get(key, LIMITS)

    def set(self, key: bytes = b"0", value: bytes = b"v", ttl: int = 100) -> Deferred[bool]:
        return self.cluster.set(key, value, 0, ttl, LIMITS)

    def delete(self, key: bytes = b"0") -> Deferred[bool]:
        return self.cluster.delete(key, LIMITS)

    def assertFailed(self, done: Deferred[Any], number: int) -> None:
        assert str(self.failureResultOf(done, TemporaryError).value) == f"inet:mc{number}:11211 has failed"

    def assertIdle(self) -> None:
        """Check that nothing is asked of anybody."""
        assert [client.asked for client in self.clients] == [[], [], []]

    @property
    def owed(self) -> list[list[bytes]]:
        return [client.owed for client in self.clients]


class TestPlain(ClusterTests):
    """One copy, no stand-ins: the default."""

    def test_interface(self) -> None:
        """A cluster is a cache with all that a client has, and is named after its servers."""
        verifyObject(IBatchCache, self.cluster)
        verifyObject(ILeaseCache, self.cluster)
        assert self.cluster.name == "inet:mc0:11211, inet:mc1:11211, inet:mc2:11211"

    def test_server_of_the_key(self) -> None:
        """A key's server gets all that concerns it, with the limits as they are, and gives the answer."""
        got, stored, deleted = self.get(b"1"), self.set(b"2"), self.delete(b"0")
        self.clients[1].answer("get", b"1", result=None)
        self.clients[2].answer("set", b"2", b"v", 100, result=True)
        self.clients[0].answer("delete", b"0", result=False)
        assert self.successResultOf(got) is None
        assert self.successResultOf(stored) is True
        assert self.successResultOf(deleted) is False
        assert all(client.limits == [LIMITS] for client in self.clients)

    def test_failure(self) -> None:
        """Its failure is the cluster's: nobody else is asked, though it be down."""
        self.clients[1].usable = False
        got, stored, deleted = self.get(b"1a"), self.set(b"1b"), self.delete(b"1c")
        failure = TemporaryError("inet:mc1:11211 has failed")
        for _, asker, token in self.clients[1].asked:
            asker.failed(Failure(failure), token)
        for done in (got, stored, deleted):
            self.assertFailed(done, 1)
        assert self.owed == [[], [], []]

    def test_get_many(self) -> None:
        """Many keys are asked for in one command a server; those of a server that failed are to be asked for again."""
        done = self.cluster.get_many([b"0a", b"1a", b"0b", b"1b", b"2a"], LIMITS)
        self.clients[0].answer("get_many", [b"0a", b"0b"], result={b"0a": b"1"})
        self.clients[2].answer("get_many", [b"2a"], result={b"2a": None})
        self.assertNoResult(done)
        self.clients[1].fail("get_many", [b"1a", b"1b"])
        assert self.successResultOf(done) == {b"0a": b"1", b"1a": None, b"1b": None, b"2a": None}

    def test_lease(self) -> None:
        """A lease is that of the key's server, and goes back there, whoever is usable by then."""
        done = self.cluster.get_leased(b"1", LIMITS, 3, 30)
        self.clients[1].answer("lease", b"1", 3, 30, result=Leased(None, True, False, b"17"))
        leased = self.successResultOf(done)
        assert (leased.value, leased.won, leased.fresh) == (None, True, False)
        self.clients[1].usable = False
        refilled = self.cluster.refill(b"1", b"v", 0, 100, leased.cas, LIMITS)
        self.clients[1].answer("refill", b"1", b"v", 100, b"17", result=False)
        assert self.successResultOf(refilled) is False
        given_up = self.cluster.give_up(b"1", leased.cas, LIMITS)
        self.clients[1].answer("give up", b"1", b"17", result=True)
        assert self.successResultOf(given_up) is True
        failed = self.cluster.get_leased(b"1", LIMITS, 3, 30)
        self.clients[1].fail("lease", b"1", 3, 30)
        self.assertFailed(failed, 1)

    def test_close(self) -> None:
        """The clients are given back to the pool."""
        self.cluster.close()
        assert [client.asked for client in self.clients] == [[("close", None, None)]] * 3


class TestReplicas(ClusterTests):
    """Two copies of each key."""

    rule = FailureRule(replicas=2)

    def test_reload(self) -> None:
        """What is known of the servers is known to the clusters of a reloaded configuration as well."""
        self.set(ttl=5000)
        self.clients[1].fail("set", b"0", b"v", 5000)
        self.clients[0].usable = False
        for seconds, failed in ((5000, True), (1, False)):
            self.clock.advance(seconds)
            reloaded = self.open()
            self.cluster.close()
            self.cluster = reloaded
            for client in self.clients:
                client.asked.clear()
            self.get()
            self.clients[1].answer("get", b"0", result=None)
            assert bool(self.clients[0].asked) is failed

    def test_first_has_it(self) -> None:
        """The first server that has a key gives the answer; limits are made once, so that gets can be shared."""
        done, again = self.get(b"0a"), self.get(b"1a")
        self.clients[0].answer("get", b"0a", result=b"v")
        self.clients[1].answer("get", b"1a", result=b"w")
        assert (self.successResultOf(done), self.successResultOf(again)) == (b"v", b"w")
        assert self.clients[0].limits[0] is self.clients[1].limits[0]
        assert self.clients[0].limits[0].max_try == 1

    def test_many_limits(self) -> None:
        """However many limits it is asked with, each get has its own."""
        many = [Limits(timeout=timeout) for timeout in range(1, 150)]
        for limits in many:
            self.cluster.get(b"0", limits)
        assert [limits.timeout for limits in self.clients[0].limits] == list(range(1, 150))

    def test_second_has_it(self) -> None:
        """A server that misses a key, fails, or is down, is followed by the next."""
        missed = self.get()
        self.clients[0].answer("get", b"0", result=None)
        self.clients[1].answer("get", b"0", result=b"v")
        assert self.successResultOf(missed) == b"v"
        failed = self.get()
        self.clients[0].fail("get", b"0")
        self.clients[1].answer("get", b"0", result=b"v")
        assert self.successResultOf(failed) == b"v"
        self.clients[0].usable = False
        down = self.get()
        self.clients[1].answer("get", b"0", result=b"v")
        assert self.successResultOf(down) == b"v"
        self.assertIdle()

    def test_empty(self) -> None:
        """An empty value, which may be the mark of a lease, is the answer where no other server has more to say."""
        for answer, found in ((b"v", b"v"), (None, b"")):
            done = self.get()
            self.clients[0].answer("get", b"0", result=b"")
            self.clients[1].answer("get", b"0", result=answer)
            assert self.successResultOf(done) == found
        self.clients[1].up_since = NOW
        done = self.get()
        self.clients[0].fail("get", b"0")
        self.clients[1].answer("get", b"0", result=b"")
        assert self.successResultOf(done) == b""

    def test_missing(self) -> None:
        """A key that all of its servers miss is missing, and no other server is asked."""
        done = self.get()
        self.clients[0].answer("get", b"0", result=None)
        self.clients[1].answer("get", b"0", result=None)
        assert self.successResultOf(done) is None
        self.assertIdle()

    def test_missing_at_one(self) -> None:
        """With the other one down, a miss is one at a server that was always up."""
        self.clients[0].usable = False
        done = self.get()
        self.clients[1].answer("get", b"0", result=None)
        assert self.successResultOf(done) is None
        self.assertIdle()

    def test_not_known(self) -> None:
        """With the other one down, a miss at a server that was down, too, is a failure: the other may have the key."""
        self.clients[0].usable = False
        self.clients[1].up_since = NOW
        done = self.get()
        self.clients[1].answer("get", b"0", result=None)
        self.clients[0].fail("get", b"0")
        assert self.clients[0].limits == [LIMITS]
        self.assertFailed(done, 0)
        self.assertIdle()

    def test_insisting(self) -> None:
        """Before that the one that failed is asked again, with all tries: it may answer after all."""
        self.clients[1].up_since = NOW
        for answer in (b"v", None):
            done = self.get()
            self.clients[0].fail("get", b"0")
            self.clients[1].answer("get", b"0", result=None)
            self.clients[0].answer("get", b"0", result=answer)
            assert self.successResultOf(done) == answer

    def test_all_fail(self) -> None:
        """A look-up for which all servers fail has failed."""
        done = self.get()
        for number in (0, 1, 0, 1):
            self.clients[number].fail("get", b"0")
        self.assertFailed(done, 1)

    def test_whole_again(self) -> None:
        """A server that has been back for longer than any entry lives has missed nothing that counts."""
        self.clients[0].usable = False
        self.clients[1].up_since = NOW
        self.clock.advance(3601)
        done = self.get()
        self.clients[1].answer("get", b"0", result=None)
        assert self.successResultOf(done) is None
        self.set(ttl=4000)
        self.clients[1].asked.clear()
        self.get()
        self.clients[1].answer("get", b"0", result=None)
        assert self.clients[0].asked

    def test_set(self) -> None:
        """A value goes to both, and is stored when both have stored it."""
        done = self.set()
        self.clients[0].answer("set", b"0", b"v", 100, result=True)
        self.assertNoResult(done)
        self.clients[1].answer("set", b"0", b"v", 100, result=True)
        assert self.successResultOf(done) is True
        assert self.owed == [[], [], []]
        self.assertIdle()

    def test_set_missed(self) -> None:
        """The server that failed is owed a delete, be it before or after the other one stored the value."""
        done = self.set()
        self.clients[0].fail("set", b"0", b"v", 100)
        self.assertNoResult(done)
        assert self.owed == [[], [], []]
        self.clients[1].answer("set", b"0", b"v", 100, result=True)
        assert self.successResultOf(done) is True
        assert self.owed == [[b"0"], [], []]
        done = self.set(b"1")
        self.clients[1].answer("set", b"1", b"v", 100, result=True)
        self.clients[2].fail("set", b"1", b"v", 100)
        assert self.successResultOf(done) is True
        assert self.owed == [[b"0"], [], [b"1"]]

    def test_missed_counts(self) -> None:
        """A miss at a server that missed a change does not count alone, though it was always up."""
        self.set(ttl=0)
        self.clients[0].answer("set", b"0", b"v", 0, result=True)
        self.clients[1].fail("set", b"0", b"v", 0)
        self.clients[0].usable = False
        self.clock.advance(MONTH)
        self.get()
        self.clients[1].answer("get", b"0", result=None)
        assert self.clients[0].asked

    def test_set_failed(self) -> None:
        """A value that no server stored is not stored, and what they have is left alone."""
        done = self.set()
        self.clients[0].fail("set", b"0", b"v", 100)
        self.clients[1].fail("set", b"0", b"v", 100)
        self.assertFailed(done, 0)
        assert self.owed == [[], [], []]

    def test_delete(self) -> None:
        """A key was there if one of the servers had it."""
        for answers in ((True, False), (False, True), (False, False)):
            done = self.delete()
            for number, answer in enumerate(answers):
                self.clients[number].answer("delete", b"0", result=answer)
            assert self.successResultOf(done) is any(answers)

    def test_delete_missed(self) -> None:
        """A server that missed a delete is owed it."""
        done = self.delete()
        self.clients[0].answer("delete", b"0", result=False)
        self.clients[1].fail("delete", b"0")
        assert self.successResultOf(done) is False
        assert self.owed == [[], [b"0"], []]

    def test_get_many(self) -> None:
        """Keys that their first server misses are to be asked for on their own."""
        done = self.cluster.get_many([b"0a", b"0b", b"0c"], LIMITS)
        self.clients[0].answer("get_many", [b"0a", b"0b", b"0c"], result={b"0a": b"1", b"0c": b""})
        assert self.successResultOf(done) == {b"0a": b"1", b"0b": None, b"0c": None}

    def test_lease(self) -> None:
        """A lease is that of the first usable server; where that one fails, of the next."""
        done = self.cluster.get_leased(b"0", LIMITS, 3, 30)
        self.clients[0].fail("lease", b"0", 3, 30)
        self.clients[1].answer("lease", b"0", 3, 30, result=Leased(b"v", False, True, b"5"))
        assert self.successResultOf(done).value == b"v"
        self.clients[0].usable = self.clients[1].usable = False
        done = self.cluster.get_leased(b"0", LIMITS, 3, 30)
        self.clients[0].fail("lease", b"0", 3, 30)
        self.assertFailed(done, 0)

    def test_no_leases(self) -> None:
        """That a server has no leases is told at once."""
        done = self.cluster.get_leased(b"0", LIMITS, 3, 30)
        self.clients[0].answer("lease", b"0", 3, 30, result=LeasesUnsupportedError("old"))
        self.failureResultOf(done, LeasesUnsupportedError)
        self.assertIdle()


class TestStandIns(ClusterTests):
    """The next server of the ring takes the place of one that fails."""

    rule = FailureRule(stand_in=True, failover_ttl=60)

    def test_up(self) -> None:
        """While a key's server is up nobody else is asked."""
        for answer in (b"v", None):
            done = self.get()
            self.clients[0].answer("get", b"0", result=answer)
            assert self.successResultOf(done) == answer
        stored = self.set(ttl=0)
        self.clients[0].answer("set", b"0", b"v", 0, result=True)
        assert self.successResultOf(stored) is True
        self.assertIdle()

    def test_stored_at_the_next(self) -> None:
        """What the server fails to store goes to the next usable one, for failover_ttl; the server owes the delete."""
        self.clients[1].usable = False
        done = self.set(ttl=3600)
        self.clients[0].fail("set", b"0", b"v", 3600)
        self.assertNoResult(done)
        self.clients[2].answer("set", b"0", b"v", 60, result=True)
        assert self.successResultOf(done) is True
        assert self.owed == [[b"0"], [], []]

    def test_found_at_the_next(self) -> None:
        """What the next usable server has is found, whether the key's own fails or is down."""
        self.clients[1].usable = False
        done = self.get()
        self.clients[0].fail("get", b"0")
        self.clients[2].answer("get", b"0", result=b"v")
        assert self.successResultOf(done) == b"v"
        self.clients[0].usable = False
        done = self.get()
        self.clients[2].answer("get", b"0", result=b"v")
        assert self.successResultOf(done) == b"v"

    def test_found_after_the_return(self) -> None:
        """For ``failover_ttl`` after a server's return, what it misses may still be at the one that stood in for it."""
        self.set()
        self.clients[0].fail("set", b"0", b"v", 100)
        self.clients[1].answer("set", b"0", b"v", 60, result=True)
        self.clock.advance(20)
        self.clients[0].up_since = self.clock.seconds()
        for seconds, answers in ((0, [b"v"]), (60, [None]), (1, [])):
            self.clock.advance(seconds)
            done = self.get()
            self.clients[0].answer("get", b"0", result=None)
            for answer in answers:
                self.clients[1].answer("get", b"0", result=answer)
            assert self.successResultOf(done) == (answers[0] if answers else None)
        self.assertIdle()

    def test_found_after_the_return_of_one_of_many(self) -> None:
        """What a server misses just after its return is to be asked for on its own."""
        for up_since, found in ((NOW, {b"0": None}), (float("-inf"), {})):
            self.clients[0].up_since = up_since
            done = self.cluster.get_many([b"0"], LIMITS)
            self.clients[0].answer("get_many", [b"0"], result={})
            assert self.successResultOf(done) == found

    def test_backed(self) -> None:
        """With a backup what a server misses is for the backup to say."""
        self.clients[0].up_since = NOW
        limits = Limits(backed=True)
        done = self.cluster.get(b"0", limits)
        self.clients[0].answer("get", b"0", result=None)
        assert self.successResultOf(done) is None
        many = self.cluster.get_many([b"0"], limits)
        self.clients[0].answer("get_many", [b"0"], result={})
        assert self.successResultOf(many) == {}

    def test_not_missing(self) -> None:
        """What the next server does not have is not missing: only the key's own could say so."""
        self.clients[0].usable = False
        done = self.get()
        self.clients[1].answer("get", b"0", result=None)
        self.clients[0].fail("get", b"0")
        self.assertFailed(done, 0)
        self.assertIdle()

    def test_later_change(self) -> None:
        """A later change is made at the stand-in, too: it must not serve what it has when the server fails again."""
        self.set()
        self.clients[0].fail("set", b"0", b"v", 100)
        self.clients[1].answer("set", b"0", b"v", 60, result=True)
        self.set(value=b"w")
        self.clients[1].fail("delete", b"0")
        self.clients[0].answer("set", b"0", b"w", 100, result=True)
        assert self.owed == [[b"0"], [b"0"], []]
        self.delete()
        self.clients[0].answer("delete", b"0", result=True)
        self.assertIdle()

    def test_all_fail(self) -> None:
        """A value that no server stores is not stored."""
        done = self.set()
        for client, ttl in zip(self.clients, (100, 60, 60), strict=True):
            client.fail("set", b"0", b"v", ttl)
        self.assertFailed(done, 0)

    def test_delete(self) -> None:
        """A delete is one at the key's own server; where that fails the next one's copy goes, and it has failed."""
        done = self.delete()
        self.clients[0].answer("delete", b"0", result=True)
        assert self.successResultOf(done) is True
        done = self.delete()
        self.clients[0].fail("delete", b"0")
        self.clients[1].answer("delete", b"0", result=True)
        self.assertFailed(done, 0)

    def test_refill(self) -> None:
        """A refill of a stand-in lives no longer than failover_ttl."""
        self.clients[0].usable = False
        done = self.cluster.get_leased(b"0", LIMITS, 3, 0)
        self.clients[1].answer("lease", b"0", 3, 0, result=Leased(None, True, False, b"5"))
        self.cluster.refill(b"0", b"v", 0, 3600, self.successResultOf(done).cas, LIMITS)
        self.clients[1].answer("refill", b"0", b"v", 60, b"5", result=True)
        self.set()
        self.clients[1].answer("delete", b"0", result=True)


class TestMembers(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(NOW)
        clients: Any = [SimpleNamespace(up_since=float("-inf"))]
        rule = FailureRule(stand_in=True, failover_ttl=60)
        self.members = Members(clients, Ring(), rule, NOW + MONTH, History(), self.clock.seconds, self.clock.seconds)

    def test_stand_in_ttl(self) -> None:
        """Whatever ttl memcached would be given, at a stand-in it is at most failover_ttl."""
        ttls = [-1, 0, 1, 60, 61, MONTH, MONTH + 1, NOW + 30, NOW + 60, NOW + 61]
        expected = [-1, 60, 1, 60, 60, 60, MONTH + 1, NOW + 30, NOW + 60, 60]
        assert [self.members.stand_in_ttl(ttl) for ttl in ttls] == expected

    def test_absolute_ttl(self) -> None:
        """A ttl that is a UNIX time counts from now."""
        self.members.note_missed(0)
        self.clock.advance(MONTH)
        assert not self.members.is_whole(0)
        self.clock.advance(1)
        assert self.members.is_whole(0)

    def test_stand_ins(self) -> None:
        """A stand-in is remembered until a change, for failover_ttl, and within a bound."""
        self.members.note_stand_in(b"0a", 1)
        self.members.note_stand_in(b"0a", 2)
        assert sorted(self.members.take_stand_ins(b"0a")) == [1, 2]
        assert list(self.members.take_stand_ins(b"0a")) == []
        self.members.note_stand_in(b"0a", 1)
        self.clock.advance(61)
        self.members.note_stand_in(b"0b", 1)
        assert list(self.members.take_stand_ins(b"0a")) == []
        self.patch(members, "STAND_INS_LIMIT", 2)
        self.members.note_stand_in(b"0c", 1)
        self.members.note_stand_in(b"0d", 1)
        assert [list(self.members.take_stand_ins(key)) for key in (b"0b", b"0c", b"0d")] == [[], [1], [1]]
