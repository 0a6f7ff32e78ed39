"""``-i`` and ``-d``: updates and deletes."""

from __future__ import annotations

import re
from collections.abc import Generator
from enum import Enum
from typing import Any

from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.python.failure import Failure

from socketmap_memcache.commands.map_console import Console, FatalError, printable
from socketmap_memcache.commands.map_query import failed, non_utf8_key
from socketmap_memcache.commands.map_streams import LINE_LIMIT, Lines, Source, keys_of, parts
from socketmap_memcache.commands.map_tables import WINDOW, Tables
from socketmap_memcache.config.syntax import logical_lines, split_key
from socketmap_memcache.errors import Problem
from socketmap_memcache.tables.folding import fold, valid
from socketmap_memcache.tables.interface import ITable
from socketmap_memcache.tables.lookup_all import gather, lookup_all
from socketmap_memcache.tables.read_only import refusal_of

# What comes before the last of these belongs to lines that are complete: none of the next lines can continue them.
_NEW_LINE = re.compile(rb"\n(?=[^\s#])")
_KEY_END = re.compile(rb"\s")


class Duplicates(Enum):
    """What becomes of an entry whose key exists."""

    WARN = "it is left out, with a warning"
    KEEP = "it is left out"
    REPLACE = "it replaces the one that exists"


class Delete:
    """Deletes keys from all tables."""

    def __init__(self, tables: Tables, console: Console) -> None:
        """Open nothing yet."""
        self._tables = tables
        self._console = console

    @inlineCallbacks
    def one(self, key: bytes) -> Generator[Deferred[Any], Any, int]:
        """Delete a key.

        :return: the exit status: 0 where a table had it.
        :raises FatalError: a table failed.
        """
        found = yield self._delete(self._tables.open_all(), [key])
        return 0 if found else 1

    @inlineCallbacks
    def all(self, source: Source) -> Generator[Deferred[Any], Any, int]:
        """Delete each key of the input; see :meth:`one`."""
        tables = self._tables.open_all()
        lines = Lines(source)
        found = False
        while not lines.ended:
            read = yield lines.next()
            for keys in parts(keys_of(read), WINDOW):
                found |= yield self._delete(tables, keys)
                self._console.progress(len(keys))
        return 0 if found else 1

    @inlineCallbacks
    def _delete(self, tables: list[ITable], keys: list[bytes]) -> Generator[Deferred[Any], Any, bool]:
        found = False
        good = [key for key in keys if valid(key)]
        for name, table in zip(self._tables.names, tables, strict=True):
            answers: list[Any] = yield gather(table.delete(key) for key in good)
            for answer in answers:
                if isinstance(answer, Failure):
                    raise failed(answer, name, "delete")
                found |= answer
            for key in keys:
                if not valid(key):
                    self._console.warn(non_utf8_key(name, key))
                    found = True  # so says Postfix
        return found


class Update:
    """Stores the entries of an input in the format of postmap's source files."""

    def __init__(self, tables: Tables, console: Console, duplicates: Duplicates) -> None:
        """:param duplicates: what becomes of entries whose key exists, unless the table is a ``memcache:`` one.

        There they are replaced, as Postfix does: a cache does not keep old values.
        """
        self._tables = tables
        self._console = console
        self._name = tables.names[0]
        self._duplicates = Duplicates.REPLACE if self._name.startswith("memcache:") else duplicates

    @inlineCallbacks
    def run(self, source: Source) -> Generator[Deferred[Any], Any, int]:
        """Store all entries.

        Whether a key exists is asked before it is stored; what another process stores in between is replaced.

        :return: the exit status, 0.
        :raises FatalError: the table failed; what came before in the input, up to some hundred lines, is stored.
        """
        table = self._tables.open(0)
        refusal = refusal_of(table, "update")
        if refusal is not None:
            raise FatalError(str(refusal))
        entries = Entries(source, self._console)
        while not entries.ended:
            for batch in different_keys((yield entries.next())):
                yield self._store(table, batch)
                self._console.progress(len(batch))
        return 0

    @inlineCallbacks
    def _store(self, table: ITable, entries: list[tuple[bytes, bytes]]) -> Generator[Deferred[Any], Any, None]:
        if self._duplicates is not Duplicates.REPLACE:
            entries = yield self._without_existing(table, entries)
        answers = yield gather(table.update(key, value) for key, value in entries)
        for answer in answers:
            if isinstance(answer, Failure):
                raise failed(answer, self._name, "write")

    @inlineCallbacks
    def _without_existing(
        self, table: ITable, entries: list[tuple[bytes, bytes]]
    ) -> Generator[Deferred[Any], Any, list[tuple[bytes, bytes]]]:
        answers = yield lookup_all(table, [key for key, _ in entries])
        new = []
        for entry, answer in zip(entries, answers, strict=True):
            if isinstance(answer, Failure):
                raise failed(answer, self._name, "write")
            if answer is None:
                new.append(entry)
            elif self._duplicates is Duplicates.WARN:
                self._console.warn(f'{self._name}: duplicate entry: "{printable(entry[0])}"')
        return new


class Entries:
    """Reads keys and values, as postmap does: logical lines of a key, white space and a value.

    Lines that are something else are left out with a warning.
    """

    def __init__(self, source: Source, console: Console) -> None:
        """:param source: is read by this from now on."""
        self._source = source
        self._console = console
        self._rest = b""
        self._lines = 0  # before the rest
        self.ended = False

    @inlineCallbacks
    def next(self) -> Generator[Deferred[bytes], bytes, list[tuple[bytes, bytes]]]:
        """Fire with the entries of the next block; there may be none before the end.

        :raises FatalError: a line is too long.
        """
        block = yield self._source.read()
        if not block:
            self.ended = True
            return self._parse(self._rest)
        begin = max(len(self._rest) - 1, 0)
        text = self._rest + block
        end = max((match.end() for match in _NEW_LINE.finditer(text, begin)), default=0)
        self._rest = text[end:]
        if len(self._rest) > LINE_LIMIT:
            raise FatalError(f"standard input has a line of more than {LINE_LIMIT} bytes")
        return self._parse(text[:end])

    def _parse(self, text: bytes) -> list[tuple[bytes, bytes]]:
        entries = []
        problems: list[Problem] = []
        for number, line in logical_lines(text, "stdin", problems):
            self._print(problems)
            entry = self._entry(number, line)
            if entry is not None:
                entries.append(entry)
        self._print(problems)
        self._lines += text.count(b"\n")
        return entries

    def _print(self, problems: list[Problem]) -> None:
        for problem in problems:
            self._warn(problem.line, problem.text)
        problems.clear()

    def _entry(self, number: int, line: bytes) -> tuple[bytes, bytes] | None:
        if not valid(line):
            self._warn(number, f'non-UTF-8 input "{printable(line)}" -- ignoring this line')
            return None
        try:
            key, value = split_key(line, _KEY_END)
        except ValueError as error:
            self._warn(number, f"{error} in '{printable(line)}' -- ignoring this line")
            return None
        value = value.strip()
        if not key or not value:
            self._warn(number, "expected format: key whitespace value")
            return None
        if key.endswith(b":"):
            self._warn(number, 'record is in "key: value" format; is this an alias file?')
        return key, value

    def _warn(self, line: int, text: str) -> None:
        self._console.warn(f"stdin, line {self._lines + line}: {text}")


def different_keys(entries: list[tuple[bytes, bytes]]) -> list[list[tuple[bytes, bytes]]]:
    """Split entries into batches in which no key comes twice, in any case: they may be stored in any order."""
    batches: list[list[tuple[bytes, bytes]]] = []
    keys: set[bytes | None] = set()
    for entry in entries:
        key = fold(entry[0])
        if not batches or key in keys or len(batches[-1]) == WINDOW:
            batches.append([])
            keys.clear()
        keys.add(key)
        batches[-1].append(entry)
    return batches
