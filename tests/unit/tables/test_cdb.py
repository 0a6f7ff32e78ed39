from __future__ import annotations

import os
import random
import struct
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from socketmap_memcache.errors import ConfigurationError, TemporaryError
from socketmap_memcache.tables.cdb import CdbFile, CdbTable, CorruptError
from socketmap_memcache.tables.interface import ICursor, ITable, ReadOnlyError

from .store_reactor import StoreReactor

OLD = (1_000_000_000, 1_000_000_000)


def make(records: list[tuple[bytes, bytes]]) -> bytes:
    """Return a constant database, as its format's description says."""

    def hash_of(key: bytes) -> int:
        value = 5381
        for byte in key:
            value = ((value << 5) + value & 0xFFFFFFFF) ^ byte
        return value

    data = b""
    slots: list[list[tuple[int, int]]] = [[] for _ in range(256)]
    for key, value in records:
        hashed = hash_of(key)
        slots[hashed % 256].append((hashed, 2048 + len(data)))
        data += struct.pack("<II", len(key), len(value)) + key + value
    header, tables = b"", b""
    for entries in slots:
        header += struct.pack("<II", 2048 + len(data) + len(tables), 2 * len(entries))
        table = [(0, 0)] * (2 * len(entries))
        for hashed, position in entries:
            slot = (hashed >> 8) % len(table)
            while table[slot][1]:
                slot = (slot + 1) % len(table)
            table[slot] = hashed, position
        tables += b"".join(struct.pack("<II", *pair) for pair in table)
    return header + data + tables


class CdbTests(SynchronousTestCase):
    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "table.cdb"
        self.clock = Clock()

    def open(self, content: bytes) -> CdbTable:
        self.replace(content)
        return CdbTable(str(self.path.with_suffix("")), CdbFile(str(self.path)), clock=self.clock.seconds)

    def replace(self, content: bytes) -> None:
        new = self.path.with_suffix(".tmp")
        new.write_bytes(content)
        new.rename(self.path)

    def lookup(self, table: ITable, key: bytes) -> bytes | None:
        return self.successResultOf(table.lookup(key))

    def walk(self, table: ITable) -> list[tuple[bytes, bytes]]:
        cursor = table.cursor()
        verifyObject(ICursor, cursor)
        entries = []
        while (entry := self.successResultOf(cursor.next())) is not None:
            entries.append(entry)
        assert self.successResultOf(cursor.next()) is None
        return entries


class TestLookup(CdbTests):
    def test_lookup(self) -> None:
        """A key is found in any case; one that is missing, empty, not UTF-8, or has a NUL is missing."""
        table = self.open(make([(b"a", b"1"), (b"b", b""), (b"\xc3\xbc", b"\xc3\x9c"), (b"a", b"second")]))
        verifyObject(ITable, table)
        found = {key: self.lookup(table, key) for key in (b"A", b"b", b"\xc3\x9c")}
        assert found == {b"A": b"1", b"b": b"", b"\xc3\x9c": b"\xc3\x9c"}
        assert [self.lookup(table, key) for key in (b"c", b"", b"\xff", b"a\0")] == [None] * 4
        table.close()
        table.close()

    def test_forms(self) -> None:
        """Keys and values may end in a NUL; where a key has both forms, the one with NUL counts."""
        table = self.open(make([(b"a\0", b"1\0"), (b"b", b"2"), (b"c", b"3"), (b"c\0", b"4\0")]))
        assert [self.lookup(table, key) for key in (b"a", b"b", b"c")] == [b"1", b"2", b"4"]
        assert self.walk(table) == [(b"a", b"1"), (b"b", b"2"), (b"c", b"3"), (b"c", b"4")]

    def test_overwritten(self) -> None:
        """While a file that was overwritten in place has not been opened anew, nothing is said to be missing."""
        table = self.open(make([(b"a", b"1"), (b"b", b"2")]))
        self.path.write_bytes(make([(b"longer than before", b"x"), (b"a", b"1"), (b"b", b"2")]))
        for key in (b"a", b"b", b"c"):
            self.failureResultOf(table.lookup(key), TemporaryError)
        self.clock.advance(1)
        assert [self.lookup(table, key) for key in (b"a", b"b", b"c")] == [b"1", b"2", None]

    def test_many(self) -> None:
        """All of many keys are found, and no other; a walk gives them in the order of the file."""
        records = [(b"key %d" % number, b"value %d" % number) for number in range(3000)]
        table = self.open(make(records))
        assert all(self.lookup(table, key) == value for key, value in records)
        assert all(self.lookup(table, b"kez %d" % number) is None for number in range(1000))
        assert self.walk(table) == records

    def test_full_table(self) -> None:
        """A search ends after all slots of a hash table, wherever it began."""
        content = bytearray(make([(b"a", b"1")]))
        table = self.open(bytes(content))
        position, slots = next(pair for pair in CdbFile(str(self.path))._tables if pair[1])
        assert slots == 2
        for slot in range(slots):
            struct.pack_into("<II", content, position + slot * 8, 0, 2048)  # no hash value that is asked for
        table = self.open(bytes(content))
        assert self.lookup(table, b"a") is None

    def test_empty(self) -> None:
        """A table without entries has none."""
        table = self.open(make([]))
        assert self.lookup(table, b"a") is None
        assert self.walk(table) == []

    def test_read_only(self) -> None:
        """Updates and deletions are refused."""
        table = self.open(make([(b"a", b"1")]))
        answers: list[Deferred[bool]] = [table.update(b"a", b"2"), table.delete(b"a")]
        for answer in answers:
            self.failureResultOf(answer, ReadOnlyError)


class TestOpen(CdbTests):
    def error(self, spec: str) -> str:
        return str(self.assertRaises(ConfigurationError, StoreReactor().context().open_table, spec))

    def test_open(self) -> None:
        """A table is opened by its name without the suffix, with a warning if its source is newer."""
        self.replace(make([(b"a", b"1")]))
        name = self.path.with_suffix("")
        context = StoreReactor().context()
        assert self.lookup(context.open_table(f"cdb:{name}"), b"a") == b"1"
        assert not context.warnings
        name.touch()
        os.utime(self.path, OLD)
        os.utime(name, (OLD[0] + 1, OLD[1] + 1))
        assert context.open_table(f"cdb:{name}").name == f"cdb:{name}"
        assert list(map(str, context.warnings)) == [f"{self.path}: is older than its source {name.name}; run postmap"]

    def test_no_name(self) -> None:
        """The name must not be empty."""
        assert self.error("cdb:") == "cdb: needs the path of a file"

    def test_missing(self) -> None:
        """A file that is missing, or is none, is named with the reason."""
        name = self.path.with_suffix("")
        assert self.error(f"cdb:{name}") == (
            f"{self.path}: cannot be opened: No such file or directory (make it with: postmap cdb:{name})"
        )
        self.path.mkdir()
        assert "cannot be opened: Is a directory" in self.error(f"cdb:{name}")
        self.path.rmdir()
        os.mkfifo(self.path)
        assert "cannot be opened: Illegal seek" in self.error(f"cdb:{name}")

    def test_wrong_format(self) -> None:
        """A file that is too short, or has a header that makes no sense, is no table."""
        good = make([(b"a", b"1")])
        for content in (b"", b"a 1\n", good[:2047], bytes(2048), good[:-1], b"x" * 5000, good[:4] + b"\xff" * 4 + good):
            self.replace(content)
            assert "is not a constant database" in self.error(f"cdb:{self.path.with_suffix('')}"), content


class TestCorrupt(CdbTests):
    def test_any_byte(self) -> None:
        """Whatever bytes are wrong, a look-up has one of its three answers; nothing else happens."""
        records = [(b"key %d" % number, b"value %d" % number) for number in range(20)]
        good = make(records)
        source = random.Random(1)
        outcomes: set[object] = set()
        for _ in range(500):
            content = bytearray(good)
            for _ in range(source.randrange(1, 4)):
                content[source.randrange(len(content))] = source.choice([0, 1, 8, 127, 255])
            if source.random() < 0.2:
                del content[source.randrange(len(content)) :]
            self.path.write_bytes(content)
            try:
                file = CdbFile(str(self.path))
            except CorruptError:
                outcomes.add("refused")
                continue
            table = CdbTable(str(self.path.with_suffix("")), file)
            for key, _ in records:
                answer = table.lookup(key)
                answer.addErrback(lambda failure: failure.trap(TemporaryError))
                outcomes.add(type(self.successResultOf(answer)))
            cursor = table.cursor()
            for _ in range(len(records) + 1):
                step = cursor.next()
                step.addErrback(lambda failure: failure.trap(TemporaryError))
                self.successResultOf(step)
        assert outcomes == {"refused", bytes, type(None), type}

    def test_cut_while_open(self) -> None:
        """A file that is cut short while it is open is a failure, not a miss, and no crash."""
        table = self.open(make([(b"a", b"1" * 100)]))
        cursor = table.cursor()
        os.truncate(self.path, 2060)
        for answer in (table.lookup(b"a"), cursor.next(), cursor.next()):
            text = self.failureResultOf(answer, TemporaryError).getErrorMessage()
            assert text.startswith(f"{table.name}: ")

    def test_overwritten_while_walking(self) -> None:
        """A walk fails in a file that is overwritten in place: what comes next may be of the one or of the other."""
        cursor = self.open(make([(b"a", b"1"), (b"b", b"2")])).cursor()
        assert self.successResultOf(cursor.next()) == (b"a", b"1")
        self.path.write_bytes(make([(b"xy", b""), (b"z", b"4")]))
        self.failureResultOf(cursor.next(), TemporaryError)
        self.failureResultOf(cursor.next(), TemporaryError)

    def test_read_error(self) -> None:
        """A file that cannot be read any more is a failure."""
        table = self.open(make([(b"a", b"1")]))
        os.close(table._file._descriptor)
        try:
            self.failureResultOf(table.lookup(b"a"), TemporaryError)
        finally:
            table._file._descriptor = os.open(self.path, os.O_RDONLY)


class TestReplaced(CdbTests):
    def test_new_file(self) -> None:
        """A new file is used within a second; a walk that has begun stays in the old one, which is closed after it."""
        table = self.open(make([(b"a", b"1"), (b"b", b"1")]))
        cursor = table.cursor()
        descriptor = table._file._descriptor
        self.replace(make([(b"a", b"2")]))
        assert self.lookup(table, b"a") == b"1"
        self.clock.advance(1)
        assert self.lookup(table, b"a") == b"2"
        assert self.successResultOf(cursor.next()) == (b"a", b"1")
        assert self.successResultOf(cursor.next()) == (b"b", b"1")
        del cursor
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)
        assert self.walk(table) == [(b"a", b"2")]

    def test_one_look_a_second(self) -> None:
        """The file is looked at once a second, however many look-ups there are."""
        table = self.open(make([(b"a", b"1")]))
        looks = []
        table._check = lambda: looks.append(self.clock.seconds())  # type: ignore[method-assign]
        for _ in range(40):
            self.clock.advance(0.25)
            self.lookup(table, b"a")
        assert looks == [float(second) for second in range(1, 11)]

    def test_bad_file(self) -> None:
        """A file that has gone or is bad is logged once, and the old one stays in use until there is a good one."""
        table = self.open(make([(b"a", b"1")]))
        with capturedLogs() as log:
            self.replace(b"garbage")
            for _ in range(3):
                self.clock.advance(1)
                assert self.lookup(table, b"a") == b"1"
            self.path.unlink()
            for _ in range(3):
                self.clock.advance(1)
                assert self.lookup(table, b"a") == b"1"
            self.replace(make([(b"a", b"2")]))
            for _ in range(2):
                self.clock.advance(1)
                assert self.lookup(table, b"a") == b"2"
        texts = list(map(formatEvent, log))
        assert len(texts) == 3
        assert texts[0] == (
            f"{self.path}: is not a constant database, or not all of one; the old content of {table.name} stays in use"
        )
        assert "No such file" in texts[1]
        assert texts[2] == f"{table.name}: opened again"
