"""A process that changes a table, as ``socketmap-memcache map`` does it, and says what was acknowledged.

    python -m tests.faults.writer TABLE

Each line of its input is ``KEY VALUE``, or ``KEY`` alone for a delete; each line of its output ``KEY ok``, or
``KEY failed: REASON``. They are all done at the same time.
"""

from __future__ import annotations

import sys
from threading import Thread
from typing import Any

from twisted.internet import reactor as global_reactor
from twisted.python.failure import Failure

from socketmap_memcache.errors import TableError
from socketmap_memcache.memcache.pool import ClientPool
from socketmap_memcache.tables.interface import ITable
from socketmap_memcache.tables.registry import TableContext

reactor: Any = global_reactor


def change(table: ITable, key: str, value: str) -> None:
    """Make a change, and print what came of it."""

    def done(result: object) -> None:
        if not isinstance(result, Failure):
            print(f"{key} ok", flush=True)
        elif result.check(TableError):
            print(f"{key} failed: {result.getErrorMessage()}", flush=True)
        else:
            result.raiseException()

    changed: Any = table.update(key.encode(), value.encode()) if value else table.delete(key.encode())
    changed.addBoth(done)


def main(spec: str) -> None:
    table = TableContext(ClientPool(reactor)).open_table(spec, create=True)

    def read() -> None:
        for line in sys.stdin:
            key, _, value = line.rstrip("\n").partition(" ")
            reactor.callFromThread(change, table, key, value)
        reactor.callFromThread(reactor.stop)

    reactor.callWhenRunning(Thread(target=read, daemon=True).start)
    reactor.run(installSignalHandlers=False)
    table.close()


if __name__ == "__main__":
    main(sys.argv[1])
