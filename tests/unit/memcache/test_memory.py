from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from socketmap_memcache.memcache.interface import ICache, Limits
from socketmap_memcache.memcache.memory import MONTH, MemoryCache

LIMITS = Limits()


class TestMemoryCache(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(time.time())
        self.cache = MemoryCache("memory:", 10_000, self.clock)

    def get(self, key: bytes) -> bytes | None:
        return self.successResultOf(self.cache.get(key, LIMITS))

    def set(self, key: bytes, value: bytes, ttl: int = 0) -> None:
        assert self.successResultOf(self.cache.set(key, value, 7, ttl, LIMITS)) is True

    def test_interface(self) -> None:
        """The memory is a cache like any other."""
        verifyObject(ICache, self.cache)

    def test_keeps(self) -> None:
        """What was stored last is found; what was deleted, or never stored, is missing."""
        assert self.get(b"k") is None
        self.set(b"k", b"1")
        self.set(b"k", b"2")
        assert self.get(b"k") == b"2"
        assert self.successResultOf(self.cache.delete(b"k", LIMITS)) is True
        assert self.successResultOf(self.cache.delete(b"k", LIMITS)) is False
        assert self.get(b"k") is None

    def test_ttl(self) -> None:
        """An entry is missing when its ttl is over; reading does not prolong it."""
        self.set(b"k", b"v", 10)
        self.clock.advance(9)
        assert self.get(b"k") == b"v"
        self.clock.advance(1)
        assert self.get(b"k") is None
        assert self.cache._size == 0

    def test_no_ttl(self) -> None:
        """An entry with a ttl of 0 stays."""
        self.set(b"k", b"v")
        self.clock.advance(100 * MONTH)
        assert self.get(b"k") == b"v"

    def test_unix_time(self) -> None:
        """A ttl above 30 days is a point in time, as with memcached: one in the past stores nothing."""
        self.set(b"k", b"v", int(self.clock.seconds()) + 10)
        self.clock.advance(9)
        assert self.get(b"k") == b"v"
        self.clock.advance(2)
        assert self.get(b"k") is None
        self.set(b"k", b"v", MONTH + 1)
        assert self.get(b"k") is None
        self.set(b"k", b"v", MONTH)
        assert self.get(b"k") == b"v"

    def test_negative_ttl(self) -> None:
        """A negative ttl is over at once, and takes an older value with it."""
        self.set(b"k", b"v")
        self.set(b"k", b"w", -1)
        assert self.get(b"k") is None

    def test_least_recently_used(self) -> None:
        """When the bound is reached, what was not used for the longest time goes first."""
        for name in b"abc":
            self.set(bytes([name]), b"v" * 2900)
        self.get(b"a")
        self.set(b"d", b"v" * 2900)
        assert [self.get(bytes([name])) is not None for name in b"abcd"] == [True, False, True, True]

    def test_too_large(self) -> None:
        """A value that would fill more than the bound is not kept."""
        self.set(b"k", b"v" * 10_001)
        assert self.get(b"k") is None
        assert self.cache._size == 0

    def test_close(self) -> None:
        """A closed cache holds nothing."""
        self.set(b"k", b"v")
        self.cache.close()
        assert self.get(b"k") is None
        assert self.cache._size == 0


@given(
    st.lists(
        st.tuples(st.sampled_from(["set", "get", "delete", "wait"]), st.binary(max_size=1), st.integers(-1, 50)),
        max_size=50,
    )
)
def test_bound(steps: list[tuple[str, bytes, int]]) -> None:
    """Whatever is done, the size is that of the entries, and never above the bound."""
    clock = Clock()
    cache = MemoryCache("memory:", 1500, clock)
    for what, key, number in steps:
        if what == "set":
            cache.set(key, b"v" * (number + 1) * 10, 0, number, LIMITS)
        elif what == "wait":
            clock.advance(max(number, 0) / 10)
        else:
            getattr(cache, what)(key, LIMITS)
        assert cache._size == sum(len(key) + len(value) + 250 for key, (value, _) in cache._entries.items())
        assert cache._size <= 1500
