from __future__ import annotations

from typing import Any, cast

import pytest

from socketmap_memcache.commands.map_changes import Delete, Duplicates, Entries, different_keys
from socketmap_memcache.commands.map_console import FatalError
from socketmap_memcache.tables.read_only import ReadOnlyTable
from tests.unit.deferreds import result_of

from .map_bench import Bench, Table, source


def test_delete_one() -> None:
    """A key is deleted from all tables; the status says whether one had it."""
    first, second = Table("t", a="1"), Table("u", a="2", b="3")
    bench = Bench(first, second)
    delete = Delete(bench.tables, bench.console)
    assert result_of(delete.one(b"a")) == 0
    assert result_of(delete.one(b"a")) == 1
    assert first.entries == {}
    assert second.entries == {b"b": b"3"}


def test_delete_many() -> None:
    """The keys of the input are deleted; one that was there is enough for the status."""
    table = Table("t", a="1", b="2", c="3")
    bench = Bench(table)
    assert result_of(Delete(bench.tables, bench.console).all(source(b"a\nx\nB\n"))) == 0
    assert table.entries == {b"c": b"3"}
    assert result_of(Delete(bench.tables, bench.console).all(source(b"x\n"))) == 1


def test_delete_bad_key() -> None:
    """A key that is not UTF-8 gets a warning and, as with postmap, counts as deleted."""
    bench = Bench(Table("t"))
    assert result_of(Delete(bench.tables, bench.console).one(b"\xff")) == 0
    assert bench.messages == ['warning: t: non-UTF-8 key "?": malformed UTF-8 or invalid codepoint']


def test_delete_failure() -> None:
    """A failure ends it."""
    bench = Bench(Table("t"))
    with pytest.raises(FatalError, match="^table t: delete error: broken$"):
        result_of(Delete(bench.tables, bench.console).one(b"fail"))


def test_update() -> None:
    """Entries are stored in the format of postmap's files, and what is no entry is left out with its line number."""
    text = b'a 1\n# comment\n\nb  2\n\t3 \n"x y" z\nempty \n\xff v\n"open v\nk: v\nn\0 v\nlast 1'
    for size in (1, 5, len(text)):
        table = Table("t")
        bench = Bench(table, create=True)
        assert bench.update(*(text[begin : begin + size] for begin in range(0, len(text), size))) == 0
        assert table.entries == {b"a": b"1", b"b": b"2\t3", b'"x y"': b"z", b"k:": b"v", b"last": b"1"}
        assert bench.messages == [
            "warning: stdin, line 7: expected format: key whitespace value",
            'warning: stdin, line 8: non-UTF-8 input "? v" -- ignoring this line',
            "warning: stdin, line 9: unbalanced '\"' in '\"open v' -- ignoring this line",
            'warning: stdin, line 10: record is in "key: value" format; is this an alias file?',
            "warning: stdin, line 11: text after a NUL byte is ignored",
            "warning: stdin, line 11: expected format: key whitespace value",
        ]


@pytest.mark.parametrize(
    "duplicates,kept,warnings", [(Duplicates.WARN, b"1", 2), (Duplicates.KEEP, b"1", 0), (Duplicates.REPLACE, b"3", 0)]
)
def test_duplicates(duplicates: Duplicates, kept: bytes, warnings: int) -> None:
    """An entry that exists is kept with a warning, kept, or replaced, also by another line of the same input."""
    table = Table("t")
    bench = Bench(table)
    assert bench.update(b"k 1\nb 2\nK 2\nk 3\n", duplicates=duplicates) == 0
    assert table.entries == {b"k": kept, b"b": b"2"}
    assert bench.messages == ['warning: t: duplicate entry: "K"', 'warning: t: duplicate entry: "k"'][:warnings]


def test_update_memcache() -> None:
    """An entry of a cache is always replaced, as Postfix does."""
    table = Table("memcache:x", k="old")
    assert Bench(table).update(b"k new\n") == 0
    assert table.entries == {b"k": b"new"}


def test_update_failure() -> None:
    """A failure ends it, be it of the question whether the key exists or of the update."""
    for duplicates in (Duplicates.WARN, Duplicates.REPLACE):
        with pytest.raises(FatalError, match="^table t: write error: broken$"):
            Bench(Table("t")).update(b"fail 1\n", duplicates=duplicates)


def test_update_read_only() -> None:
    """A table that cannot be changed is refused before anything is read."""

    class ReadOnly(ReadOnlyTable):
        name = "static:x"

    bench = Bench(Table("static:x"))
    cast("Any", bench.tables)._context.tables = {"static:x": ReadOnly()}
    with pytest.raises(FatalError, match="^table static:x: update operation is not supported$"):
        bench.update(b"")
    with pytest.raises(FatalError, match="^table static:x: delete operation is not supported$"):
        result_of(Delete(bench.tables, bench.console).one(b"x"))


def test_entries_at_the_end() -> None:
    """Text that never becomes a line is read at the end."""
    bench = Bench(Table("t"))
    entries = Entries(source(b"a", b" ", b"1"), bench.console)
    found = []
    while not entries.ended:
        more = result_of(entries.next())
        found += more
    assert found == [(b"a", b"1")]


def test_different_keys() -> None:
    """No batch has the same key twice, in any case, or too many entries; the order stays."""
    entries = [(b"a", b"1"), (b"b", b"2"), (b"A", b"3")]
    assert different_keys(entries) == [entries[:2], entries[2:]]
    many = [(b"%d" % number, b"v") for number in range(1500)]
    assert list(map(len, different_keys(many))) == [1000, 500]
    assert different_keys([]) == []
