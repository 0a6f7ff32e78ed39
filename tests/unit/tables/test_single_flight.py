from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from socketmap_memcache.errors import TemporaryError
from socketmap_memcache.tables.single_flight import SingleFlight


class SingleFlightTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.flights = SingleFlight()
        self.queries: list[Deferred[Any]] = []

    def query(self, *arguments: object) -> Deferred[Any]:
        self.queries.append(Deferred())
        return self.queries[-1]

    def test_shared(self) -> None:
        """All who ask for a key while a query for it is under way get its result; later ones make another."""
        asked = [self.flights.run(b"k", self.query) for _ in range(3)]
        other = self.flights.run(b"other", self.query)
        assert len(self.queries) == 2
        self.queries[0].callback(b"v")
        assert [self.successResultOf(one) for one in asked] == [b"v"] * 3
        self.assertNoResult(other)
        self.flights.run(b"k", self.query)
        assert len(self.queries) == 3

    def test_failure(self) -> None:
        """A failure is shared as well, and not kept."""
        asked = [self.flights.run(b"k", self.query) for _ in range(3)]
        self.queries[0].errback(TemporaryError("down"))
        for one in asked:
            self.failureResultOf(one, TemporaryError)
        assert self.successResultOf(self.flights.run(b"k", lambda: succeed(b"v"))) == b"v"

    def test_at_once(self) -> None:
        """A query that is answered at once leaves nothing behind; it gets its arguments."""
        result = self.flights.run(b"k", lambda *arguments: succeed(arguments), 1, 2)
        assert self.successResultOf(result) == (1, 2)
        assert self.flights.current(b"k") is None

    def test_raises(self) -> None:
        """A query that raises is a failure, and nobody waits for it ever after."""
        self.failureResultOf(self.flights.run(b"k", lambda: 1 / 0), ZeroDivisionError)  # type: ignore[arg-type,return-value]
        assert self.successResultOf(self.flights.run(b"k", lambda: succeed(1))) == 1

    def test_cancelled(self) -> None:
        """Who gives up, be it who began the query, takes the answer away from nobody else."""
        for place in range(3):
            asked = [self.flights.run(b"k", self.query) for _ in range(3)]
            asked[place].cancel()
            self.failureResultOf(asked.pop(place), CancelledError)
            self.queries.pop().callback(b"v")
            assert [self.successResultOf(one) for one in asked] == [b"v"] * 2

    def test_detached(self) -> None:
        """Nobody joins a query that has been detached; who had joined gets its result, others the next one's."""
        before = [self.flights.run(b"k", self.query) for _ in range(2)]
        first = self.flights.current(b"k")
        self.flights.detach(b"k")
        self.flights.detach(b"nobody")
        assert self.flights.current(b"k") is None
        after = [self.flights.run(b"k", self.query) for _ in range(2)]
        assert self.flights.current(b"k") is not first
        self.queries[0].callback(b"old")
        assert [self.successResultOf(one) for one in before] == [b"old"] * 2
        joined = self.flights.run(b"k", self.query)
        self.queries[1].callback(b"new")
        assert [self.successResultOf(one) for one in (*after, joined)] == [b"new"] * 3

    def test_asked_by_one_who_waited(self) -> None:
        """Whoever asks again when it has its answer makes a new query."""
        self.flights.run(b"k", self.query)
        again = self.flights.run(b"k", self.query).addCallback(lambda _: self.flights.run(b"k", self.query))
        self.queries[0].callback(b"old")
        self.queries[1].callback(b"new")
        assert self.successResultOf(again) == b"new"
