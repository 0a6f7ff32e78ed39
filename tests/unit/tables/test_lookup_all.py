from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from zope.interface.verify import verifyObject

from socketmap_memcache.errors import PermanentError, TemporaryError
from socketmap_memcache.tables.folding import normalize, normalize_all
from socketmap_memcache.tables.interface import IBulkTable, ITable
from socketmap_memcache.tables.lookup_all import lookup_all
from socketmap_memcache.tables.memcache import MemcacheTable

from .fakes import BatchCache, Domains, FakeTable, MemcacheTableTests, open_table


class TestLookupAll(MemcacheTableTests):
    def setUp(self) -> None:
        super().setUp()
        self.many = BatchCache(self.trace)
        self.many.values = {b"a": b"1", b"b": b"2"}

    def lookup_all(self, table: ITable, *keys: bytes) -> list[Any]:
        return [
            answer.value if isinstance(answer, Failure) else answer
            for answer in self.successResultOf(lookup_all(table, keys))
        ]

    def test_interface(self) -> None:
        """A memcache: table looks up many keys at once."""
        verifyObject(IBulkTable, open_table(self.many))

    def test_one_command(self) -> None:
        """Keys are folded and asked for in one command, each once, with one try; the answers are in order."""
        assert self.lookup_all(open_table(self.many), b"B", b"x", b"a", b"b") == [b"2", None, b"1", b"2"]
        self.assertTrace("get b'b x a'")
        assert self.many.tries == 1

    def test_hundreds(self) -> None:
        """No command asks for more than a hundred keys."""
        self.lookup_all(open_table(self.many), *(b"%d" % number for number in range(250)))
        assert len(self.trace) == 3

    def test_skipped(self) -> None:
        """Keys that are skipped are missing, and not asked for."""
        assert self.lookup_all(open_table(self.many), b"", b"a b", b"\xff", b"A") == [None, None, None, b"1"]
        self.assertTrace("get b'a'")

    def test_nothing_to_ask(self) -> None:
        """Without a key that can be asked for nothing is asked."""
        assert self.lookup_all(open_table(self.many), b"", b"\xff") == [None, None]
        self.assertTrace()

    def test_key_format(self) -> None:
        """The cache is asked for the keys that key_format makes."""
        self.many.values = {b"t:a": b"1"}
        assert self.lookup_all(open_table(self.many, key_format="t:%s"), b"a", b"b") == [b"1", None]
        self.assertTrace("get b't:a t:b'")

    def test_key_digest(self) -> None:
        """The cache is asked for digests where those are its keys."""
        assert self.lookup_all(open_table(self.many, key_digest="md5"), b"a") == [None]
        self.assertTrace("get b'0cc175b9c0f1b6a831c399e269772661'")

    def test_backup(self) -> None:
        """The backup is asked for what the cache does not have, which is then put there."""
        assert self.lookup_all(open_table(self.many, self.backup), b"a", b"x") == [b"1", b"kept"]
        self.assertTrace("get b'a x'", "backup b'x'", "set b'x' b'kept' 0 3600")

    def test_backup_failed(self) -> None:
        """A failure of the backup is the answer to one key, and no other's."""
        self.backup.known = error = PermanentError("broken")
        assert self.lookup_all(open_table(self.many, self.backup), b"x", b"a") == [error, b"1"]

    def test_command_failed(self) -> None:
        """When the command fails each key is looked up on its own: a failure of many keys is not taken for a miss."""
        self.many.error = TemporaryError("refused")
        self.many.get_answer = b"single"
        assert self.lookup_all(open_table(self.many), b"x", b"y") == [b"single", b"single"]
        self.assertTrace("get b'x y'", "get b'x'", "get b'y'")
        self.many.get_answer = TemporaryError("down")
        assert self.lookup_all(open_table(self.many), b"x") == [self.many.get_answer]

    def test_too_long(self) -> None:
        """A value above data_size_limit is not missing: its key is looked up on its own, and fails."""
        self.many.values = {b"a": None}
        self.many.get_answer = error = TemporaryError("too long")
        assert self.lookup_all(open_table(self.many), b"a") == [error]
        self.assertTrace("get b'a'", "get b'a'")

    def test_long_key(self) -> None:
        """A key that memcached could not store fails as it does on its own."""
        (error,) = self.lookup_all(open_table(self.many), b"k" * 251)
        assert isinstance(error, TemporaryError)

    def test_domain(self) -> None:
        """With a domain list each key is looked up on its own."""
        self.many.get_answer = b"single"
        assert self.lookup_all(open_table(self.many, domain=Domains(self.trace, True)), b"a") == [b"single"]
        self.assertTrace("domain of b'a'", "get b'a'")

    def test_plain_cache(self) -> None:
        """A cache that takes one key at a time is asked so."""
        assert self.lookup_all(open_table(self.cache), b"a", b"b") == [b"cached", b"cached"]
        self.assertTrace("get b'a'", "get b'b'")

    def test_any_table(self) -> None:
        """Any table can be asked for many keys."""
        table = FakeTable(self.trace, error := TemporaryError("down"))
        assert self.lookup_all(table, b"a", b"b") == [error, error]

    def test_closed_under_way(self) -> None:
        """A table that is closed during the look-ups answers them before it lets go of its cache."""
        waiting: Deferred[bytes | None] = Deferred()
        self.backup.known = waiting
        table: MemcacheTable = open_table(self.many, self.backup)
        answers = table.lookup_all([b"x"])
        table.close()
        assert "close cache" not in self.trace
        waiting.callback(None)
        assert self.successResultOf(answers) == [None]
        assert "close cache" in self.trace


@given(st.lists(st.binary(max_size=5) | st.sampled_from([b"A", b"\n", "Ü".encode()])), st.booleans())
def test_normalize_all(keys: list[bytes], fold_keys: bool) -> None:
    """Many keys are normalized as each of them is."""
    assert normalize_all(keys, fold_keys) == [normalize(key, fold_keys) for key in keys]
