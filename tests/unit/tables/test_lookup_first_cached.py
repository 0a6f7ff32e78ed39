"""The first of several keys, where the cache can be asked for all of them in one command."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, fail, succeed

from socketmap_memcache.errors import PermanentError, TemporaryError
from socketmap_memcache.tables.cache_entries import MISSING
from socketmap_memcache.tables.memcache import MemcacheTable
from tests.unit.tables.fakes import BatchCache, Domains, MemcacheTableTests, open_table

DOWN = TemporaryError("down")


class TestFirstCached(MemcacheTableTests):
    def setUp(self) -> None:
        super().setUp()
        self.many = BatchCache(self.trace)
        self.many.get_answer = b"cached"
        self.kept: dict[bytes, Any] = {}
        self.patch(self.backup, "lookup", self.ask)

    def ask(self, key: bytes) -> Deferred[bytes | None]:
        self.trace.append(f"backup {key!r}")
        answer = self.kept.get(key)
        return fail(answer) if isinstance(answer, Exception) else succeed(answer)

    def first(self, table: MemcacheTable, *keys: bytes) -> tuple[int, bytes] | None:
        return self.successResultOf(table.lookup_first(keys))

    def test_one_command(self) -> None:
        """Folded keys are asked for in one command, with all tries; what comes first of those that exist counts."""
        self.many.values = {b"p:c": b"3", b"p:b": b"2"}
        assert self.first(open_table(self.many, key_format="p:%s"), b"A", b"B", b"c", b"B") == (1, b"2")
        self.assertTrace("get b'p:a p:b p:c'")
        assert self.many.tries == 2

    def test_none(self) -> None:
        """Without a backup, what the cache does not have is missing."""
        table = open_table(self.many)
        assert self.first(table, b"a", b"\xff", b"", b"a b") is None
        self.assertTrace("get b'a'")
        assert self.first(table, b"\xff") is None
        self.assertTrace()

    def test_backup(self) -> None:
        """The backup is asked for the keys before the first that is cached, and may win."""
        self.many.values = {b"c": b"3"}
        table = open_table(self.many, self.backup)
        assert self.first(table, b"a", b"\xff", b"b", b"c", b"d") == (3, b"3")
        self.assertTrace("get b'a b c d'", "backup b'a'", "backup b'b'")
        self.kept = {b"b": b"2"}
        assert self.first(table, b"a", b"b", b"c", b"d") == (1, b"2")
        self.kept = {b"a": DOWN, b"b": b"2"}
        assert self.failureResultOf(table.lookup_first([b"a", b"b", b"c"])).value is not None
        self.many.values = {}
        self.kept = {}
        assert self.first(table, b"a", b"b") is None

    def test_known_missing(self) -> None:
        """What is marked as missing is not asked for in the backup; without one the mark is a value as any other."""
        self.many.values = {b"a": MISSING, b"b": b"2"}
        assert self.first(open_table(self.many, self.backup), b"a", b"b") == (1, b"2")
        self.assertTrace("get b'a b'")
        assert self.first(open_table(self.many), b"a", b"b") == (0, MISSING)

    def test_cache_fails(self) -> None:
        """When the cache fails the backup is asked for all keys; without one the look-up fails."""
        self.many.error = DOWN
        self.kept = {b"b": b"2"}
        assert self.first(open_table(self.many, self.backup), b"a", b" ", b"b") == (2, b"2")
        self.assertTrace("get b'a b'", "backup b'a'", "backup b'b'", "set b'b' b'2' 0 3600")
        assert self.failureResultOf(open_table(self.many).lookup_first([b"a"])).value is DOWN
        self.many.error = PermanentError("unforeseen")
        self.failureResultOf(open_table(self.many, self.backup).lookup_first([b"a"]), PermanentError)

    def test_one_by_one(self) -> None:
        """Keys are asked for one by one where one has a value that is too long, or is too long itself."""
        self.many.values = {b"a": None, b"b": b"2"}
        assert self.first(open_table(self.many), b"a", b"b") == (0, b"cached")
        self.assertTrace("get b'a b'", "get b'a'", "get b'b'")
        assert self.first(open_table(self.many, self.backup), b"x" * 251, b"b") == (1, b"cached")

    def test_domain(self) -> None:
        """With a list of domains each key is looked at first."""
        table = open_table(self.many, None, Domains([], True))
        assert self.first(table, b"a") == (0, b"cached")
