from __future__ import annotations

from socketmap_memcache.memcache.interface import Leased, LeasesUnsupportedError, Limits
from socketmap_memcache.memcache.members import FailureRule
from socketmap_memcache.memcache.memory import MONTH

from .cluster_tests import LIMITS, NOW, ClusterTests


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

    def test_closed_under_way(self) -> None:
        """Clients are let go of when all has been answered: until then the other server is asked, or owes."""
        found = self.get()
        self.cluster.close()
        self.clients[0].answer("get", b"0", result=None)
        self.clients[1].answer("get", b"0", result=b"v")
        assert self.successResultOf(found) == b"v"
        for change, command in ((self.set, ("set", b"0", b"v", 100)), (self.delete, ("delete", b"0"))):
            self.assertClosed()
            self.cluster = self.open()
            done = change()
            self.cluster.close()
            self.clients[0].fail(*command)
            self.clients[1].answer(*command, result=True)
            assert self.successResultOf(done) is True
        self.assertClosed()
        assert self.owed == [[b"0", b"0"], [], []]

    def test_closed_after_one_answer(self) -> None:
        """When nothing but the answer of the first server is under way, clients are let go of after that."""
        for usable, number in ((True, 0), (False, 1)):
            self.clients[0].usable = usable
            self.cluster = self.open()
            done = self.get()
            self.cluster.close()
            self.clients[number].answer("get", b"0", result=b"v")
            assert self.successResultOf(done) == b"v"
            self.assertClosed()

    def assertClosed(self) -> None:
        for client in self.clients:
            assert client.asked.pop() == ("close", None, None)
        self.assertIdle()

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
        self.assertFollowedBy(1)
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
        """Keys that their first server misses are to be asked for on their own; it has one try, as others follow."""
        done = self.cluster.get_many([b"0a", b"0b", b"0c"], LIMITS)
        self.clients[0].answer("get_many", [b"0a", b"0b", b"0c"], result={b"0a": b"1", b"0c": b""})
        assert self.successResultOf(done) == {b"0a": b"1", b"0b": None, b"0c": None}
        assert self.clients[0].limits[0].max_try == 1

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
