"""Clean-up of a large greylist holds up nobody."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from twisted.logger import capturedLogs, formatEvent

from socketmap_memcache.policies.greylist.cleaner import Cleaner
from socketmap_memcache.policies.greylist.settings import Settings
from socketmap_memcache.tables.store import Operation, Store
from socketmap_memcache.tables.store_table import StoreTable
from tests.unit.tables.store_reactor import StoreReactor

#: Seconds: what is asked for while the store is at a step of the clean-up waits for so long, at most.
LONGEST_STEP = 0.005

RECORDS, OVER = 5_000, 10
NOW, DAY = 1_700_000_000, 24 * 3600


class Timed:
    """A store, and how long each of its steps took, without the time that the disk takes."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.steps: list[float] = []

    def execute(self, operations: Sequence[Operation]) -> Sequence[object]:
        before = time.thread_time()
        results = self._store.execute(operations)
        self.steps.append(time.thread_time() - before)
        return results

    def close(self) -> None:
        self._store.close()


def fill(table: StoreTable, reactor: StoreReactor) -> None:
    """Store triplets; every thousandth, and the last few one after the other, make no difference any more."""
    for begin in range(0, RECORDS, 1000):
        updates = []
        for number in range(begin, begin + 1000):
            over = number % 1000 == 0 or number >= RECORDS - OVER
            seen = NOW - (90 * DAY if over else DAY)
            updates.append(table.update(b"t/192.0.2.0/%06d@example.net/a@b" % number, b"%d,%d" % (seen, seen)))
        for update in updates:
            assert reactor.result(update)


@pytest.mark.parametrize("kind", ["lmdb", "btree", "hash"])
def test_steps_are_short(kind: str, tmp_path: Path) -> None:
    """No step of a clean-up takes more than 5 ms, and in the end all is deleted that is over, and nothing else."""
    reactor = StoreReactor()
    reactor.advance(NOW)
    table: Any = reactor.context().open_table(f"{kind}:{tmp_path}/greylist", create=True)
    fill(table, reactor)
    table._store = timed = Timed(table._store)
    with capturedLogs() as events:
        cleaner = Cleaner(table, Settings(), reactor, first_pause=1, duration=1)
        reactor.advance(1)
        while not events:
            reactor.advance(1) if not table._pending else reactor.run_call()
        cleaner.stop()
    deleted = RECORDS // 1000 + OVER
    text = f"{kind}:{tmp_path}/greylist: clean-up finished. before: {RECORDS}, after: {RECORDS - deleted}"
    assert [formatEvent(event) for event in events] == [text]
    steps = sorted(timed.steps)
    # A single one may have been interrupted on a busy machine, which counts as its own time.
    assert steps[-3] < LONGEST_STEP, steps[-10:]
    table.close()
