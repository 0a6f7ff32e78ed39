from __future__ import annotations

from socketmap_memcache.memcache.interface import Leased, Limits
from socketmap_memcache.memcache.members import FailureRule

from .cluster_tests import LIMITS, NOW, ClusterTests


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
        self.assertFollowedBy(2)

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

    def test_found_after_several_returns(self) -> None:
        """If the next server, too, has come back not long ago, the one after it may have stood in for both."""
        for index in range(3):
            self.clients[index].up_since = NOW
        for answer in (b"v", None):
            done = self.get()
            self.clients[0].answer("get", b"0", result=None)
            self.clients[1].answer("get", b"0", result=None)
            self.clients[2].answer("get", b"0", result=answer)
            assert self.successResultOf(done) == answer
        self.assertIdle()

    def test_stand_in_away(self) -> None:
        """While the server that stands in for another is away itself, what it has is not missing."""
        self.set()
        self.clients[0].fail("set", b"0", b"v", 100)
        self.clients[1].answer("set", b"0", b"v", 60, result=True)
        for usable in (True, False):
            self.clients[1].usable = usable
            done = self.get()
            self.clients[0].answer("get", b"0", result=None)
            if usable:
                self.clients[1].fail("get", b"0")
            self.clients[2].answer("get", b"0", result=None)
            self.clients[1].fail("get", b"0")
            assert self.clients[1].limits[-1] == LIMITS
            self.assertFailed(done, 1)
        self.clock.advance(60)
        done = self.get()
        self.clients[0].answer("get", b"0", result=None)
        self.clients[2].answer("get", b"0", result=None)
        assert self.successResultOf(done) is None
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
        # Nobody insists, and what the stand-in misses may be leased there.
        done = self.cluster.get(b"0", limits)
        self.clients[0].fail("get", b"0")
        self.clients[1].answer("get", b"0", result=None)
        assert self.successResultOf(done) is None
        done = self.cluster.get(b"0", limits)
        for number in (0, 1, 2, 0):
            self.clients[number].fail("get", b"0")
        self.assertFailed(done, 0)

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
