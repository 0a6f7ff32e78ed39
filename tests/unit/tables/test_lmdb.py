from __future__ import annotations

from unittest.mock import patch

from socketmap_memcache.errors import PermanentError, TemporaryError
from socketmap_memcache.tables import lmdb as lmdb_module
from socketmap_memcache.tables.interface import RefusedError
from socketmap_memcache.tables.store import Kind, Operation

from .lmdb_tests import LmdbTests


class TestForms(LmdbTests):
    def test_both_read(self) -> None:
        """Keys with and without a NUL are found; of both the one with it counts. Values end at their first NUL."""
        self.make({b"a\0": b"1\0", b"b": b"2", b"c": b"3", b"c\0": b"4\0", b"d\0": b"5", b"e\0": b"6\0rest", b"f": b""})
        store = self.open()
        expected = {b"a": b"1", b"b": b"2", b"c": b"4", b"d": b"5", b"e": b"6", b"f": b"", b"g": None}
        assert self.lookups(store, [*expected]) == [*expected.values()]

    def test_form_kept(self) -> None:
        """An update takes the form that the file has; in an empty file, keys and values end in a NUL."""
        for first, stored in ({}, (b"k\0", b"v\0")), ({b"a\0": b"1\0"}, (b"k\0", b"v\0")), ({b"a": b"1"}, (b"k", b"v")):
            self.path.unlink(missing_ok=True)
            self.make(first)
            store = self.open()
            assert self.do(store, Kind.UPDATE, b"k", b"v") is True
            store.close()
            assert self.content() == {**first, stored[0]: stored[1]}

    def test_other_form_replaced(self) -> None:
        """In a file with both forms an update leaves one, and a deletion none."""
        self.make({b"a\0": b"1\0", b"k": b"2", b"l\0": b"3\0", b"l": b"4"})
        store = self.open()
        assert self.do(store, Kind.UPDATE, b"k", b"new") is True
        assert self.do(store, Kind.DELETE, b"l") is True
        assert self.do(store, Kind.DELETE, b"l") is False
        store.close()
        assert self.content() == {b"a\0": b"1\0", b"k\0": b"new\0"}

    def test_long_keys(self) -> None:
        """A key that LMDB cannot have is missing, and refused in an update; the rest of the batch is done."""
        for content, limit in (({}, 510), ({b"a": b"1"}, 511)):
            self.path.unlink(missing_ok=True)
            self.make(content)
            store = self.open()
            long, longest, too_long = b"k" * 510, b"k" * limit, b"k" * (limit + 1)
            results = store.execute([Operation(Kind.UPDATE, key, b"v") for key in (long, longest, too_long)])
            assert results[:2] == [True, True]
            assert isinstance(results[2], RefusedError)
            assert f"lmdb:x: a key of {limit + 1} bytes" in str(results[2])
            assert self.lookups(store, [longest, too_long, b"k" * 10_000]) == [b"v", None, None]
            assert self.do(store, Kind.DELETE, b"k" * 10_000) is False
            assert self.walk(store)[-1] == (longest, b"v")
            store.close()

    def test_walk(self) -> None:
        """A walk comes by each key once, in the order of their bytes, and by no key that is empty."""
        keys = [b"a", b"a\x01", b"ab", b"b", "\u00fc".encode()]
        self.make({key + b"\0": b"v\0" for key in keys} | {b"a": b"v", b"\0": b"v\0", b"c\0c\0": b"v\0"})
        assert self.walk(self.open()) == [(key, b"v") for key in sorted([*keys, b"c"])]


class TestBatches(LmdbTests):
    def test_order(self) -> None:
        """Operations of one batch are done in their order, in one transaction."""
        self.make({b"k\0": b"1\0"})
        store = self.open()
        with patch.object(store._file, "transact", wraps=store._file.transact) as transact:
            results = store.execute(
                [
                    Operation(Kind.LOOKUP, b"k"),
                    Operation(Kind.UPDATE, b"k", b"2"),
                    Operation(Kind.LOOKUP, b"k"),
                    Operation(Kind.DELETE, b"k"),
                    Operation(Kind.AFTER, b""),
                ]
            )
        assert results == [b"1", True, b"2", True, []]
        assert transact.call_count == 1

    def test_given_up(self) -> None:
        """What was given up while the store waited for the lock is not done."""
        self.make()
        store = self.open()
        update, other = Operation(Kind.UPDATE, b"k", b"v"), Operation(Kind.UPDATE, b"l", b"v")
        update.given_up = True
        store.execute([update, other])
        assert self.walk(store) == [(b"l", b"v")]

    def test_failed_write(self) -> None:
        """Where a change fails, the look-ups of the batch get what the file has, and the next batch works."""
        self.make({b"k\0": b"old\0"})
        store = self.open()
        batch = [Operation(Kind.UPDATE, b"k", b"new"), Operation(Kind.LOOKUP, b"k"), Operation(Kind.DELETE, b"l")]
        # Python objects of LMDB's cannot be patched, but LMDB refuses an empty key.
        with (
            patch.object(lmdb_module, "_usual_form", return_value=b""),
            patch.object(
                lmdb_module, "_stored_forms", side_effect=lambda key: [b""] if key == b"l" else [key + b"\0", key]
            ),
        ):
            results = store.execute(batch)
        assert isinstance(results[0], TemporaryError)
        assert results[1] == b"old"
        assert results[2] is results[0]
        assert str(self.path) in str(results[0])
        assert store.execute(batch) == [True, b"new", False]

    def test_failed_write_alone(self) -> None:
        """Where a change fails and there is nothing else in the batch, nothing else is asked of the file."""
        self.make()
        store = self.open()
        store._file.writable = False
        assert isinstance(self.do(store, Kind.UPDATE, b"k", b"v"), PermanentError)
