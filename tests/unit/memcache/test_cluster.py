from __future__ import annotations

from twisted.python.failure import Failure
from zope.interface.verify import verifyObject

from socketmap_memcache.errors import TemporaryError
from socketmap_memcache.memcache.interface import IBatchCache, ILeaseCache, Leased

from .cluster_tests import LIMITS, ClusterTests


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
