"""All that an operation of ``socketmap-memcache map`` needs, with tables in memory."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable
from typing import Any, cast

from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from socketmap_memcache.commands.map_changes import Duplicates, Update
from socketmap_memcache.commands.map_console import Console
from socketmap_memcache.commands.map_query import Query
from socketmap_memcache.commands.map_streams import Sink, Source
from socketmap_memcache.commands.map_tables import Tables
from socketmap_memcache.errors import ConfigurationError, Problem, TemporaryError
from socketmap_memcache.tables.folding import fold
from socketmap_memcache.tables.interface import ICursor, ITable
from socketmap_memcache.tables.read_only import ItemsCursor, RefusingCursor
from tests.unit.deferreds import result_of


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
        status: int = result_of(Update(self.tables, self.console, duplicates).run(source(*blocks)))
        return status


def source(*blocks: bytes) -> Source:
    return cast("Source", Input(*blocks))
