from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from socketmap_memcache.errors import TemporaryError
from socketmap_memcache.tables.interface import IBatchTable, ITable
from socketmap_memcache.tables.lookup_first import lookup_first
from socketmap_memcache.tables.read_only import ReadOnlyTable

DOWN = TemporaryError("down")


@implementer(ITable)
class Known(ReadOnlyTable):
    """Answers what it is given, by key."""

    name = "known:"

    def __init__(self, answers: Sequence[bytes | Exception | Deferred[bytes | None] | None]) -> None:
        self.answers = answers
        self.asked: list[bytes] = []

    def lookup(self, key: bytes) -> Deferred[bytes | None]:
        self.asked.append(key)
        known = self.answers[int(key)]
        if isinstance(known, Deferred):
            return known
        return fail(known) if isinstance(known, Exception) else succeed(known)

    def close(self) -> None:
        pass


@implementer(IBatchTable)
class Batch(Known):
    def lookup_first(self, keys: Sequence[bytes]) -> Deferred[tuple[int, bytes] | None]:
        return succeed((len(keys), b"batch"))


def keys(count: int) -> list[bytes]:
    return [b"%d" % number for number in range(count)]


class LookupFirstTests(SynchronousTestCase):
    def test_batch(self) -> None:
        """A table that can do it better is let do it."""
        assert self.successResultOf(lookup_first(Batch([]))(keys(3))) == (3, b"batch")

    def test_at_the_same_time(self) -> None:
        """Where answers take their time all keys are asked for at once; the first counts, whichever comes first."""
        later: list[Deferred[bytes | None]] = [Deferred(), Deferred()]
        table = Known([None, *later, b"last"])
        found = lookup_first(table)(keys(4))
        assert table.asked == keys(4)
        later[1].callback(b"2")
        self.assertNoResult(found)
        later[0].callback(None)
        assert self.successResultOf(found) == (2, b"2")

    def test_at_once(self) -> None:
        """A table that answers at once is not asked for what comes after the first that exists."""
        table = Known([None, b"second", b"third"])
        assert self.successResultOf(lookup_first(table)(keys(3))) == (1, b"second")
        assert table.asked == keys(2)

    def test_not_yet(self) -> None:
        """An answer that waits for another one is none yet."""
        inner: Deferred[bytes | None] = Deferred()
        table = Known([succeed(b"").addCallback(lambda _: inner), b"second"])
        found = lookup_first(table)(keys(2))
        self.assertNoResult(found)
        inner.callback(None)
        assert self.successResultOf(found) == (1, b"second")

    def test_nothing_asked(self) -> None:
        """Without keys nothing is found."""
        assert self.successResultOf(lookup_first(Known([]))([])) is None


@given(st.lists(st.sampled_from([b"", b"v", None, DOWN]), max_size=6))
def test_first_counts(answers: list[bytes | Exception | None]) -> None:
    """A failure before the first found is a failure, one after it is none; what is empty is found."""
    results: list[object] = []
    lookup_first(Known(answers))(keys(len(answers))).addBoth(results.append)
    place = next((place for place, known in enumerate(answers) if known is not None), None)
    if place is None:
        assert results == [None]
    elif isinstance(answers[place], Exception):
        assert getattr(results[0], "value", None) is DOWN
    else:
        assert results == [(place, answers[place])]
