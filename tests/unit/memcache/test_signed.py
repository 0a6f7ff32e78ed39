from __future__ import annotations

from contextlib import ExitStack
from typing import Any, cast
from unittest.mock import Mock

from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from socketmap_memcache.errors import TemporaryError
from socketmap_memcache.log_limit import LOG_INTERVAL
from socketmap_memcache.memcache.client import MemcacheClient
from socketmap_memcache.memcache.interface import IBatchCache, ICache, ILeaseCache, IMember, Leased, Limits
from socketmap_memcache.memcache.memory import MemoryCache
from socketmap_memcache.memcache.pool import ClientPool
from socketmap_memcache.memcache.signature import HEADER_SIZE, Signature
from socketmap_memcache.memcache.signed import SignedCache
from socketmap_memcache.memcache.signing_keys import SigningKey

from .held_cache import HeldCache, HeldPool

NOW = 1_790_000_000
LIMITS = Limits(data_size_limit=100)
ONCE = Limits(data_size_limit=100, max_try=1)


class SignedCacheTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.pool = HeldPool(NOW)
        self.held = HeldCache()
        self.cache = self.signed(self.held)
        self.signature = self.cache._signature
        logs = ExitStack()
        self.addCleanup(logs.close)
        self.events = logs.enter_context(capturedLogs())

    def signed(self, cache: ICache) -> SignedCache:
        signature = Signature([SigningKey.of(b"k" * 32)], b"table", self.pool.reactor.seconds)
        return SignedCache(cache, signature, "memcache:/x.cf", cast(ClientPool, self.pool))

    def get(self, stored: bytes | None, key: bytes = b"k") -> bytes | None:
        answer: Deferred[bytes | None] = self.cache.get(key, LIMITS)
        self.held.take()
        self.held.answer(stored)
        return self.successResultOf(answer)

    def leased(self, leased: Leased) -> Leased:
        answer: Deferred[Leased] = self.cache.get_leased(b"k", LIMITS, 30, 60)
        assert self.held.take() == ("get_leased", b"k", 30, 60)
        self.held.answer(leased)
        return self.successResultOf(answer)

    def logged(self) -> list[str]:
        return [event["log_format"].format(**event) for event in self.events]

    def test_interfaces(self) -> None:
        """It can do what the cache that it uses can do."""
        for interface in (ICache, IBatchCache, ILeaseCache):
            verifyObject(interface, self.cache)
        plain = self.signed(MemoryCache("memory:", 1000, self.pool.reactor))
        verifyObject(ICache, plain)
        assert not IBatchCache.providedBy(plain)
        assert not ILeaseCache.providedBy(plain)

    def test_member(self) -> None:
        """In front of one server of a cluster it is one, too."""
        client = MemcacheClient("inet:mc:1", Mock(), self.pool.reactor)
        member: Any = self.signed(client)
        verifyObject(IMember, member)
        assert (member.usable, member.up_since) == (True, float("-inf"))
        member.owe(b"k")
        assert len(client._owed) == 1

    def test_round_trip(self) -> None:
        """What was stored is found, and in the cache it is signed and ends when the cache lets go of it."""
        memory = MemoryCache("memory:", 1000, self.pool.reactor)
        cache = self.signed(memory)
        assert self.successResultOf(cache.set(b"k", b"v", 7, 60, LIMITS)) is True
        assert memory.peek(b"k") == self.signature.sign(b"k", b"v", 60)
        assert self.successResultOf(cache.get(b"k", LIMITS)) == b"v"
        self.pool.reactor.advance(60)
        assert self.successResultOf(cache.get(b"k", LIMITS)) is None
        assert cache.rejected == 0

    def test_set(self) -> None:
        """Flags and ttl are handed on as they are, and so is what came of it."""
        answer = self.cache.set(b"k", b"v", 7, 60, LIMITS)
        assert self.held.take() == ("set", b"k", self.signature.sign(b"k", b"v", 60), 7, 60)
        self.held.answer(True)
        assert self.successResultOf(answer) is True
        answer = self.cache.set(b"k", b"v", 7, 60, LIMITS)
        self.held.fail(TemporaryError("down"))
        self.failureResultOf(answer, TemporaryError)

    def test_get(self) -> None:
        """A signed value is found, a miss is a miss, and a failure is a failure."""
        assert self.get(self.signature.sign(b"k", b"v", 60)) == b"v"
        assert self.get(None) is None
        answer = self.cache.get(b"k", LIMITS)
        self.held.fail(TemporaryError("down"))
        self.failureResultOf(answer, TemporaryError)
        assert self.cache.rejected == 0

    def test_rejected(self) -> None:
        """What is not signed for this key is missing, is counted, and the log says which key and why."""
        assert self.get(b"v") is None
        assert self.get(self.signature.sign(b"other", b"v", 60)) is None
        assert self.cache.rejected == 2
        assert self.logged() == [
            "memcache:/x.cf: what inet:held:1 has for key b'k' has no signature: not used; 1 such values until now"
        ]

    def test_empty(self) -> None:
        """An empty value is missing, and no attack: it is there where somebody is about to refill the key."""
        assert self.get(b"") is None
        answer = self.cache.get_many([b"a"], LIMITS)
        self.held.answer({b"a": b""})
        assert self.successResultOf(answer) == {}
        assert (self.cache.rejected, len(self.events)) == (0, 0)

    def test_logged_once_in_a_while(self) -> None:
        """A line is logged each minute at most, also where the clock is set back."""
        for _ in range(9):
            self.get(b"v")
            self.pool.reactor.advance(LOG_INTERVAL / 4)
        assert len(self.events) == 3
        assert self.logged()[-1].endswith("9 such values until now")
        self.pool.reactor.rightNow -= 1000
        self.get(b"v")
        assert len(self.events) == 4

    def test_just_over(self) -> None:
        """A value that is only just over is missing, and counted, without a line in the log."""
        stored = self.signature.sign(b"k", b"v", 60)
        self.pool.reactor.advance(61)
        assert self.get(stored) is None
        assert (self.cache.rejected, len(self.events)) == (1, 0)

    def test_get_many(self) -> None:
        """Of many values those that are signed come; one that is too long is said to be."""
        answer = self.cache.get_many([b"a", b"b", b"c", b"d"], LIMITS)
        assert self.held.take() == ("get_many", [b"a", b"b", b"c", b"d"])
        self.held.answer({b"a": self.signature.sign(b"a", b"1", 0), b"b": b"forged", b"c": None})
        assert self.successResultOf(answer) == {b"a": b"1", b"c": None}
        assert self.cache.rejected == 1

    def test_delete(self) -> None:
        """Deletes go through."""
        answer = self.cache.delete(b"k", LIMITS)
        assert self.held.take() == ("delete", b"k")
        self.held.answer(True)
        assert self.successResultOf(answer) is True

    def test_limits(self) -> None:
        """The limit of a value's size is for the value alone; the same limits always become the same object."""
        raised: list[Limits] = []
        for limits in (LIMITS, LIMITS, ONCE, LIMITS, ONCE):
            self.cache.get(b"k", limits)
            raised.append(self.held.questions.pop()[-1])
        assert raised[0] == Limits(data_size_limit=100 + HEADER_SIZE)
        assert raised[2] == Limits(data_size_limit=100 + HEADER_SIZE, max_try=1)
        assert raised[0] is raised[1] is raised[3]
        assert raised[2] is raised[4]
        calls: list[tuple[Any, ...]] = [
            (self.cache.set, b"k", b"v", 0, 0),
            (self.cache.get_many, [b"k"]),
            (self.cache.refill, b"k", b"v", 0, 0, b"1"),
        ]
        for call, *arguments in calls:
            call(*arguments, LIMITS)
            assert self.held.questions.pop()[-1] is raised[0]

    def test_leases(self) -> None:
        """A signed value, fresh or stale, and the lack of one, go through with who has won."""
        value, signed = b"v", self.signature.sign(b"k", b"v", 60)
        for won, fresh in ((False, True), (True, False), (False, False)):
            assert self.leased(Leased(signed, won, fresh, b"1")) == Leased(value, won, fresh, b"1")
        for won in (True, False):
            assert self.leased(Leased(None, won, False, b"1")) == Leased(None, won, False, b"1")

    def test_leases_of_forged_values(self) -> None:
        """Who finds a value that is not signed is to refill it, unless another one has been told so."""
        assert self.leased(Leased(b"forged", False, True, b"1")) == Leased(None, True, False, b"1")
        assert self.leased(Leased(b"forged", True, False, b"1")) == Leased(None, True, False, b"1")
        assert self.leased(Leased(b"forged", False, False, b"1")) == Leased(None, False, False, b"1")
        assert self.cache.rejected == 3

    def test_use_of_leases(self) -> None:
        """A refill is signed; giving up goes through."""
        answers = [self.cache.refill(b"k", b"v", 7, 60, b"1", LIMITS), self.cache.give_up(b"k", b"1", LIMITS)]
        assert self.held.take() == ("refill", b"k", self.signature.sign(b"k", b"v", 60), 7, 60, b"1")
        assert self.held.take() == ("give_up", b"k", b"1")
        for answer, result in zip(answers, (True, False), strict=True):
            self.held.answer(result)
            assert self.successResultOf(answer) is result

    def test_close(self) -> None:
        """The cache goes back to the pool; in the log and to the pool it is known by its own name."""
        assert self.cache.name == "inet:held:1"
        self.cache.close()
        assert self.held.take() == ("close",)
