from __future__ import annotations

import io
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import twisted.internet
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from socketmap_memcache.commands import main, map_streams
from socketmap_memcache.commands import map as map_command
from socketmap_memcache.commands.map_changes import Delete, Duplicates, Entries, Update, different_keys
from socketmap_memcache.commands.map_console import Console, FatalError, printable
from socketmap_memcache.commands.map_query import Query, Walk
from socketmap_memcache.commands.map_streams import Lines, Sink, Source
from socketmap_memcache.commands.map_tables import Tables, proxy_sockets
from socketmap_memcache.errors import ConfigurationError, PermanentError, Problem, TemporaryError
from socketmap_memcache.tables.folding import fold
from socketmap_memcache.tables.interface import ICursor, ITable, NoBackupError
from socketmap_memcache.tables.read_only import ItemsCursor, ReadOnlyTable, RefusingCursor
from tests.unit.command_reactor import Reactor


@implementer(ITable)
class Table:
    """A table in memory, which fails for keys that begin with ``fail``."""

    def __init__(self, name: str, **entries: str) -> None:
        self.name = name
        self.entries = {key.encode(): value.encode() for key, value in entries.items()}
        self.order: list[bytes] = []
        self.closed = False
        self.cursor_error: Exception | None = None

    def lookup(self, key: bytes) -> Deferred[bytes | None]:
        return self._answer(key, self.entries.get)

    def update(self, key: bytes, value: bytes, ttl: int | None = None) -> Deferred[bool]:
        self.order.append(key)
        return self._answer(key, lambda folded: self.entries.update({folded: value}) is None)

    def delete(self, key: bytes) -> Deferred[bool]:
        return self._answer(key, lambda folded: self.entries.pop(folded, None) is not None)

    def cursor(self) -> ICursor:
        if self.cursor_error is not None:
            return RefusingCursor(self.cursor_error)
        return ItemsCursor(list(self.entries.items()))

    def close(self) -> None:
        self.closed = True

    def _answer(self, key: bytes, answer: Callable[[bytes], Any]) -> Deferred[Any]:
        folded = fold(key) or b""
        return fail(TemporaryError("broken")) if folded.startswith(b"fail") else succeed(answer(folded))


class Context:
    """Opens the tables of a test."""

    def __init__(self, tables: list[Table]) -> None:
        self.tables = {table.name: table for table in tables}
        self.warnings: list[Problem] = []

    def open_table(self, name: str, create: bool = False) -> Table:
        self.warnings.append(Problem(f"opened, {create}", "file", 3))
        if name not in self.tables:
            raise ConfigurationError([Problem("no such table"), Problem("at all", name, 1)])
        return self.tables[name]


class Input:
    """Blocks of input; the end comes when the test has said so."""

    def __init__(self, *blocks: bytes, ended: bool = True) -> None:
        self.blocks = deque(blocks)
        self.ended = ended
        self.waiting: Deferred[bytes] | None = None

    def read(self) -> Deferred[bytes]:
        if self.blocks:
            return succeed(self.blocks.popleft())
        if self.ended:
            return succeed(b"")
        self.waiting = Deferred()
        return self.waiting


class Output:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> Deferred[None]:
        assert data
        self.data += data
        return succeed(None)


class Bench:
    """All that an operation needs."""

    def __init__(self, *tables: Table, create: bool = False) -> None:
        self.stderr = io.StringIO()
        self.console = Console("map", self.stderr)
        self.output = Output()
        self.sink = cast("Sink", self.output)
        self.tables = Tables([table.name for table in tables], cast("Any", Context(list(tables))), self.console, create)

    @property
    def messages(self) -> list[str]:
        lines = [line.removeprefix("map: ") for line in self.stderr.getvalue().splitlines()]
        return [line for line in lines if "opened" not in line]

    def query(self) -> Query:
        return Query(self.tables, self.console, self.sink)

    def update(self, *blocks: bytes, duplicates: Duplicates = Duplicates.WARN) -> int:
        status: int = result(Update(self.tables, self.console, duplicates).run(source(*blocks)))
        return status


def source(*blocks: bytes) -> Source:
    return cast("Source", Input(*blocks))


def result(operation: Deferred[Any]) -> Any:
    results: list[Any] = []
    operation.addBoth(results.append)
    assert results, "it has not ended"
    if isinstance(results[0], Failure):
        results[0].raiseException()
    return results[0]


def test_query_one() -> None:
    """The value of one key is printed alone; the status says whether there is one."""
    bench = Bench(Table("t", a="1"))
    assert result(bench.query().one(b"A")) == 0
    assert bench.output.data == b"1\n"
    assert result(bench.query().one(b"x")) == 1
    assert bench.messages == []


def test_query_order() -> None:
    """Of several tables the first that has a key counts, and one that is not needed is not opened."""
    first, second = Table("first", a="1"), Table("second", a="2", b="3")
    bench = Bench(first, second)
    assert result(bench.query().one(b"a")) == 0
    assert "opened" in bench.stderr.getvalue()
    assert bench.stderr.getvalue().count("opened") == 1
    assert result(bench.query().all(source(b"b\na\nx\n"))) == 0
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
        assert result(bench.query().all(source(*blocks))) == 0
        assert bench.output.data == expected + b"K1\todd\n"


def test_query_nothing() -> None:
    """Without any key found the status is 1."""
    bench = Bench(Table("t"))
    assert result(bench.query().all(source(b"a\n\n"))) == 1
    assert bench.output.data == b""


def test_query_nul() -> None:
    """A key ends at a NUL, as does a value: nothing after it is ever seen by Postfix."""
    table = Table("t", a="1\0 2")
    bench = Bench(table)
    assert result(bench.query().all(source(b"a\0b\n"))) == 0
    assert bench.output.data == b"a\t1\n"


def test_query_empty_value() -> None:
    """An empty value is printed, with postmap's two warnings."""
    bench = Bench(Table("t", a=""))
    assert result(bench.query().all(source(b"a\n"))) == 0
    assert bench.output.data == b"a\t\n"
    assert bench.messages == [
        "warning: table t: key a: empty string result is not allowed",
        "warning: table t should return NO RESULT in case of NOT FOUND",
    ]


def test_query_bad_key() -> None:
    """A key that is not UTF-8 is missing in each table, with a warning for each."""
    bench = Bench(Table("t"), Table("u", a="1"))
    assert result(bench.query().all(source(b"\xff\na\n"))) == 0
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
        result(bench.query().all(source(b"u\nbad\nu\n")))
    assert bench.output.data == "u\t\u00fc\n".encode()
    assert bench.messages == ['warning: t: key "bad": non-UTF-8 value "?": malformed UTF-8 or invalid codepoint']


def test_query_failure() -> None:
    """The first failure in the order of the input ends it, after the output of all before it."""
    bench = Bench(Table("t", a="1"), Table("u", b="2"))
    with pytest.raises(FatalError, match="^table t: query error: broken$"):
        result(bench.query().all(source(b"a\nb\nfail\na\n")))
    assert bench.output.data == b"a\t1\nb\t2\n"


def test_query_no_table() -> None:
    """A table that cannot be opened ends it with every reason, whatever else has been read."""
    bench = Bench(Table("t"))
    bench.tables.names[0] = "bogus"
    with pytest.raises(FatalError, match="no such table\nbogus, line 1: at all"):
        result(bench.query().all(source(b"a\n" * 5000)))


def test_query_fails_while_reading() -> None:
    """After a failure no more is asked for of what has just been read."""
    feed = Input(ended=False)
    bench = Bench(Table("t"))
    done = bench.query().all(cast("Source", feed))
    bench.tables.names[0] = "bogus"
    assert feed.waiting is not None
    feed.waiting.callback(b"a\n" * 5000)
    with pytest.raises(FatalError, match="no such table"):
        result(done)
    assert bench.messages == []


def test_query_unforeseen() -> None:
    """A fault of the program is not taken for a failure of a table."""
    table = Table("t")
    table.lookup = lambda _key: fail(ZeroDivisionError())  # type: ignore[method-assign,assignment]
    with pytest.raises(ZeroDivisionError):
        result(Bench(table).query().one(b"a"))


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
    assert result(done) == 1


def test_query_prompt() -> None:
    """Answers are printed when they are there, not when the next key is: somebody may be typing."""
    feed = Input(b"a\n", ended=False)
    bench = Bench(Table("t", a="1"))
    done = bench.query().all(cast("Source", feed))
    assert bench.output.data == b"a\t1\n"
    assert feed.waiting is not None
    feed.waiting.callback(b"")
    assert result(done) == 0


def test_query_read_error() -> None:
    """A failure to read the input is told, after what was read before."""
    feed = Input(b"a\n", ended=False)
    bench = Bench(Table("t", a="1"))
    done = bench.query().all(cast("Source", feed))
    assert feed.waiting is not None
    feed.waiting.errback(OSError(5, "Input/output error"))
    with pytest.raises(OSError, match="Input/output"):
        result(done)


def test_long_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line without an end is refused."""
    monkeypatch.setattr(map_streams, "LINE_LIMIT", 10)
    monkeypatch.setattr("socketmap_memcache.commands.map_changes.LINE_LIMIT", 10)
    bench = Bench(Table("t"))
    with pytest.raises(FatalError, match="more than 10 bytes"):
        result(bench.query().all(source(b"x" * 11)))
    with pytest.raises(FatalError, match="more than 10 bytes"):
        bench.update(b"x" * 11)


def test_walk() -> None:
    """All entries are printed, with warnings about those that Postfix does not allow."""
    table = Table("t", a="1", b="")
    table.entries[b""] = b"x"
    bench = Bench(table)
    assert result(Walk(bench.tables, bench.console, bench.sink).run()) == 0
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
    assert result(Walk(bench.tables, bench.console, bench.sink).run()) == 0
    assert bench.output.data.count(b"\n") == 10


def test_walk_empty() -> None:
    """An empty table is no failure."""
    bench = Bench(Table("t"))
    assert result(Walk(bench.tables, bench.console, bench.sink).run()) == 0
    assert bench.output.data == b""


def test_walk_no_backup() -> None:
    """A cache without a backup is a warning, as with Postfix."""
    table = Table("t")
    table.cursor_error = NoBackupError("database t: why")
    bench = Bench(table)
    assert result(Walk(bench.tables, bench.console, bench.sink).run()) == 0
    assert bench.messages == ["warning: database t: why"]
    assert bench.output.data == b""


def test_walk_refused() -> None:
    """A table that has no order, or fails, ends it."""
    table = Table("t")
    for error, text in ((PermanentError("why"), "table t: sequence error: why"),):
        table.cursor_error = error
        bench = Bench(table)
        with pytest.raises(FatalError, match=f"^{text}$"):
            result(Walk(bench.tables, bench.console, bench.sink).run())


def test_delete_one() -> None:
    """A key is deleted from all tables; the status says whether one had it."""
    first, second = Table("t", a="1"), Table("u", a="2", b="3")
    bench = Bench(first, second)
    delete = Delete(bench.tables, bench.console)
    assert result(delete.one(b"a")) == 0
    assert result(delete.one(b"a")) == 1
    assert first.entries == {}
    assert second.entries == {b"b": b"3"}


def test_delete_many() -> None:
    """The keys of the input are deleted; one that was there is enough for the status."""
    table = Table("t", a="1", b="2", c="3")
    bench = Bench(table)
    assert result(Delete(bench.tables, bench.console).all(source(b"a\nx\nB\n"))) == 0
    assert table.entries == {b"c": b"3"}
    assert result(Delete(bench.tables, bench.console).all(source(b"x\n"))) == 1


def test_delete_bad_key() -> None:
    """A key that is not UTF-8 gets a warning and, as with postmap, counts as deleted."""
    bench = Bench(Table("t"))
    assert result(Delete(bench.tables, bench.console).one(b"\xff")) == 0
    assert bench.messages == ['warning: t: non-UTF-8 key "?": malformed UTF-8 or invalid codepoint']


def test_delete_failure() -> None:
    """A failure ends it."""
    bench = Bench(Table("t"))
    with pytest.raises(FatalError, match="^table t: delete error: broken$"):
        result(Delete(bench.tables, bench.console).one(b"fail"))


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
        result(Delete(bench.tables, bench.console).one(b"x"))


def test_entries_at_the_end() -> None:
    """Text that never becomes a line is read at the end."""
    bench = Bench(Table("t"))
    entries = Entries(source(b"a", b" ", b"1"), bench.console)
    found = []
    while not entries.ended:
        found += result(entries.next())
    assert found == [(b"a", b"1")]


def test_different_keys() -> None:
    """No batch has the same key twice, in any case, or too many entries; the order stays."""
    entries = [(b"a", b"1"), (b"b", b"2"), (b"A", b"3")]
    assert different_keys(entries) == [entries[:2], entries[2:]]
    many = [(b"%d" % number, b"v") for number in range(1500)]
    assert list(map(len, different_keys(many))) == [1000, 500]
    assert different_keys([]) == []


def test_printable() -> None:
    """A message has nothing that could upset a terminal."""
    assert printable(b"a\x1b[\xff\tb\n\xc3\xbc") == "a?[??b\n\u00fc"
    assert printable("a\udcffb") == "a?b"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress() -> None:
    """On a terminal long work shows how far it is, once a second, and messages do not run into that line."""
    clock = Clock()
    terminal = Terminal()
    console = Console("map", terminal, clock.seconds)
    console.progress(10)
    assert terminal.getvalue() == ""
    clock.advance(2)
    console.progress(2990)
    console.progress(1)
    assert terminal.getvalue() == "\r3,000 done, 1,500 a second\x1b[K"
    terminal.truncate(0)
    terminal.seek(0)
    console.warn("careful")
    console.clear()
    assert terminal.getvalue() == "\r\x1b[Kmap: warning: careful\n"


# The command line, and the reactor around an operation.


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[bytes], None]]:
    path = tmp_path / "stdin"
    path.write_bytes(b"")
    descriptor = os.open(path, os.O_RDONLY)
    monkeypatch.setattr(map_command, "STDIN", descriptor)

    def fill(text: bytes) -> None:
        path.write_bytes(text)
        os.lseek(descriptor, 0, os.SEEK_SET)

    yield fill
    os.close(descriptor)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, stdin: Callable[[bytes], None]) -> Callable[..., int]:
    reactor = Reactor()
    monkeypatch.setattr(twisted.internet, "reactor", reactor, raising=False)

    def run(*arguments: str, text: bytes = b"") -> int:
        stdin(text)
        return main(["map", *arguments])

    return run


def test_command_queries(command: Callable[..., int], capfd: pytest.CaptureFixture[str]) -> None:
    """Look-ups and lists go to standard output, and the status is postmap's."""
    assert command("-q", "A", "inline:{b=2}", "inline:{a=1}") == 0
    assert command("-q", "-", "inline:{a=1}", text=b"a\nb\n") == 0
    assert command("-s", "inline:{a=1}") == 0
    assert command("-fq", "A", "inline:{a=1}") == 1
    assert capfd.readouterr() == ("1\na\t1\na\t1\n", "")


def test_command_changes(command: Callable[..., int], capfd: pytest.CaptureFixture[str]) -> None:
    """Updates and deletes say nothing when all is well, and why when it is not."""
    assert command("-i", "memory:", text=b"a 1\n") == 0
    assert command("-ir", "memory:", text=b"a 1\na 2\n") == 0
    assert command("-iw", "memory:", text=b"a 1\na 2\n") == 0
    assert capfd.readouterr() == ("", "")
    assert command("-d", "a", "memory:") == 1
    assert command("-d", "-", "memory:", text=b"a\n") == 1
    assert command("-d", "a", "static:x") == 1
    expected = "socketmap-memcache map: fatal: table static:x: delete operation is not supported\n"
    assert capfd.readouterr() == ("", expected)


@pytest.mark.parametrize(
    "arguments,text",
    [
        ([], "usage:"),
        (["-q", "a"], "usage:"),
        (["-x", "static:a"], "option -x not recognized"),
        (["-q"], "option -q requires argument"),
        (["-j", "-q", "a", "static:a"], "option -j of postmap is not supported"),
        (["-q", "a", "-s", "static:a"], "specify only one of -d -i -q or -s"),
        (["static:a"], "making a table from its source file is left to postmap"),
        (["-i", "memory:", "memory:"], "specify only one table with -i"),
        (["-q", "a", "bogus"], "write type:name"),
        (["-q", "a", "fail:x"], "table fail:x: query error: "),
    ],
)
def test_command_refused(
    arguments: list[str], text: str, command: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    """A command that cannot be done says why, and its status is 1."""
    assert command(*arguments) == 1
    output = capfd.readouterr()
    assert output.out == ""
    assert output.err.startswith("socketmap-memcache map: fatal: ")
    assert text in output.err


def test_config_directory(
    command: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The Postfix whose configuration is given says where its proxymap is, or why it cannot."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert command("-c", "/some", "-q", "a", "proxy:btree:/x") == 1
    assert "option -c needs Postfix's postconf: No such file" in capfd.readouterr().err
    postconf = tmp_path / "postconf"
    postconf.write_text(
        '#!/bin/sh\n[ "$*" = "-c /some -xh queue_directory" ] && echo /queue && exit\necho why >&2; exit 1\n'
    )
    postconf.chmod(0o755)
    assert proxy_sockets("/some") == ("/queue/private/proxymap", "/queue/private/proxywrite")
    assert command("-c", "/some", "-q", "a", "static:x") == 0
    assert command("-c", "/none", "-q", "a", "static:x") == 1
    assert capfd.readouterr() == ("x\n", "socketmap-memcache map: fatal: why\n")


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    """The command tells how it is used, and the list of commands has it."""
    assert main(["map", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: socketmap-memcache map [-fv] -q key")
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "look up, list and change entries of tables" in capsys.readouterr().out


def test_broken_pipe(
    command: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """When nobody reads the output any more it ends quietly, with the status that a shell gives for SIGPIPE."""
    reading, writing = os.pipe()
    os.close(reading)
    monkeypatch.setattr(map_command, "STDOUT", writing)
    assert command("-q", "-", "static:x", text=b"a\n") == 141
    os.close(writing)
    assert capfd.readouterr().err == ""


def test_output_error(
    command: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """An output that cannot be written is told."""
    full = os.open("/dev/full", os.O_WRONLY)
    monkeypatch.setattr(map_command, "STDOUT", full)
    assert command("-q", "a", "static:x") == 1
    os.close(full)
    assert "No space left on device" in capfd.readouterr().err


def test_fault(command: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of the program is shown with its traceback."""
    monkeypatch.setattr(Query, "one", lambda _query, _key: fail(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        command("-q", "a", "static:x")


def test_log(command: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Warnings of tables are shown, information with -v, everything with -vv."""
    log = Logger()

    def one(_query: Query, _key: bytes) -> Deferred[int]:
        log.debug("debug")
        log.info("info")
        log.warn("warn")
        try:
            raise TemporaryError("reason")
        except TemporaryError:
            log.failure("failed")
        return succeed(0)

    monkeypatch.setattr(Query, "one", one)
    name = "socketmap-memcache map: "
    assert command("-q", "a", "static:x") == 0
    assert f"{name}warning: warn\n{name}critical: failed: reason\n" in capfd.readouterr().err
    command("-vq", "a", "static:x")
    assert f"{name}info: info\n{name}warning: warn\n" in capfd.readouterr().err
    command("-vvq", "a", "static:x")
    assert f"{name}debug: debug\n{name}info: info\n" in capfd.readouterr().err


def test_interrupted(command: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    """^C during updates ends the input: what was begun is finished, the table closed, and the signal passed on."""
    killed: list[int] = []
    stored: list[tuple[bytes, bytes]] = []

    def read(source: Source) -> Deferred[bytes]:
        if source._stopped:
            return succeed(b"")
        source._waiting = Deferred()
        signal.raise_signal(signal.SIGINT)
        return succeed(b"a 1\n")

    def store(_update: Update, _table: ITable, batch: list[tuple[bytes, bytes]]) -> Deferred[None]:
        stored.extend(batch)
        return succeed(None)

    monkeypatch.setattr(os, "kill", lambda _pid, number: killed.append(number))
    monkeypatch.setattr(Source, "read", read)
    monkeypatch.setattr(Update, "_store", store)
    before = signal.getsignal(signal.SIGINT)
    command("-i", "memory:")
    assert stored == [(b"a", b"1")]
    assert killed == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is before


def test_source_stopped() -> None:
    """An input that is stopped has ended, also for who waits for it; what comes later is dropped."""

    class Waiting(Reactor):
        def getThreadPool(self) -> Any:
            return SimpleNamespace(callInThreadWithCallback=lambda done, *_work: calls.append(done))

    calls: list[Callable[[bool, Any], None]] = []
    stopped = Source(0, Waiting())
    block = stopped.read()
    stopped.stop()
    assert result(block) == b""
    calls[0](True, b"late")
    assert result(stopped.read()) == b""


def test_source_failed() -> None:
    """A failure to read is a failure."""
    with pytest.raises(OSError, match="Bad file descriptor"):
        result(Source(-1, Reactor()).read())


def test_lines_end() -> None:
    """An empty input has no lines, and one that ends with a newline no empty last line."""
    for text, expected in ((b"", []), (b"a\n", [b"a"]), (b"\n", [b""])):
        lines = Lines(source(text) if text else source())
        found = []
        while not lines.ended:
            found += result(lines.next())
        assert found == expected
