"""What the tests of a cluster have in common: three clients whose servers the test plays, and their ring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from socketmap_memcache.asker import FIRING
from socketmap_memcache.errors import TemporaryError
from socketmap_memcache.memcache.client import MemcacheClient
from socketmap_memcache.memcache.cluster import Cluster
from socketmap_memcache.memcache.interface import Leased, Limits
from socketmap_memcache.memcache.members import FailureRule
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

    def assertFollowedBy(self, number: int) -> None:
        """Check that a server answers in place of the key's own, when that one fails, and when it is down."""
        for usable in (True, False):
            self.clients[0].usable = usable
            done = self.get()
            if usable:
                self.clients[0].fail("get", b"0")
            self.clients[number].answer("get", b"0", result=b"v")
            assert self.successResultOf(done) == b"v"

    def assertIdle(self) -> None:
        """Check that nothing is asked of anybody."""
        assert [client.asked for client in self.clients] == [[], [], []]

    @property
    def owed(self) -> list[list[bytes]]:
        return [client.owed for client in self.clients]
