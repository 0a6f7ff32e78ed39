from __future__ import annotations

from collections.abc import Callable
from typing import cast

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from socketmap_memcache.errors import TemporaryError
from socketmap_memcache.memcache.interface import IBatchCache, ICache, ILeaseCache, Leased, Limits
from socketmap_memcache.memcache.local import LocalCache
from socketmap_memcache.memcache.memory import MemoryCache
from socketmap_memcache.memcache.pool import ClientPool

from .held_cache import HeldCache, HeldPool

LIMITS = Limits()
TTL = 10


class LocalCacheTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.pool = HeldPool(1_790_000_000)
        self.held = HeldCache()
        self.cache = self.local(self.held)
        self.changes: list[Callable[[], Deferred[bool]]] = [
            lambda: self.cache.set(b"k", b"new", 7, 60, LIMITS),
            lambda: self.cache.delete(b"k", LIMITS),
            lambda: self.cache.refill(b"k", b"new", 7, 60, b"1", LIMITS),
            lambda: self.cache.give_up(b"k", b"1", LIMITS),
        ]

    def local(self, cache: ICache) -> LocalCache:
        return LocalCache(cache, TTL, 10_000, cast(ClientPool, self.pool))

    def get(self, *answers: bytes | None, key: bytes = b"k") -> bytes | None:
        """Look a key up, and let the cache behind answer where it is asked."""
        asked = len(self.held.answers)
        answer = self.cache.get(key, LIMITS)
        assert len(self.held.answers) - asked == len(answers)
        for behind in answers:
            self.held.answer(behind)
        return self.successResultOf(answer)

    def assertNotKept(
        self, asked: Deferred[bytes | None], change: Deferred[bool], answers: list[object], *, in_order: bool
    ) -> None:
        """Let both be answered, in the order of their questions or in the other, and look what is known then."""
        if not in_order:
            self.held.answers.reverse()
            answers.reverse()
        for answer in answers:
            self.held.answer(answer)
        assert self.successResultOf(asked) == b"old"
        self.successResultOf(change)
        assert self.get(None) is None

    def test_interfaces(self) -> None:
        """It can do what the cache behind can do."""
        for interface in (ICache, IBatchCache, ILeaseCache):
            verifyObject(interface, self.cache)
        plain = self.local(MemoryCache("memory:", 1000, self.pool.reactor))
        verifyObject(ICache, plain)
        assert not IBatchCache.providedBy(plain)
        assert not ILeaseCache.providedBy(plain)

    def test_kept(self) -> None:
        """A value that was found is given again, without asking, until its time is over; no use prolongs that."""
        assert self.get(b"v") == b"v"
        for _ in range(4):
            assert self.get() == b"v"
            self.pool.reactor.advance(TTL / 4)
        assert self.get(b"new") == b"new"

    def test_never_kept(self) -> None:
        """A miss, a failure, an empty value, and one that stands for a miss are asked for again."""
        for value in (None, b"", b"\0missing"):
            assert self.get(value) == value
        answer = self.cache.get(b"k", LIMITS)
        self.held.fail(TemporaryError("down"))
        self.failureResultOf(answer, TemporaryError)
        assert self.get(b"v") == b"v"

    def test_bounded(self) -> None:
        """What was used longest ago makes room."""
        for number in range(9):
            self.get(b"v" * 1000, key=b"%d" % number)
        assert self.get(b"new", key=b"0") == b"new"
        assert self.get(key=b"8") == b"v" * 1000

    def test_changed(self) -> None:
        """A change through this cache is seen at once, and its result is handed on."""
        for change in self.changes:
            self.get(b"old")
            done = change()
            self.held.answer(True)
            assert self.successResultOf(done) is True
            assert self.get(b"new") == b"new"
            self.cache._forget(b"k")

    def test_change_failed(self) -> None:
        """After a change that failed, the cache behind says what counts."""
        for change in self.changes:
            self.get(b"old")
            done = change()
            self.held.fail(TemporaryError("down"))
            self.failureResultOf(done, TemporaryError)
            assert self.get(b"new") == b"new"
            self.cache._forget(b"k")

    def test_asked_before_a_change(self) -> None:
        """An answer to what was asked before a change is not kept, whichever of the two comes first."""
        for change in self.changes:
            for answer_first in (True, False):
                asked = self.cache.get(b"k", LIMITS)
                done = change()
                self.assertNotKept(asked, done, [b"old", True], in_order=answer_first)

    def test_asked_during_a_change(self) -> None:
        """An answer to what was asked while a change was under way is not kept: the change may need another try."""
        for change in self.changes:
            for answer_first in (True, False):
                done = change()
                asked = self.cache.get(b"k", LIMITS)
                self.assertNotKept(asked, done, [True, b"old"], in_order=not answer_first)

    def test_asked_twice(self) -> None:
        """Of two questions at the same time the later one's answer is kept."""
        first, second = self.cache.get(b"k", LIMITS), self.cache.get(b"k", LIMITS)
        self.held.answers.reverse()
        self.held.answer(b"new")
        self.held.answer(b"old")
        assert (self.successResultOf(first), self.successResultOf(second)) == (b"old", b"new")
        assert self.get() == b"new"

    def test_nothing_left(self) -> None:
        """A question leaves nothing behind."""
        self.get(b"v")
        self.get(None, key=b"other")
        assert self.cache._asked == {}

    def test_other_keys(self) -> None:
        """A change of one key does not touch another."""
        self.get(b"v", key=b"other")
        self.cache.delete(b"k", LIMITS)
        self.held.answer(True)
        assert self.get(key=b"other") == b"v"

    def test_get_many(self) -> None:
        """Of many keys, those that are not kept are asked for, and what is found is kept."""
        self.get(b"1", key=b"a")
        answer = self.cache.get_many([b"a", b"b", b"c", b"d"], LIMITS)
        self.held.questions[:-1] = []
        assert self.held.take() == ("get_many", [b"b", b"c", b"d"])
        self.held.answer({b"b": b"2", b"c": None})
        assert self.successResultOf(answer) == {b"a": b"1", b"b": b"2", b"c": None}
        assert self.successResultOf(self.cache.get_many([b"a", b"b"], LIMITS)) == {b"a": b"1", b"b": b"2"}
        assert self.get(None, key=b"c") is None
        assert self.cache._asked == {}

    def test_get_many_failed(self) -> None:
        """Where many cannot be looked up, nothing is kept, and it is a failure even if some are known."""
        self.get(b"1", key=b"a")
        answer = self.cache.get_many([b"a", b"b"], LIMITS)
        self.held.fail(TemporaryError("down"))
        self.failureResultOf(answer, TemporaryError)
        assert self.cache._asked == {}

    def test_get_many_and_a_change(self) -> None:
        """Of many answers, that for a key that has been changed meanwhile is not kept."""
        answer = self.cache.get_many([b"k", b"b"], LIMITS)
        self.cache.delete(b"k", LIMITS)
        self.held.answer({b"k": b"old", b"b": b"2"})
        self.held.answer(True)
        assert self.successResultOf(answer) == {b"k": b"old", b"b": b"2"}
        assert self.get(None) is None
        assert self.get(key=b"b") == b"2"

    def test_leases(self) -> None:
        """A fresh value is kept, but a lease is asked for all the same: it may have become stale."""
        for leased in (
            Leased(None, True, False, b"1"),
            Leased(b"v", False, False, b"1"),
            Leased(b"v", False, True, b"1"),
        ):
            answer = self.cache.get_leased(b"k", LIMITS, 30, 60)
            assert self.held.take() == ("get_leased", b"k", 30, 60)
            self.held.answer(leased)
            assert self.successResultOf(answer) == leased
        assert self.get() == b"v"
        stale = self.cache.get_leased(b"k", LIMITS, 30, 60)
        self.held.answer(Leased(b"v", True, False, b"1"))
        assert self.successResultOf(stale).won

    def test_leases_failed(self) -> None:
        """A lease that cannot be had is a failure."""
        answer = self.cache.get_leased(b"k", LIMITS, 30, 60)
        self.held.fail(TemporaryError("down"))
        self.failureResultOf(answer, TemporaryError)
        assert self.cache._asked == {}

    def test_arguments(self) -> None:
        """Changes go through as they are."""
        for change, expected in zip(
            self.changes,
            [
                ("set", b"k", b"new", 7, 60),
                ("delete", b"k"),
                ("refill", b"k", b"new", 7, 60, b"1"),
                ("give_up", b"k", b"1"),
            ],
            strict=True,
        ):
            change()
            assert self.held.take() == expected

    def test_close(self) -> None:
        """The cache behind goes back to the pool, and nothing is kept; the pool knows it by the other's name."""
        assert self.cache.name == "inet:held:1"
        self.get(b"v")
        self.cache.close()
        assert self.held.questions[-1] == ("close",)
        assert self.get(None) is None
