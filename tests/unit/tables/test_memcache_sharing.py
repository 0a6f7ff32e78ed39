"""Look-ups of one key at the same time, and of several keys at once, in ``memcache:`` tables."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import SynchronousTestCase

from socketmap_memcache.errors import PermanentError, TemporaryError
from socketmap_memcache.memcache.client import MemcacheClient
from socketmap_memcache.memcache.interface import Limits
from tests.unit.memcache.scripted import ScriptedServer, gets
from tests.unit.tables.fakes import Answer, Domains, FakeCache, FakeTable, MemcacheTableTests, answer, open_table


class SlowTable(FakeTable):
    """Takes 50 ms for each answer, which is the key in capitals."""

    def __init__(self, clock: IReactorTime, trace: list[str]) -> None:
        super().__init__(trace)
        self.clock = clock

    def lookup(self, key: bytes) -> Deferred[bytes | None]:
        self.trace.append(f"backup {key!r}")
        return deferLater(self.clock, 0.05, key.upper)


class TestStampede(SynchronousTestCase):
    def test_stampede(self) -> None:
        """500 look-ups of 5 keys that only the backup has make 5 queries, both to memcached and to the backup."""
        trace: list[str] = []
        clock, server = Clock(), ScriptedServer()
        client = MemcacheClient("inet:h:1", server.connect, clock)
        table = open_table(client, SlowTable(clock, trace))
        keys = [b"key%d" % (number % 5) for number in range(500)]
        first = [table.lookup(key) for key in keys[:250]]
        connection = server.accept()
        clock.advance(0)
        assert connection.received() == gets(keys[:5])
        connection.send(b"END\r\n" * 5)
        clock.advance(0.03)
        second = [table.lookup(key) for key in keys[250:]]
        clock.advance(0)
        assert connection.received() == gets(keys[:5])
        connection.send(b"END\r\n" * 5)  # the backup is being asked: these join that query
        clock.advance(0.02)
        assert [self.successResultOf(one) for one in first + second] == [key.upper() for key in keys]
        assert trace == [f"backup {key!r}" for key in keys[:5]]
        clock.advance(0)
        assert connection.received().count(b"set ") == 5


class TestLookupFirst(MemcacheTableTests):
    def setUp(self) -> None:
        super().setUp()
        self.cached: dict[bytes, Any] = {}
        self.kept: dict[bytes, Any] = {}
        self.patch(self.cache, "get", self.get)
        self.patch(self.backup, "lookup", self.ask)

    def get(self, key: bytes, limits: Limits) -> Deferred[Any]:
        self.trace.append(f"get {key!r}")
        return answer(self.cached.get(key))

    def ask(self, key: bytes) -> Deferred[Any]:
        self.trace.append(f"backup {key!r}")
        return answer(self.kept.get(key))

    def test_first_cached(self) -> None:
        """The cache is asked for all keys in one go; when it has the first, the backup is not asked."""
        waiting: Deferred[Any] = Deferred()
        self.cached = {b"a": waiting, b"b": b"2"}
        found = open_table(self.cache, self.backup).lookup_first([b"A", b"b", b"c"])
        self.assertTrace("get b'a'", "get b'b'", "get b'c'")
        waiting.callback(b"1")
        assert self.successResultOf(found) == (0, b"1")
        self.assertTrace()

    def test_backup_before_cached(self) -> None:
        """The backup is asked for the keys before the first that is cached, in one go, and may win."""
        self.cached = {b"c": b"3"}
        table = open_table(self.cache, self.backup)
        assert self.successResultOf(table.lookup_first([b"a", b"b", b"c", b"d"])) == (2, b"3")
        self.assertTrace("get b'a'", "get b'b'", "get b'c'", "get b'd'", "backup b'a'", "backup b'b'")
        self.kept = {b"b": b"2"}
        assert self.successResultOf(table.lookup_first([b"a", b"b", b"c", b"d"])) == (1, b"2")
        assert self.trace[-1] == "set b'b' b'2' 0 3600"

    def test_none(self) -> None:
        """When nobody has any of the keys, nothing is found."""
        for backup in (self.backup, None):
            assert self.successResultOf(open_table(self.cache, backup).lookup_first([b"a", b"b"])) is None
        assert self.successResultOf(open_table(self.cache).lookup_first([])) is None

    def test_skipped(self) -> None:
        """Keys that are skipped are not asked for, and do not hide those after them."""
        self.cached = {b"b@x": b"2"}
        table = open_table(self.cache, self.backup, Domains([], True), key_format="%s")
        assert self.successResultOf(table.lookup_first([b"", b"\xff", b"a b", b"b@x"])) == (3, b"2")
        self.assertTrace("get b'b@x'")

    def test_failures(self) -> None:
        """A failure before the first found is a failure, one after it is none; the cache's own goes to the backup."""
        down = TemporaryError("down")
        table = open_table(self.cache, self.backup)
        self.cached = {b"a": down, b"b": b"2"}
        assert self.successResultOf(table.lookup_first([b"a", b"b"])) == (1, b"2")
        self.kept = {b"a": down}
        assert self.failureResultOf(table.lookup_first([b"a", b"b"])).value is down
        assert self.successResultOf(table.lookup_first([b"b", b"a"])) == (0, b"2")
        assert self.failureResultOf(open_table(self.cache).lookup_first([b"a", b"b"])).value is down
        self.cached = {b"a": PermanentError("broken"), b"b": b"2"}
        self.failureResultOf(table.lookup_first([b"a", b"b"]), PermanentError)
        assert (
            self.failureResultOf(open_table(self.cache, None, Domains([], fail(down))).lookup_first([b"a", b"b"])).value
            is down
        )

    def test_too_long(self) -> None:
        """A key that memcached cannot store is one that the cache fails for."""
        assert self.successResultOf(open_table(self.cache, self.backup).lookup_first([b"x" * 251])) is None
        self.failureResultOf(open_table(self.cache).lookup_first([b"x" * 251]), TemporaryError)

    def test_shared(self) -> None:
        """Look-ups of several keys and of one share their query to the backup."""
        waiting: Deferred[Any] = Deferred()
        self.kept = {b"a": waiting}
        table = open_table(self.cache, self.backup)
        several, one = table.lookup_first([b"a"]), table.lookup(b"a")
        self.assertTrace("get b'a'", "backup b'a'", "get b'a'")
        waiting.callback(b"1")
        assert self.successResultOf(several) == (0, b"1")
        assert self.successResultOf(one) == b"1"

    def test_close(self) -> None:
        """A look-up that is under way when the table is closed is finished before anything is let go."""
        for result in (b"1", None, TemporaryError("down"), ZeroDivisionError()):
            waiting: Deferred[Any] = Deferred()
            self.cached = {b"a": waiting}
            table = open_table(self.cache, self.backup)
            ended: list[Any] = []
            table.lookup_first([b"a"]).addBoth(ended.append)
            table.close()
            assert "close cache" not in self.trace
            answer(result).addBoth(waiting.callback)
            assert len(ended) == 1
            assert self.trace[-2:] == ["close cache", "close backup"]
            self.trace.clear()


def outcomes() -> st.SearchStrategy[Answer]:
    return st.sampled_from([None, b"", b"v", TemporaryError("x"), PermanentError("x")])


class KnownCache(FakeCache):
    """Has for each number the first answer."""

    def __init__(self, trace: list[str], answers: list[tuple[Answer, Answer]]) -> None:
        super().__init__(trace)
        self.answers = answers

    def get(self, key: bytes, limits: Limits) -> Deferred[bytes | None]:
        return answer(self.answers[int(key)][0])


class KnownTable(FakeTable):
    """Has for each number the second answer."""

    def __init__(self, trace: list[str], answers: list[tuple[Answer, Answer]]) -> None:
        super().__init__(trace)
        self.answers = answers

    def lookup(self, key: bytes) -> Deferred[bytes | None]:
        return answer(self.answers[int(key)][1])


@given(st.lists(st.tuples(outcomes(), outcomes()), max_size=5), st.booleans())
def test_as_one_after_the_other(answers: list[tuple[Answer, Answer]], has_backup: bool) -> None:
    """Several keys at once give what look-ups one after the other give, up to the first that is not missing."""
    keys = [b"%d" % number for number in range(len(answers))]
    trace: list[str] = []
    table = open_table(KnownCache(trace, answers), KnownTable(trace, answers) if has_backup else None)
    expected: list[object] = []
    for place, key in enumerate(keys):
        table.lookup(key).addCallbacks(
            lambda value, place=place: None if value is None else expected.append((place, value)),
            lambda failure: expected.append(failure.value),
        )
    results: list[Any] = []
    table.lookup_first(keys).addBoth(results.append)
    assert [getattr(result, "value", result) for result in results] == (expected[:1] or [None])
