"""Tables of ``pgsql:``, as a service has them, and a time that passes."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from queue import Empty
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import attrs
from twisted.internet.defer import Deferred

from socketmap_memcache.errors import TemporaryError
from socketmap_memcache.memcache.pool import ClientPool
from socketmap_memcache.tables.interface import ITable
from socketmap_memcache.tables.registry import TableContext
from tests.integration.harness.processes import PATIENCE, write_config
from tests.unit.deferreds import result_of
from tests.unit.tables.thread_clock import ThreadClock

T = TypeVar("T")


class RealClock(ThreadClock):
    """What a table needs of a reactor, in real time."""

    def seconds(self) -> float:
        return time.monotonic()

    def wait(self, answer: Deferred[Any]) -> None:
        deadline = self.seconds() + PATIENCE
        while not answer.called:
            assert self.seconds() < deadline, "no answer"
            self.advance(0)
            try:
                self.thread_calls.get(timeout=0.01)()
            except Empty:
                continue


@attrs.define
class Site:
    """A folder for ``.cf`` files, the tables that they describe, and servers."""

    folder: Path
    clock: RealClock = attrs.Factory(RealClock)
    tables: list[ITable] = attrs.Factory(list)
    numbers: Iterator[int] = attrs.Factory(itertools.count)

    def open(self, cf: str, *, create: bool = False, timeout: float = 10.0) -> ITable:
        clients = cast("ClientPool", SimpleNamespace(reactor=self.clock))
        context = TableContext(clients, timeout=timeout)
        path = self.write(cf)
        table = context.open_table(f"pgsql:{path}", create)
        self.tables.append(table)
        return table

    def write(self, cf: str) -> Path:
        path = write_config(self.folder / f"{next(self.numbers)}.cf", cf)
        path.chmod(0o600)
        return path

    def result(self, answer: Deferred[T]) -> T:
        """Return the result, or raise the error."""
        self.clock.wait(answer)
        return result_of(answer)

    def results(self, answers: Sequence[Deferred[Any]]) -> list[Any]:
        return [self.result(answer) for answer in answers]

    def outcomes(self, answers: Sequence[Deferred[Any]]) -> list[Any]:
        """Return each result, or the error in its place."""
        return self.results([answer.addErrback(lambda failure: failure.value) for answer in answers])

    def result_at_last(self, ask: Callable[[], Deferred[T]]) -> T:
        """Ask again while the answer is a temporary error, as from a host that is left alone for a second."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return self.result(ask())
            except TemporaryError:
                assert time.monotonic() < deadline

    def walk(self, table: ITable) -> list[tuple[bytes, bytes]]:
        cursor = table.cursor()
        found = []
        while (entry := self.result(cursor.next())) is not None:
            found.append(entry)
        return found

    def close(self) -> None:
        for table in self.tables:
            table.close()
