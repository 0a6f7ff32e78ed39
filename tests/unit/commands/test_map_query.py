from __future__ import annotations

from typing import cast

import pytest
from twisted.internet.defer import Deferred, fail

from socketmap_memcache.commands.map_console import FatalError
from socketmap_memcache.commands.map_query import Walk
from socketmap_memcache.commands.map_streams import Source
from socketmap_memcache.errors import PermanentError
from socketmap_memcache.tables.interface import NoBackupError
from tests.unit.deferreds import result_of

from .map_bench import Bench, Input, Table, source


def test_query_one() -> None:
    """The value of one key is printed alone; the status says whether there is one."""
    bench = Bench(Table("t", a="1"))
    assert result_of(bench.query().one(b"A")) == 0
    assert bench.output.data == b"1\n"
    assert result_of(bench.query().one(b"x")) == 1
    assert bench.messages == []


def test_query_order() -> None:
    """Of several tables the first that has a key counts, and one that is not needed is not opened."""
    first, second = Table("first", a="1"), Table("second", a="2", b="3")
    bench = Bench(first, second)
    assert result_of(bench.query().one(b"a")) == 0
    assert "opened" in bench.stderr.getvalue()
    assert bench.stderr.getvalue().count("opened") == 1
    assert result_of(bench.query().all(source(b"b\na\nx\n"))) == 0
    assert bench.output.data == b"1\nb\t3\na\t1\n"
    bench.tables.close()
    assert first.closed
    assert second.closed


def test_query_many() -> None:
    """Keys and values come in the order of the input, however it is cut; a last line needs no end."""
    text = b"".join(b"k%d\n" % number for number in range(3000)) + b"K1"
    table = Table("t", **{f"k{number}": f"v{number}" for number in range(0, 3000, 2)}, k1="odd")
    expected = b"".join(
        b"k%d\t%b\n" % (n, table.entries[b"k%d" % n]) for n in range(3000) if b"k%d" % n in table.entries
    )
    for size in (7, 1000, len(text)):
        bench = Bench(table)
        blocks = [text[begin : begin + size] for begin in range(0, len(text), size)]
        assert result_of(bench.query().all(source(*blocks))) == 0
        assert bench.output.data == expected + b"K1\todd\n"


def test_query_nothing() -> None:
    """Without any key found the status is 1."""
    bench = Bench(Table("t"))
    assert result_of(bench.query().all(source(b"a\n\n"))) == 1
    assert bench.output.data == b""


def test_query_nul() -> None:
    """A key ends at a NUL, as does a value: nothing after it is ever seen by Postfix."""
    table = Table("t", a="1\0 2")
    bench = Bench(table)
    assert result_of(bench.query().all(source(b"a\0b\n"))) == 0
    assert bench.output.data == b"a\t1\n"


def test_query_empty_value() -> None:
    """An empty value is printed, with postmap's two warnings."""
    bench = Bench(Table("t", a=""))
    assert result_of(bench.query().all(source(b"a\n"))) == 0
    assert bench.output.data == b"a\t\n"
    assert bench.messages == [
        "warning: table t: key a: empty string result is not allowed",
        "warning: table t should return NO RESULT in case of NOT FOUND",
    ]


def test_query_bad_key() -> None:
    """A key that is not UTF-8 is missing in each table, with a warning for each."""
    bench = Bench(Table("t"), Table("u", a="1"))
    assert result_of(bench.query().all(source(b"\xff\na\n"))) == 0
    assert bench.output.data == b"a\t1\n"
    assert bench.messages == [
        f'warning: {name}: non-UTF-8 key "?": malformed UTF-8 or invalid codepoint' for name in ("t", "u")
    ]


def test_query_bad_value() -> None:
    """A value that is not UTF-8 is a failure, as it is for Postfix's programs."""
    table = Table("t", u="\u00fc")
    table.entries[b"bad"] = b"\xff"
    bench = Bench(table)
    with pytest.raises(FatalError, match="^table t: query error$"):
        result_of(bench.query().all(source(b"u\nbad\nu\n")))
    assert bench.output.data == "u\t\u00fc\n".encode()
    assert bench.messages == ['warning: t: key "bad": non-UTF-8 value "?": malformed UTF-8 or invalid codepoint']


def test_query_failure() -> None:
    """The first failure in the order of the input ends it, after the output of all before it."""
    bench = Bench(Table("t", a="1"), Table("u", b="2"))
    with pytest.raises(FatalError, match="^table t: query error: broken$"):
        result_of(bench.query().all(source(b"a\nb\nfail\na\n")))
    assert bench.output.data == b"a\t1\nb\t2\n"


def test_query_no_table() -> None:
    """A table that cannot be opened ends it with every reason, whatever else has been read."""
    bench = Bench(Table("t"))
    bench.tables.names[0] = "bogus"
    with pytest.raises(FatalError, match="no such table\nbogus, line 1: at all"):
        result_of(bench.query().all(source(b"a\n" * 5000)))


def test_query_fails_while_reading() -> None:
    """After a failure no more is asked for of what has just been read."""
    feed = Input(ended=False)
    bench = Bench(Table("t"))
    done = bench.query().all(cast("Source", feed))
    bench.tables.names[0] = "bogus"
    assert feed.waiting is not None
    feed.waiting.callback(b"a\n" * 5000)
    with pytest.raises(FatalError, match="no such table"):
        result_of(done)
    assert bench.messages == []


def test_query_unforeseen() -> None:
    """A fault of the program is not taken for a failure of a table."""
    table = Table("t")
    table.lookup = lambda _key: fail(ZeroDivisionError())  # type: ignore[method-assign,assignment]
    with pytest.raises(ZeroDivisionError):
        result_of(Bench(table).query().one(b"a"))


def test_query_window() -> None:
    """No more is read than is asked for: a slow table does not fill the memory."""
    table = Table("t")
    waiting: list[Deferred[bytes | None]] = []

    def lookup(_key: bytes) -> Deferred[bytes | None]:
        waiting.append(Deferred())
        return waiting[-1]

    table.lookup = lookup  # type: ignore[method-assign,assignment]
    feed = Input(*[b"k\n" * 1000] * 10)
    done = Bench(table).query().all(cast("Source", feed))
    assert len(waiting) == 2000
    assert len(feed.blocks) == 7
    while waiting:
        waiting.pop(0).callback(None)
    assert result_of(done) == 1


def test_query_prompt() -> None:
    """Answers are printed when they are there, not when the next key is: somebody may be typing."""
    feed = Input(b"a\n", ended=False)
    bench = Bench(Table("t", a="1"))
    done = bench.query().all(cast("Source", feed))
    assert bench.output.data == b"a\t1\n"
    assert feed.waiting is not None
    feed.waiting.callback(b"")
    assert result_of(done) == 0


def test_query_read_error() -> None:
    """A failure to read the input is told, after what was read before."""
    feed = Input(b"a\n", ended=False)
    bench = Bench(Table("t", a="1"))
    done = bench.query().all(cast("Source", feed))
    assert feed.waiting is not None
    feed.waiting.errback(OSError(5, "Input/output error"))
    with pytest.raises(OSError, match="Input/output"):
        result_of(done)


def test_walk() -> None:
    """All entries are printed, with warnings about those that Postfix does not allow."""
    table = Table("t", a="1", b="")
    table.entries[b""] = b"x"
    bench = Bench(table)
    assert result_of(Walk(bench.tables, bench.console, bench.sink).run()) == 0
    assert bench.output.data == b"a\t1\nb\t\n\tx\n"
    assert bench.messages == [
        "warning: table t: key b: empty string result is not allowed",
        "warning: table t should return NO RESULT in case of NOT FOUND",
        "warning: table t: empty lookup key value is not allowed",
    ]


def test_walk_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many entries are written as they come."""
    monkeypatch.setattr("socketmap_memcache.commands.map_query.BLOCK_SIZE", 10)
    table = Table("t", **{f"k{number}": "v" for number in range(10)})
    bench = Bench(table)
    assert result_of(Walk(bench.tables, bench.console, bench.sink).run()) == 0
    assert bench.output.data.count(b"\n") == 10


def test_walk_empty() -> None:
    """An empty table is no failure."""
    bench = Bench(Table("t"))
    assert result_of(Walk(bench.tables, bench.console, bench.sink).run()) == 0
    assert bench.output.data == b""


def test_walk_no_backup() -> None:
    """A cache without a backup is a warning, as with Postfix."""
    table = Table("t")
    table.cursor_error = NoBackupError("database t: why")
    bench = Bench(table)
    assert result_of(Walk(bench.tables, bench.console, bench.sink).run()) == 0
    assert bench.messages == ["warning: database t: why"]
    assert bench.output.data == b""


def test_walk_refused() -> None:
    """A table that has no order, or fails, ends it."""
    table = Table("t")
    for error, text in ((PermanentError("why"), "table t: sequence error: why"),):
        table.cursor_error = error
        bench = Bench(table)
        with pytest.raises(FatalError, match=f"^{text}$"):
            result_of(Walk(bench.tables, bench.console, bench.sink).run())
