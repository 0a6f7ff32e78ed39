from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent, capturedLogs, formatEvent
from zope.interface.verify import verifyObject

from socketmap_memcache.errors import ConfigurationError
from socketmap_memcache.tables import texthash
from socketmap_memcache.tables.interface import ITable
from socketmap_memcache.tables.texthash import Content, TexthashTable

from .small_table_tests import SmallTableTests, context


class TestTexthash(SmallTableTests):
    """The clock starts long after the files were written, so that they have cooled down."""

    @pytest.fixture(autouse=True)
    def _path(self, tmp_path: Path) -> None:
        self.path = tmp_path / "map"

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_000_000)
        self.threads: list[tuple[Callable[..., Content], tuple[Any, ...], Deferred[Content]]] = []

    def write(self, text: str, age: float = 3600) -> None:
        self.path.write_text(text)
        written = self.clock.seconds() - age
        os.utime(self.path, (written, written))

    def in_thread(self, function: Callable[..., Content], *args: Any) -> Deferred[Content]:
        reading: Deferred[Content] = Deferred()
        self.threads.append((function, args, reading))
        return reading

    def finish_thread(self) -> None:
        function, args, reading = self.threads.pop()
        try:
            content = function(*args)
        except ConfigurationError:
            reading.errback()
        else:
            reading.callback(content)

    def table(self) -> TexthashTable:
        path = str(self.path)
        return TexthashTable(path, texthash.read(path, fold_keys=True), True, self.clock.seconds, self.in_thread)

    def seen(self, table: TexthashTable, seconds: float = 1.0) -> bytes | None:
        """Return what the key has after some time."""
        self.clock.advance(seconds)
        return self.lookup(table, b"Key")

    def logged(self, events: Sequence[LogEvent]) -> list[str]:
        return [f"{event['log_level'].name}: {formatEvent(event)}" for event in events]

    def test_walk(self) -> None:
        """A walk gives the entries in the order of the file, each key once."""
        self.write("b 1\na 2\nb 1\n")
        cursor = self.table().cursor()
        entries = [self.successResultOf(cursor.next()) for _ in range(3)]
        assert entries == [(b"b", b"1"), (b"a", b"2"), None]

    def test_open(self) -> None:
        """A table has the keys of its file, in any case; what is wrong in the file becomes a warning."""
        self.write("Key value\nbad\n")
        into = context()
        table = into.open_table(f"texthash:{self.path}")
        verifyObject(ITable, table)
        assert [self.lookup(table, key) for key in (b"kEY", b"bad", b"", b"\xff")] == [b"value", None, None, None]
        table.close()
        assert [(warning.path, warning.line) for warning in into.warnings] == [(str(self.path), 2)]

    def test_missing(self) -> None:
        """A file that cannot be read is an error that names it, and so is no name at all."""
        assert self.errors("texthash:/none/at/all") == ["/none/at/all: cannot be read: No such file or directory"]
        assert self.errors("texthash:") == ["texthash: needs the path of a file"]

    def test_folder(self) -> None:
        """A folder cannot be read."""
        self.path.mkdir()
        assert self.errors(f"texthash:{self.path}") == [f"{self.path}: cannot be read: Is a directory"]

    def test_pipe(self) -> None:
        """A pipe is not waited for, at the start or in the place of the file later."""
        os.mkfifo(self.path)
        assert self.errors(f"texthash:{self.path}") == [f"{self.path}: cannot be read: not a regular file"]
        self.path.unlink()
        self.write("key old\n")
        table = self.table()
        self.path.unlink()
        os.mkfifo(self.path)
        os.utime(self.path, (1, 1))
        with capturedLogs() as events:
            assert self.seen(table) == b"old"
        assert "cannot be read: not a regular file; the old content" in self.logged(events)[0]

    def test_change(self) -> None:
        """A change is seen at the first look-up after the check interval, and is logged."""
        self.write("key old\n")
        table = self.table()
        self.write("key new\nmore x\n", age=60)
        assert self.seen(table, 0.9) == b"old"
        with capturedLogs() as events:
            assert self.seen(table, 0.1) == b"new"
        assert self.logged(events) == [f"info: texthash:{self.path}: read again, 2 entries"]

    def test_no_change(self) -> None:
        """A file that did not change is not read again, and not even looked at more often than once a second."""
        self.write("key old\n")
        table = self.table()
        with capturedLogs() as events:
            assert self.seen(table) == b"old"
            self.path.unlink()
            assert self.seen(table, 0.5) == b"old"
        assert not events

    def test_replaced(self) -> None:
        """Another file of the same size and time is another file."""
        self.write("key old\n")
        table = self.table()
        self.path.rename(f"{self.path}.old")
        self.write("key new\n")
        assert self.seen(table) == b"new"

    def test_hot(self) -> None:
        """A file that was written within the last second is left alone until it has cooled down."""
        self.write("key old\n")
        table = self.table()
        self.write("key", age=-0.5)
        assert self.seen(table) == b"old"
        self.write("key new\n", age=-0.9)
        assert self.seen(table) == b"old"
        assert self.seen(table) == b"new"

    def test_hot_when_read(self) -> None:
        """A file that somebody begins to write just before it is read, because it has changed, is left alone, too."""
        self.write("key old\n")
        table = self.table()
        self.write("key new\n" + "#" * texthash.LARGEST_AT_ONCE)
        assert self.seen(table) == b"old"
        self.write("", age=0)
        self.finish_thread()
        assert self.lookup(table, b"key") == b"old"
        self.write("key newer\n", age=-0.5)
        assert [self.seen(table) for _ in range(2)] == [b"old", b"newer"]

    def test_hot_when_opened(self) -> None:
        """A file that was being written when the table was opened is read again, even if its time did not change."""
        self.write("key\n", age=0)
        written = self.path.stat().st_mtime_ns
        table = self.table()
        self.path.write_text("key new\n")
        os.utime(self.path, ns=(written, written))
        assert self.seen(table) == b"new"

    def test_time_in_the_future(self) -> None:
        """A file from the future counts as cool, like any other with a wrong time."""
        self.write("key old\n")
        table = self.table()
        self.write("key new\n", age=-3600)
        assert self.seen(table) == b"new"

    def test_clock_set_back(self) -> None:
        """After the clock was set back changes are seen as before."""
        self.write("key old\n")
        table = self.table()
        self.write("key new\n", age=7200)
        self.clock.rightNow -= 3600
        assert self.seen(table, 0) == b"new"

    def test_changed_while_read(self) -> None:
        """Content that changed while it was read is not used; the next check reads it again."""
        self.write("key old\n")
        table = self.table()
        self.write("key new\n", age=60)
        real_stat = os.fstat
        calls: list[int] = []

        def moving(file: int) -> os.stat_result:
            calls.append(file)
            fields = list(real_stat(file))
            fields[stat.ST_SIZE] += len(calls)
            return os.stat_result(fields)

        self.patch(os, "fstat", moving)
        assert self.seen(table) == b"old"
        self.patch(os, "fstat", real_stat)
        assert self.seen(table) == b"new"

    def test_vanished(self) -> None:
        """The old content of a file that cannot be read stays in use, and that is logged once each time."""
        self.write("key old\n")
        table = self.table()
        away = Path(f"{self.path}.away")
        with capturedLogs() as events:
            for _ in range(2):
                self.path.rename(away)
                assert [self.seen(table), self.seen(table)] == [b"old", b"old"]
                away.rename(self.path)
                assert self.seen(table) == b"old"
        complaint = (
            f"error: {self.path}: cannot be read: No such file or directory; "
            f"the old content of texthash:{self.path} stays in use"
        )
        assert self.logged(events) == [complaint] * 2

    def test_wrong_lines(self) -> None:
        """What is wrong in a file that is read again is logged, up to a bound."""
        self.write("key old\n")
        table = self.table()
        self.write("key new\nbad\n", age=60)
        with capturedLogs() as events:
            assert self.seen(table) == b"new"
            self.write("key newer\n" + "bad\n" * 50)
            assert self.seen(table) == b"newer"
        ignored = 'expected format: key whitespace value; ignored: "bad"'
        assert self.logged(events) == [
            f"info: texthash:{self.path}: read again, 1 entries",
            f"warn: {self.path}:2: {ignored}",
            f"info: texthash:{self.path}: read again, 1 entries",
            *(f"warn: {self.path}:{line}: {ignored}" for line in range(2, 12)),
            f"warn: {self.path}: and 40 more",
        ]

    def test_large(self) -> None:
        """A large file is read in a thread, once, while the old content serves."""
        self.write("key old\n")
        table = self.table()
        self.write("key new\n" + "#" * texthash.LARGEST_AT_ONCE)
        assert [self.seen(table), self.seen(table)] == [b"old", b"old"]
        assert len(self.threads) == 1
        self.finish_thread()
        assert self.seen(table, 0) == b"new"
        assert self.seen(table) == b"new"
        assert not self.threads

    def test_large_unreadable(self) -> None:
        """A failure in the thread leaves the old content in use, and the next check tries again."""
        self.write("key old\n")
        table = self.table()
        text = "key new\n" + "#" * texthash.LARGEST_AT_ONCE
        self.write(text)
        assert self.seen(table) == b"old"
        self.path.unlink()
        with capturedLogs() as events:
            self.finish_thread()
        assert len(events) == 1
        self.write(text)
        assert self.seen(table) == b"old"
        self.finish_thread()
        assert self.seen(table) == b"new"
